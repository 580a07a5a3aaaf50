"""Packed sequences, caches and pages are attention over rows that were found another way."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn import masks, testing
from refattn._core.random import Random

EXACT = {"rtol": 1e-12, "atol": 1e-13}
OPTIONS = {"plain": {}, "causal": {"causal": True}, "window": {"window": (2, 0)}, "capped": {"softcap": 0.5, "scale": 0.7}}
EACH = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def with_gradients(m, given):
    """The output, and the gradients by name."""
    output, pullback = m.vjp(**given)
    return output, dict(pullback(*testing.cotangents(output)))


def same(one, other):
    np.testing.assert_allclose(one[0], other[0], **EXACT)
    assert one[1].keys() == other[1].keys()
    for name, g in one[1].items():
        np.testing.assert_allclose(g, other[1][name], **EXACT, err_msg=name)


def packed(random, total=9):
    return {"query": random.normal((4, total, 3)), "key": random.normal((2, total, 3)), "value": random.normal((2, total, 2))}


def cached(random):
    sizes = {"query": (3, 4, 2, 3), "key": (3, 2, 8, 3), "value": (3, 2, 8, 2)}
    return {name: random.normal(size) for name, size in sizes.items()} | {"sinks": random.normal(4)}


@EACH
def test_packed_sequences_are_documents(options):
    given = packed(Random(1))
    ids = np.repeat(np.arange(4), [3, 0, 4, 2])
    varlen = with_gradients(refattn.varlen_attention, {**given, "cu_seqlens_q": np.asarray([0, 3, 3, 7, 9]), **options})
    whole = with_gradients(refattn.scaled_dot_product_attention, {**given, "mask": masks.documents(ids, ids), **options})
    same(varlen, whole)


@EACH
def test_one_full_cache_is_plain_attention(options):
    given = cached(Random(2))
    decoded = with_gradients(refattn.decode_attention, {**given, "lengths": np.asarray([8, 8, 8]), **options})
    same(decoded, with_gradients(refattn.scaled_dot_product_attention, {**given, "align": "lower_right", **options}))


@EACH
def test_decoding_is_what_packing_is(options):
    """Each sequence by itself, its rows taken out of the cache, packed with the others."""
    random, lengths = Random(3), np.asarray([5, 8, 3])
    given = cached(random)
    output = refattn.decode_attention(**given, lengths=lengths, **options)
    found = {name: np.concatenate([given[name][b][:, :n] for b, n in enumerate(lengths)], axis=1) for name in ("key", "value")}
    query = np.concatenate(list(given["query"]), axis=1)
    starts = {"cu_seqlens_q": np.asarray([0, 2, 4, 6]), "cu_seqlens_k": np.asarray([0, 5, 13, 16])}
    varlen = refattn.varlen_attention(query, **found, sinks=given["sinks"], **starts, align="lower_right", **options)
    np.testing.assert_allclose(np.concatenate(list(output), axis=1), varlen, **EXACT)


@EACH
def test_pages_are_a_cache_laid_out(options):
    random, lengths = Random(4), np.asarray([5, 8, 3])
    given = cached(random)
    scales = {"key_scale": random.normal((3, 2, 8, 1)), "value_scale": random.normal((3, 2, 8, 1))}
    decoded, wanted = with_gradients(refattn.decode_attention, {**given, **scales, "lengths": lengths, **options})
    pages = random.permutation((12,)).reshape(3, 4)  # where each pair of positions of each sequence lies

    def scattered(x):
        pool = np.zeros((12, 2, 2, x.shape[-1]))
        for (b, p), page in np.ndenumerate(pages):
            pool[page] = x[b, :, 2 * p : 2 * p + 2]
        return pool

    pools = {"key_pages": "key", "value_pages": "value", "key_scale": "key_scale", "value_scale": "value_scale"}
    moved = {new: scattered({**given, **scales}[old]) for new, old in pools.items()}
    rest = {"query": given["query"], "sinks": given["sinks"], "lengths": lengths, "block_table": pages, **options}
    output, grads = with_gradients(refattn.paged_attention, {**rest, **moved})
    np.testing.assert_allclose(output, decoded, **EXACT)
    for new, old in pools.items():
        np.testing.assert_allclose(grads[new], scattered(wanted[old]), **EXACT, err_msg=new)
    np.testing.assert_allclose(grads["query"], wanted["query"], **EXACT)


def test_decoding_position_by_position_is_causal_attention():
    random = Random(5)
    query, key, value = (random.normal((2, 3, 6, 4)) for _ in range(3))
    caches = [np.full((2, 3, 6, 4), np.nan) for _ in range(2)]
    rows = []
    for n in range(6):
        caches = [refattn.append_to_cache(c, x[..., n : n + 1, :], np.asarray([n, n])) for c, x in zip(caches, (key, value), strict=True)]
        rows.append(refattn.decode_attention(query[..., n : n + 1, :], *caches, np.asarray([n + 1, n + 1])))
    whole = refattn.scaled_dot_product_attention(query, key, value, causal=True)
    np.testing.assert_allclose(np.concatenate(rows, axis=-2), whole, **EXACT)


def test_a_circular_cache_holds_a_window():
    """The order of the keys does not matter, so that the newest may lie anywhere."""
    random = Random(6)
    query, key, value = (random.normal((1, 1, 7, 3)) for _ in range(3))
    whole = refattn.scaled_dot_product_attention(query, key, value, causal=True, window=(2, None))
    caches = [np.full((1, 1, 3, 3), np.nan) for _ in range(2)]
    for n in range(7):
        new = zip(caches, (key, value), strict=True)
        caches = [refattn.append_to_cache(c, x[..., n : n + 1, :], np.asarray([n]), circular=True) for c, x in new]
        row = refattn.decode_attention(query[..., n : n + 1, :], *caches, np.asarray([min(n + 1, 3)]))
        np.testing.assert_allclose(row, whole[..., n : n + 1, :], **EXACT)


def test_parts_of_a_cache_merge():
    random = Random(7)
    given = {name: x for name, x in cached(random).items() if name != "sinks"}
    lengths = np.asarray([5, 8, 3])
    whole = refattn.decode_attention_with_lse(**given, lengths=lengths)
    halves = [
        refattn.decode_attention_with_lse(
            given["query"], *(given[name][..., 4 * i : 4 * i + 4, :] for name in ("key", "value")), np.clip(lengths - 4 * i, 0, 4)
        )
        for i in range(2)
    ]
    merged = refattn.merge_attention(*(np.stack(x) for x in zip(*halves, strict=True)))
    for a, b in zip(merged, whole, strict=True):
        np.testing.assert_allclose(a, b, **EXACT)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_was_never_written_is_not_read(poison):
    random, lengths = Random(8), np.asarray([5, 0, 3])
    clean = {**cached(random), "key_scale": random.normal((3, 2, 8, 1)), "value_scale": random.normal((3, 2, 8, 1)), "lengths": lengths}
    there = (np.arange(8) < lengths[:, None])[:, None, :, None]
    dirty = {**clean, **{n: np.where(there, clean[n], poison) for n in ("key", "value", "key_scale", "value_scale")}}
    one, other = (with_gradients(refattn.decode_attention, given) for given in (clean, dirty))
    assert np.isfinite(other[0]).all() and all(np.isfinite(g).all() for g in other[1].values())
    np.testing.assert_array_equal(one[0], other[0])
    for name, g in one[1].items():
        np.testing.assert_array_equal(g, other[1][name], err_msg=name)


def test_a_shared_prompt_has_the_gradient_of_both():
    random = Random(9)
    pools = {"key_pages": random.normal((3, 1, 2, 3)), "value_pages": random.normal((3, 1, 2, 2))}
    query, table, lengths = random.normal((2, 1, 1, 3)), np.asarray([[0, 1], [0, 2]]), np.asarray([4, 3])
    output, pullback = refattn.paged_attention.vjp(query, **pools, block_table=table, lengths=lengths)
    (d_output,) = testing.cotangents(output)
    both = pullback(d_output)
    for name in pools:
        alone = [
            refattn.paged_attention.vjp(query[b : b + 1], **pools, block_table=table[b : b + 1], lengths=lengths[b : b + 1])[1](
                d_output[b : b + 1]
            )[name]
            for b in range(2)
        ]
        np.testing.assert_allclose(both[name], sum(alone), **EXACT)
        assert all(np.abs(g[0]).max() > 1e-3 for g in alone)


def test_codes_are_exact_in_every_format():
    """A cache of int8 or float8 codes with its scales is a cache of their products."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    random = Random(10)
    given = {name: x for name, x in cached(random).items() if name != "sinks"}
    for dtype in (np.int8, ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16):
        codes = {name: (given[name] * 16).astype(dtype) for name in ("key", "value")}
        numbers = {name: np.asarray(x.astype(np.float64)) / 16 for name, x in codes.items()}
        scales = {"key_scale": 1 / 16, "value_scale": 1 / 16}
        got = refattn.decode_attention(given["query"], **codes, **scales, lengths=np.asarray([8, 5, 1]))
        np.testing.assert_array_equal(got, refattn.decode_attention(given["query"], **numbers, lengths=np.asarray([8, 5, 1])))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint32", "uint64"])
