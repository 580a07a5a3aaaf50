"""The compiled attention is as exact as PyTorch's, on the same inputs."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("numba")

import torch

import refattn_numba


def torch_results(tensors, d_output, causal):
    leaves = [x.clone().requires_grad_() for x in tensors]
    y = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=causal)
    return [x.detach() for x in (y, *torch.autograd.grad(y, leaves, d_output))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_rounding_errors_are_no_larger_than_those_of_torch(causal, head_dim, dtype):
    """Root mean square over ten draws, of the output and of each gradient; with four axes, for which PyTorch has its fused kernel."""
    squares = np.zeros((2, 4))
    for seed in range(10):
        torch.manual_seed(seed)
        *tensors, d = (torch.randn(1, 2, 256, head_dim).to(dtype) for _ in range(4))
        exact = torch_results([x.double() for x in tensors], d.double(), causal)
        y, pullback = refattn_numba.scaled_dot_product_attention.vjp(*tensors, causal=causal)
        grads = pullback(d)
        ours = [y, *(grads[n] for n in ("query", "key", "value"))]
        for row, results in zip(squares, (ours, torch_results(tensors, d, causal)), strict=True):
            row += [float(((got.double() - want) ** 2).mean()) for got, want in zip(results, exact, strict=True)]
    assert (np.sqrt(squares[0] / squares[1]) < 1.2).all()
