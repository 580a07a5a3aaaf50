"""The NumPy reference beside PyTorch, both in float64 on the same number of threads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

import refattn
from benchmarks.cases import Call, Case, installed


def conv2d(batch: int, channels: int, size: int) -> Mapping[str, Call]:
    """Forward and all gradients of a 3x3 convolution that keeps the size of its input."""
    random = np.random.default_rng(0)
    x, d = random.standard_normal((2, batch, channels, size, size))
    weight, bias = random.standard_normal((channels, channels, 3, 3)), random.standard_normal(channels)

    def ours():
        y, pullback = refattn.conv2d.vjp(x, weight, bias, padding=1)
        grads = pullback(d)
        return y, grads["x"], grads["weight"], grads["bias"]

    torch = installed("torch")
    if torch is None:
        return {"refattn": ours}
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    d_torch = torch.tensor(d)

    def theirs():
        y = torch.nn.functional.conv2d(*tensors, padding=1)
        return (y, *torch.autograd.grad(y, tensors, d_torch))

    return {"refattn": ours, "torch": theirs}


def attention_rows(keys: int, rows: int, head_dim: int) -> Mapping[str, Call]:
    """A few rows of causal attention over many keys, forward."""
    random = np.random.default_rng(0)
    query, key, value = (random.standard_normal((1, keys, head_dim)) for _ in range(3))
    picked = np.linspace(0, keys - 1, rows).astype(int)

    def ours():
        return refattn.scaled_dot_product_attention_rows(query, key, value, rows=picked, causal=True).output

    torch = installed("torch")
    if torch is None:
        return {"refattn": ours}
    few, k, v = torch.tensor(query[:, picked]), torch.from_numpy(key), torch.from_numpy(value)

    def theirs():
        mask = torch.arange(keys) <= torch.from_numpy(picked)[:, None]
        return torch.nn.functional.scaled_dot_product_attention(few, k, v, attn_mask=mask)

    return {"refattn": ours, "torch": theirs}


CASES = (
    Case("conv2d 3x3, 64 to 64 channels, 56x56, batch 8, forward and backward", partial(conv2d, 8, 64, 56)),
    Case("attention of 32 rows over 1,000,000 keys, head_dim 64, causal, forward", partial(attention_rows, 1_000_000, 32, 64)),
)
