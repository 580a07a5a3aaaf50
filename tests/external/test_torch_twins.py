"""The compiled attention is as exact as PyTorch's, on the same inputs."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("numba")

import torch

import refattn_numba


def torch_results(arrays, d_output, causal, dtype):
    leaves = [torch.from_numpy(x).to(dtype).requires_grad_() for x in arrays]
    y = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=causal)
    return [x.detach().numpy() for x in (y, *torch.autograd.grad(y, leaves, torch.from_numpy(d_output).to(dtype)))]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_rounding_errors_are_no_larger_than_those_of_torch(causal, head_dim):
    """Root mean square over ten draws, of the output and of each gradient."""
    squares = np.zeros((2, 4))
    for seed in range(10):
        random = np.random.default_rng(seed)
        query, key, value, d = (random.standard_normal((2, 256, head_dim)).astype("float32") for _ in range(4))
        exact = torch_results((query, key, value), d, causal, torch.float64)
        y, pullback = refattn_numba.scaled_dot_product_attention.vjp(query, key, value, causal=causal)
        grads = pullback(d)
        ours = [y, *(grads[n] for n in ("query", "key", "value"))]
        theirs = torch_results((query, key, value), d, causal, torch.float32)
        for row, results in zip(squares, (ours, theirs), strict=True):
            row += [np.mean((got - want) ** 2) for got, want in zip(results, exact, strict=True)]
    assert (np.sqrt(squares[0] / squares[1]) < 1.2).all()
