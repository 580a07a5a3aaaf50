"""Caches in every type in which they are stored, and in every way in which they lie in memory."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")
ml_dtypes = pytest.importorskip("ml_dtypes")

import refattn  # noqa: E402
import refattn_numba  # noqa: E402
from refattn._core.random import Random  # noqa: E402

LENGTHS = np.array([1500, 700, 0])


def caches(seed, length=1500):
    random = Random(seed)
    shapes = {"query": (3, 6, 2, 40), "key": (3, 2, length, 40), "value": (3, 2, length, 24)}
    return {name: random.normal(shape) for name, shape in shapes.items()}


def agree(given, name="decode_attention_with_lse", tolerance=1e-12, **options):
    got, want = (getattr(m, name)(**given, **options) for m in (refattn_numba, refattn))
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance, rtol=tolerance)
    return got


OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": (300, 0)},
    "ahead and behind": {"window": (130, 1)},
    "capped, with sinks": {"softcap": 2.0, "scale": 0.3, "sinks": Random(3).normal(6)},
    "nothing": {"masked_rows": "nan"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_long_caches_in_parts(options):
    agree({**caches(1), "lengths": LENGTHS}, **options)


STORED = [
    np.int8,
    ml_dtypes.bfloat16,
    np.float16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e4m3fnuz,
    np.int16,
    ">f8",
]


@pytest.mark.parametrize("dtype", STORED, ids=lambda d: np.dtype(d).name)
def test_numbers_come_out_of_every_type(dtype):
    given = caches(2)
    codes = {name: (16 * given[name]).astype(dtype) for name in ("key", "value")}
    scales = {"key_scale": 1 / 16, "value_scale": Random(4).uniform(0.01, 0.1, (2, 1500, 1))}
    agree({**given, **codes, **scales, "lengths": LENGTHS}, causal=True)


@pytest.mark.parametrize("dtype", STORED[1:5], ids=lambda d: np.dtype(d).name)
def test_every_pattern_of_bits(dtype):
    """One position of one feature for each pattern: a value alone in its cache is what comes out."""
    bits = np.arange(2 ** (8 * np.dtype(dtype).itemsize), dtype=f"u{np.dtype(dtype).itemsize}")
    value = bits.view(dtype).reshape(-1, 1, 1, 1)
    zeros = np.zeros(value.shape, np.float32)
    got = refattn_numba.decode_attention(zeros, zeros, value, np.ones(len(bits), int))
    np.testing.assert_array_equal(got, value.astype(np.float32))


def in_bshd(x):
    return np.ascontiguousarray(x.swapaxes(-2, -3)).swapaxes(-2, -3)


LAYOUTS = {
    "positions before heads": in_bshd,
    "part of a larger cache": lambda x: np.concatenate([x, x], axis=-2)[..., : x.shape[-2], :],
    "features of a wider one": lambda x: np.concatenate([x, x], axis=-1)[..., 3 : 3 + x.shape[-1]],
    "every second feature": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "backwards": lambda x: x[..., ::-1, :].copy()[..., ::-1, :],
    "one for all": lambda x: np.broadcast_to(x[:1], x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_memory_layout(layout):
    given = caches(5)
    agree({**given, **{name: layout(given[name]) for name in ("key", "value")}, "lengths": LENGTHS})


@pytest.mark.parametrize("page_size", [1, 3, 64, 100])
def test_pages_in_any_order(page_size):
    random = Random(6)
    count = -(-1500 // page_size)
    pools = {"key_pages": random.normal((2 * count, 2, page_size, 40)), "value_pages": random.normal((2 * count, 2, page_size, 24))}
    table = np.where(np.arange(count) < -(-LENGTHS[:, None] // page_size), random.permutation((2, count))[[0, 1, 1]], -1)
    scales = {"key_scale": random.uniform(0.5, 1.0, (2 * count, 2, 1, 40)), "value_scale": random.uniform(0.5, 1.0, (page_size, 1))}
    agree(
        {"query": caches(6)["query"], **pools, **scales, "block_table": table, "lengths": LENGTHS}, "paged_attention_with_lse", causal=True
    )


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_was_never_written_is_not_read(poison):
    clean = {**caches(7), "lengths": LENGTHS, "key_scale": np.ones((3, 2, 1500, 1)), "value_scale": np.ones((3, 2, 1500, 1))}
    there = (np.arange(1500) < LENGTHS[:, None])[:, None, :, None]
    dirty = {**clean, **{n: np.where(there, clean[n], poison) for n in ("key", "value", "key_scale", "value_scale")}}
    np.testing.assert_array_equal(refattn_numba.decode_attention(**dirty), refattn_numba.decode_attention(**clean))


def test_a_later_position_that_is_not_a_number_reaches_only_who_sees_it():
    given = {**caches(8), "lengths": np.array([1500, 1500, 1500])}
    given["value"][:, :, -1] = np.nan
    output = refattn_numba.decode_attention(**given, causal=True)
    assert np.isfinite(output[..., 0, :]).all() and np.isnan(output[..., 1, :]).all()


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["query", "key", "value", "sinks", "key_scale", "value_scale"])
@pytest.mark.parametrize("at", [0, 600])
def test_what_is_not_finite_goes_where_the_reference_lets_it(name, number, at):
    """A position of one sequence and head in the first or the second part of its cache."""
    given = {**caches(12), "lengths": LENGTHS, "sinks": np.zeros(6), "key_scale": np.ones((3, 2, 1500, 1))}
    given["value_scale"] = np.ones((3, 2, 1500, 1))
    place = {"query": (0, 1, 0, 3), "sinks": (1,), "key_scale": (0, 1, at, 0), "value_scale": (0, 1, at, 0)}.get(name, (0, 1, at, 3))
    given[name] = given[name].copy()
    given[name][place] = number
    with np.errstate(invalid="ignore"):
        want = refattn.decode_attention_with_lse(**given, causal=True)
    got = refattn_numba.decode_attention_with_lse(**given, causal=True)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("queries", "length", "head_dim", "value_dim"), [(1, 0, 3, 2), (0, 9, 3, 2), (5, 2, 1, 0), (3, 65, 7, 17)])
def test_sizes_at_the_edges(queries, length, head_dim, value_dim):
    random = Random(9)
    for lead in ((), (0,), (2, 2)):
        shapes = {"query": (*lead, 4, queries, head_dim), "key": (*lead, 2, length, head_dim), "value": (*lead, 2, length, value_dim)}
        given = {name: random.normal(shape) for name, shape in shapes.items()}
        agree({**given, "lengths": np.full(lead, length)}, causal=True)


def test_threads_do_not_change_a_bit():
    import numba

    given, before, results = {**caches(10), "lengths": LENGTHS}, numba.get_num_threads(), []
    try:
        for threads in {1, before}:
            numba.set_num_threads(threads)
            results.append(refattn_numba.decode_attention(**given))
    finally:
        numba.set_num_threads(before)
    np.testing.assert_array_equal(results[0], results[-1])


def test_composites_keep_the_precision_of_their_arguments():
    random = Random(11)
    x, weights = random.normal((2, 5, 8)).astype(np.float32), [random.normal((8, 8)).astype(np.float32) for _ in range(4)]
    y, pullback = refattn_numba.multi_head_attention.vjp(x, x, x, *weights, num_heads=2)
    assert {y.dtype, *(g.dtype for g in pullback(y).values())} == {np.dtype(np.float32)}
