"""Random calls of the decoding twins against the reference: stored types, scales, pages, lengths, windows and memory layouts."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("numba")
ml_dtypes = pytest.importorskip("ml_dtypes")

import refattn  # noqa: E402
import refattn_numba  # noqa: E402
from refattn_numba.cpu import cached, call, threads  # noqa: E402
from tests.twins.test_fuzz import GUARD, Guarded, broadcast_shape  # noqa: E402

STORED = ["float32", "float64", "float16", ml_dtypes.bfloat16, "int8", ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, "int16"]
POISON = 0x7F  # of these bytes every format makes a number that is large, or none


def inside(random, x):
    """The same numbers in some layout, between poison."""
    order = list(range(x.ndim))
    if x.ndim > 2 and random.random() < 0.4:
        order[-2], order[-3] = order[-3], order[-2]
    shape = [x.shape[i] for i in order]
    wide = list(shape)
    for axis in range(x.ndim):
        if random.random() < 0.2:
            wide[axis] += 3
    whole = np.frombuffer(bytearray([POISON]) * ((math.prod(wide) + 2 * GUARD) * x.itemsize), x.dtype)
    view = whole[GUARD : GUARD + math.prod(wide)].reshape(wide)[(*(slice(n) for n in shape), ...)].transpose(np.argsort(order))
    if x.ndim > 1 and random.random() < 0.2:
        view = view[..., ::-1, :]
    view[...] = x
    view.setflags(write=False)
    return view


def codes(random, shape, stored):
    """Numbers of about 1, or codes of about 60."""
    whole = np.dtype(stored).kind == "i"
    return (random.standard_normal(shape) * (30 if whole else 1)).clip(-120, 120).astype(stored)


def draw(random):
    """The name of a function, and its arguments."""
    chance = lambda p=0.3: random.random() < p  # noqa: E731
    size = lambda most: int(min(random.integers(1, most), random.integers(1, most)))  # noqa: E731
    group, kv_heads, queries = int(random.choice([1, 1, 2, 3, 4, 8])), size(4), int(random.choice([1, 1, 1, 2, 3, 7]))
    length, head_dim, value_dim = size(1500 if chance(0.1) else 300), size(150), size(150)
    if chance():
        head_dim = value_dim = 64
    dtype = "float32" if chance(0.7) else "float64"
    kinds = random.choice(len(STORED), 2) if chance(0.3) else [random.choice(len(STORED))] * 2
    lead = [(), (int(random.integers(1, 4)),), (2, 2)][random.integers(0, 3)]
    paged = chance(0.5)
    page_size = int(random.choice([1, 3, 16, 17, 64, 100])) if paged else length
    pages = -(-length // page_size)
    count = math.prod(lead)
    first_axes = (count * pages + 2,) if paged else lead
    shapes = [(*first_axes, kv_heads, page_size, n) for n in (head_dim, value_dim)]
    given = {"query": random.standard_normal((*lead, kv_heads * group, queries, head_dim)).astype(dtype)}
    names = ("key_pages", "value_pages") if paged else ("key", "value")
    given |= {name: codes(random, shape, STORED[kind]) for name, shape, kind in zip(names, shapes, kinds, strict=True)}
    lengths = random.integers(0, length + 1, lead) if chance(0.7) else np.full(lead, length)
    if paged:
        table = random.permutation(count * pages + 2)[: count * pages].reshape(*lead, pages)
        given["block_table"] = np.where(np.arange(pages) * page_size < lengths[..., None], table, -1)
    given["lengths"] = np.asarray(lengths)
    for name, shape in zip(("key_scale", "value_scale"), shapes, strict=True):
        if chance(0.4):
            given[name] = random.uniform(0.02, 0.05, broadcast_shape(random, shape)).astype(dtype) if chance(0.8) else 0.03
    if chance():
        given["sinks"] = random.standard_normal(kv_heads * group).astype(dtype)
    given = {n: inside(random, x) if isinstance(x, np.ndarray) else x for n, x in given.items()}
    given["causal"] = chance(0.4)
    if chance():
        given["window"] = tuple(int(random.integers(0, 90)) if chance(0.7) else None for _ in "lr")
    if chance(0.2):
        given["softcap"] = 2.0
    if chance(0.2):
        given["scale"] = 0.3
    if chance(0.2):
        given["masked_rows"] = "nan"
    return "paged_attention_with_lse" if paged else "decode_attention_with_lse", given


def exact(given):
    """The same numbers in float64."""
    return {n: np.asarray(x, np.float64) if isinstance(x, np.ndarray) and x.dtype.kind not in "iu" else x for n, x in given.items()}


def run(seed, monkeypatch):
    name, given = draw(np.random.default_rng(seed))
    guarded = Guarded()
    monkeypatch.setattr(cached, "np", guarded)
    monkeypatch.setattr(call, "aligned", guarded.aligned)
    monkeypatch.setattr(threads, "aligned", guarded.aligned)
    got, want = getattr(refattn_numba, name)(**given), getattr(refattn, name)(**exact(given))
    guarded.check()
    shown = {n: ((x.shape, x.dtype) if isinstance(x, np.ndarray) else x) for n, x in given.items()}
    for x, y in zip(got, want, strict=True):
        assert x.shape == y.shape
        np.testing.assert_array_equal(np.isfinite(x), np.isfinite(y), err_msg=f"seed {seed}: {shown}")
        finite = np.isfinite(y)
        largest = max(1.0, np.abs(y[finite]).max(initial=0))
        error = np.abs(x[finite] - y[finite]).max(initial=0) / largest
        # a score, a sum of d products, is wrong by some units of its largest term, and a weight relatively by as much
        assert error < 100 * np.finfo(x.dtype).eps, f"seed {seed}: {shown}"


@pytest.mark.parametrize("block", range(6))
def test_random_calls(block, monkeypatch):
    for seed in range(20 * block, 20 * block + 20):
        run(seed, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(40))
def test_thousands_of_random_calls(block, monkeypatch):
    for seed in range(1000 + 100 * block, 1100 + 100 * block):
        run(seed, monkeypatch)
