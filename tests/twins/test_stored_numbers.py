"""Vectors of numbers from every type in which caches are stored, and products of rows with them, each piece against NumPy."""

from __future__ import annotations

import sys

import numpy as np
import pytest

ml_dtypes = pytest.importorskip("ml_dtypes")
numba = pytest.importorskip("numba")

from refattn_numba.cpu import stored_numbers  # noqa: E402
from refattn_numba.cpu.row_products import ROWS, add_to_four_rows, add_to_one_row, dots  # noqa: E402
from refattn_numba.cpu.simd import between, filled, lanes_of, pointer_to, store  # noqa: E402
from tests.twins import guard_pages  # noqa: E402

fenced = guard_pages.fenced if sys.platform.startswith("linux") else np.array

DTYPES = ["float32", "float64"]
READERS = {
    "float32": stored_numbers.read_float32,
    "float16": stored_numbers.read_float16,
    "bfloat16": stored_numbers.read_bfloat16,
    "int8": stored_numbers.read_int8,
    "float8_e4m3fn": stored_numbers.read_e4m3fn,
    "float8_e5m2": stored_numbers.read_e5m2,
}


def read_with(read):
    @numba.njit
    def run(address, size, item, first, out):
        p = pointer_to(out.ctypes.data, out)
        lanes = lanes_of(p)
        for i in range(0, size, lanes):
            if i + lanes <= size:
                store(p, i, read(address + i * item, None, p))
            else:
                store(p, i, read(address + i * item, between(filled(p, 0.0), first, size - i - 1), p))

    return run


def patterns(name):
    """Every bit pattern of a type, or numbers of all magnitudes."""
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    if dtype.itemsize < 4:
        return np.arange(256**dtype.itemsize, dtype=f"u{dtype.itemsize}").view(dtype)
    return np.concatenate([np.logspace(-45, 38, 999), [0, np.inf, np.nan, -1]]).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", READERS)
def test_every_pattern_of_bits(name, dtype):
    codes = patterns(name)
    out = np.empty(len(codes) + 64, dtype)
    read_with(READERS[name])(codes.ctypes.data, len(codes), codes.itemsize, 0, out)
    with np.errstate(invalid="ignore"):  # NumPy warns of some kinds of NaN
        want = codes.astype(dtype)
    np.testing.assert_array_equal(out[: len(codes)], want)
    np.testing.assert_array_equal(np.signbit(out[: len(codes)]), np.signbit(want))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", READERS)
def test_a_ragged_end_is_zeros_and_nothing_behind_it_is_read(name, dtype):
    run = read_with(READERS[name])
    for size in range(1, 20):
        codes = fenced(np.arange(1, size + 1).astype(getattr(ml_dtypes, name, name)))
        out = np.full(64, 7, dtype)
        run(codes.ctypes.data, size, codes.itemsize, 0, out)
        np.testing.assert_array_equal(out[:size], codes.astype(dtype))
        assert set(out[size:]) <= {0, 7}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "count", "depth"), [(1, 1, 16), (1, 13, 32), (4, 7, 48), (8, 16, 16), (4, 0, 16), (1, 9, 0)])
def test_rows_times_rows(rows, count, depth, dtype):
    @numba.njit
    def run(a, b, out, rows, count, depth):
        p = pointer_to(b.ctypes.data, b)
        dots(rows, pointer_to(a.ctypes.data, a), depth, p, depth, p, count, depth, pointer_to(out.ctypes.data, out), 32)

    random = np.random.default_rng(0)
    a, b = (random.integers(-8, 8, (n, depth)).astype(dtype) for n in (rows, count))  # small integers: every sum is exact
    out = np.full((rows, 32), -1, dtype)
    run(a.ravel(), fenced(b).ravel(), out.ravel(), rows, count, depth)
    np.testing.assert_array_equal(out[:, :count], a @ b.T)
    assert (out[:, -(-count // 8) * 8 :] == -1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize(("first", "last", "width"), [(0, 9, 16), (3, 8, 144), (4, 4, 128), (0, 1, 80)])
def test_weighted_rows(rows, first, last, width, dtype):
    @numba.njit
    def run(weights, b, out, rows, first, last, width):
        w, p, q = pointer_to(weights.ctypes.data, weights), pointer_to(b.ctypes.data, b), pointer_to(out.ctypes.data, out)
        if rows == 1:
            add_to_one_row(w, 9, p, width, p, first, last, q, width, width)
        else:
            add_to_four_rows(w, 9, p, width, p, first, last, q, width, width)

    random = np.random.default_rng(0)
    weights, b, out = (random.integers(-8, 8, shape).astype(dtype) for shape in ((rows, 9), (9, width), (rows, width)))
    want = out + weights[:, first:last] @ b[first:last]
    b[last:] = np.nan  # is not looked at
    run(weights.ravel(), b.ravel(), out.ravel(), rows, first, last, width)
    np.testing.assert_array_equal(out, want)