def test_lengths_are_numbers_whatever_their_type(dtype):
    """Positions before the first are negative, which an unsigned type is not; those of a long cache are more than int8 holds."""
    random, lengths = Random(11), np.asarray([0, 1, 5])
    given = cached(random)
    want = refattn.decode_attention(**given, lengths=lengths, causal=True)
    np.testing.assert_array_equal(refattn.decode_attention(**given, lengths=lengths.astype(dtype), causal=True), want)
    appended = refattn.append_to_cache(given["key"], random.normal((3, 2, 1, 3)), lengths.astype(dtype))
    assert [np.flatnonzero((appended != given["key"]).all((1, 3))[b]).tolist() for b in range(3)] == [[0], [1], [5]]
    long = random.normal((1, 1, 200, 2))
    assert refattn.decode_attention(long, long, long, np.asarray([100], dtype)).shape == long.shape


def test_integers_beyond_int64_are_refused():
    cache = np.zeros((1, 1, 4, 1))
    with pytest.raises(ValueError, match="lengths runs to 18446744073709551615, which int64 does not hold"):
        refattn.append_to_cache(cache, cache[..., :1, :], np.asarray([2**64 - 1], np.uint64))


def test_codes_are_numbers():
    cache = np.zeros((1, 1, 4, 1))
    with pytest.raises(TypeError, match="key is bool, but must be integer or floating point"):
        refattn.decode_attention(cache, cache > 0, cache, [4])
