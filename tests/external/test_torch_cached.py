"""Packed sequences, caches and pages against PyTorch's attention of each sequence by itself, in float64."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core.random import Random

torch = pytest.importorskip("torch")

CLOSE = {"rtol": 1e-12, "atol": 1e-12}
LENGTHS = np.array([5, 8, 3])


def leaf(x):
    return torch.tensor(x, requires_grad=True)


def compare(m, given, made, leaves):
    output, pullback = m.vjp(**given)
    (d_output,) = testing.cotangents(output)
    np.testing.assert_allclose(output, made.detach().numpy(), **CLOSE)
    grads = pullback(d_output)
    for name, g in zip(leaves, torch.autograd.grad(made, list(leaves.values()), torch.tensor(d_output)), strict=True):
        np.testing.assert_allclose(grads[name], g.numpy(), **CLOSE, err_msg=name)


def attended(query, key, value, causal):
    """One sequence, its last query at its last key."""
    rows, columns = query.shape[-2], key.shape[-2]
    mask = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows) if causal else None
    return torch.nn.functional.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=mask, enable_gqa=True)[0]


@pytest.mark.parametrize("causal", [False, True])
def test_varlen(causal):
    random = Random(1)
    arrays = {"query": random.normal((4, 7, 3)), "key": random.normal((2, 16, 3)), "value": random.normal((2, 16, 5))}
    starts_q, starts_k = np.array([0, 2, 5, 7]), np.concatenate([[0], LENGTHS.cumsum()])
    leaves = {name: leaf(x) for name, x in arrays.items()}
    spans = [(slice(*starts_q[i : i + 2]), slice(*starts_k[i : i + 2])) for i in range(3)]
    parts = [attended(leaves["query"][:, q], leaves["key"][:, k], leaves["value"][:, k], causal) for q, k in spans]
    given = {**arrays, "cu_seqlens_q": starts_q, "cu_seqlens_k": starts_k, "causal": causal, "align": "lower_right"}
    compare(refattn.varlen_attention, given, torch.cat(parts, dim=1), leaves)


@pytest.mark.parametrize("causal", [False, True])
def test_decode(causal):
    random = Random(2)
    arrays = {"query": random.normal((3, 4, 2, 3)), "key": random.normal((3, 2, 9, 3)), "value": random.normal((3, 2, 9, 5))}
    arrays |= {"key_scale": random.normal((2, 1, 3)), "value_scale": random.normal((3, 2, 9, 1))}
    leaves = {name: leaf(x) for name, x in arrays.items()}
    keys, values = leaves["key"] * leaves["key_scale"], leaves["value"] * leaves["value_scale"]
    parts = [attended(leaves["query"][b], keys[b, :, :n], values[b, :, :n], causal) for b, n in enumerate(LENGTHS)]
    compare(refattn.decode_attention, {**arrays, "lengths": LENGTHS, "causal": causal}, torch.stack(parts), leaves)


@pytest.mark.parametrize("causal", [False, True])
def test_paged(causal):
    random = Random(3)
    arrays = {"query": random.normal((3, 4, 2, 3)), "key_pages": random.normal((6, 2, 4, 3)), "value_pages": random.normal((6, 2, 4, 5))}
    arrays |= {"key_scale": random.normal((6, 1, 1, 1)), "value_scale": random.normal((6, 2, 4, 1))}
    table = np.array([[5, 2], [5, 0], [3, -1]])
    leaves = {name: leaf(x) for name, x in arrays.items()}
    keys, values = leaves["key_pages"] * leaves["key_scale"], leaves["value_pages"] * leaves["value_scale"]

    def rows(pool, b):
        return torch.cat([pool[p] for p in table[b] if p >= 0], dim=1)[:, : LENGTHS[b]]

    parts = [attended(leaves["query"][b], rows(keys, b), rows(values, b), causal) for b in range(3)]
    given = {**arrays, "block_table": table, "lengths": LENGTHS, "causal": causal}
    compare(refattn.paged_attention, given, torch.stack(parts), leaves)


def test_append():
    random = Random(4)
    arrays = {"cache": random.normal((2, 3, 6, 4)), "new": random.normal((2, 3, 2, 4))}
    lengths = np.array([4, 1])
    leaves = {name: leaf(x) for name, x in arrays.items()}
    parts = [torch.cat([leaves["cache"][b, :, :n], leaves["new"][b], leaves["cache"][b, :, n + 2 :]], dim=1) for b, n in enumerate(lengths)]
    compare(refattn.append_to_cache, {**arrays, "lengths": lengths}, torch.stack(parts), leaves)
