"""Positions against the usual PyTorch code for them, in float64: values, and gradients by autograd, on the mechanisms' samples."""

from __future__ import annotations

import math

import numpy as np
import pytest

import refattn
from refattn import testing

torch = pytest.importorskip("torch")

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def sinusoidal_encoding(positions, model_dim, base=10000.0, order="interleaved"):
    rates = torch.exp(torch.arange(0, model_dim, 2, dtype=positions.dtype) * (-math.log(base) / model_dim))
    waves = [torch.sin(positions[..., None] * rates), torch.cos(positions[..., None] * rates)]
    return torch.stack(waves, dim=-1).flatten(-2) if order == "interleaved" else torch.cat(waves, dim=-1)


def add_sinusoidal(x, base=10000.0, order="interleaved", offset=0):
    positions = torch.arange(offset, offset + x.shape[-2], dtype=x.dtype)
    return x + sinusoidal_encoding(positions, x.shape[-1], base, order)


def on_map(tall, wide, first):
    """As DETR and MAE build it: both vectors repeated over the map, and concatenated."""
    parts = [tall[:, None].expand(-1, len(wide), -1), wide[None].expand(len(tall), -1, -1)]
    return torch.cat(parts if first == "height" else parts[::-1], dim=-1).permute(2, 0, 1)


def add_sinusoidal_2d(x, base=10000.0, order="interleaved", first="height", extent=None):
    def encoded(count):
        steps = torch.ones(count, dtype=x.dtype).cumsum(0)
        steps = steps - 1 if extent is None else steps / steps[-1] * extent
        return sinusoidal_encoding(steps, x.shape[1] // 2, base, order)

    return x + on_map(encoded(x.shape[2]), encoded(x.shape[3]), first)


def add_learned(x, table, offset=0):
    return x + torch.nn.functional.embedding(torch.arange(x.shape[-2]) + offset, table)


def add_learned_2d(x, row_table, column_table, first="height"):
    return x + on_map(row_table[: x.shape[2]], column_table[: x.shape[3]], first)


PEERS = (sinusoidal_encoding, add_sinusoidal, add_sinusoidal_2d, add_learned, add_learned_2d)
CALLS = [pytest.param(p, s, id=f"{p.__name__}-{s.name}") for p in PEERS for s in testing.samples(getattr(refattn, p.__name__))]


@pytest.mark.parametrize(("peer", "sample"), CALLS)
def test_agrees_with_torch(peer, sample):
    leaves = {n: torch.tensor(x, requires_grad=True) for n, x in sample.arguments.items() if isinstance(x, np.ndarray)}
    output, pullback = getattr(refattn, peer.__name__).vjp(**sample.arguments)
    made = peer(**{**sample.arguments, **leaves})
    np.testing.assert_allclose(output, made.detach().numpy(), **CLOSE)
    (d_output,) = testing.cotangents(output)
    grads = pullback(d_output)
    assert grads.keys() == leaves.keys()
    for name, g in zip(leaves, torch.autograd.grad(made, list(leaves.values()), torch.tensor(d_output)), strict=True):
        np.testing.assert_allclose(grads[name], g.numpy(), **CLOSE, err_msg=name)
