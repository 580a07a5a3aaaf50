"""Vectors in compiled code, each piece against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

import numba

from refattn_numba.cpu import couples, exponential
from refattn_numba.cpu.call import aligned
from refattn_numba.cpu.products import SPARE, add_product, decay_and_add_product, product
from refattn_numba.cpu.simd import between, lanes_of, largest_of, load, pointer_to, select, store, total_of, transpose
from refattn_numba.cpu.tiles import all_finite

DTYPES = ["float32", "float64"]


@numba.njit
def lanes(x):
    return lanes_of(pointer_to(x.ctypes.data, x))


def elementwise(function):
    """A vector function over an array whose size is a multiple of the lanes."""

    @numba.njit
    def run(x, y):
        p, q = pointer_to(x.ctypes.data, x), pointer_to(y.ctypes.data, y)
        for i in range(0, x.size, lanes_of(p)):
            store(q, i, function(load(p, i)))

    def call(x):
        padded = np.resize(x, -(-x.size // 64) * 64)
        y = np.empty_like(padded)
        run(padded, y)
        return y[: x.size]

    return call


EXP, ROUGH, TANH = (elementwise(f) for f in (exponential.exp, exponential.rough_exp, exponential.tanh))


def units(got, exact, dtype):
    """The largest error in units in the last place."""
    return np.max(np.abs(got - exact) / np.spacing(np.abs(exact).astype(dtype)).astype(exact.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_exponential(dtype):
    """Exact to two units, and to what n ln(2) is wrong by as the constant is rounded: nothing where weights are not tiny."""
    lowest, ln2 = np.log(np.finfo(dtype).tiny), np.log(np.longdouble(2))
    x = np.concatenate([np.linspace(lowest * 0.9999, 0, 100_001), -np.logspace(-12, 0, 1001), [0.0]]).astype(dtype)
    exact = np.exp(x.astype(np.longdouble))
    constant = abs(ln2 - np.dtype(dtype).type(exponential.LN2)) / ln2
    assert (np.abs(EXP(x) - exact) <= (2 * np.finfo(dtype).eps + constant * -x) * exact).all()
    assert units(EXP(x[x > -8]), exact[x > -8], dtype) < 3
    assert EXP(np.array([0.0], dtype))[0] == 1
    np.testing.assert_array_equal(EXP(np.array([-np.inf, lowest * 1.001, -1e30, np.nan], dtype)), [0, 0, 0, np.nan])


def test_the_rough_exponential():
    """To 3e-5, which is the half of what the square of a 128th of ln(2) leaves out; of numbers somewhat above 0 too."""
    x = np.concatenate([np.linspace(-80, couples.GROWTH, 100_001), [0.0]]).astype(np.float32)
    exact = np.exp(x.astype(np.longdouble))
    assert 0 < np.max(np.abs(ROUGH(x) / exact - 1)) < 3.1e-5
    np.testing.assert_array_equal(ROUGH(np.array([-np.inf, -88, -1e30, np.nan], np.float32)), [0, 0, 0, np.nan])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_hyperbolic_tangent_is_exact_to_three_units(dtype):
    x = np.concatenate([np.linspace(-20, 20, 100_001), np.logspace(-12, 2, 1001)]).astype(dtype)
    x = x[x != 0]
    assert units(TANH(x), np.tanh(x.astype(np.longdouble)), dtype) < 3
    np.testing.assert_array_equal(TANH(np.array([-np.inf, np.inf, -0.0, np.nan], dtype)), [-1, 1, 0, np.nan])


@pytest.mark.parametrize("dtype", DTYPES)
def test_lanes_are_counted_chosen_and_summed(dtype):
    @numba.njit
    def run(x, first, last):
        p = pointer_to(x.ctypes.data, x)
        v = load(p, 0)
        kept = select(between(v, first, last), v, v - v)
        return total_of(v), largest_of(v), total_of(kept)

    n = lanes(np.empty(0, dtype))
    x = np.random.default_rng(0).permutation(n).astype(dtype)
    for first, last in ((0, n), (-5, 1), (2, 1), (n - 1, n - 1)):
        assert run(x, first, last) == (x.sum(), x.max(), x[max(first, 0) : last + 1].sum())


@pytest.mark.parametrize("source", ["float32", "float64", "bool"])
def test_squares_are_transposed(source):
    dtype = "float32" if source == "bool" else source

    @numba.njit
    def run(x, y, step, out_step):
        transpose(pointer_to(x.ctypes.data, x), step, pointer_to(y.ctypes.data, y), out_step)

    n = lanes(np.empty(0, dtype))
    x = (np.arange(n * (n + 3)).reshape(n, n + 3) % 7 % 2).astype(source)
    y = np.full((n, n + 5), -1, dtype)
    run(x.view(np.uint8).ravel() if source == "bool" else x.ravel(), y.ravel(), n + 3, n + 5)
    np.testing.assert_array_equal(y[:, :n], x[:, :n].T)
    assert (y[:, n:] == -1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 16, 17, 40, 64])
@pytest.mark.parametrize(("lines", "depth"), [(1, 1), (5, 3), (16, 7), (13, 0)])
def test_products_of_any_size(dtype, width, lines, depth):
    @numba.njit
    def run(a, b, c, decay, which, a_step, b_line, b_step, lines, depth, c_step, width):
        a, b = pointer_to(a.ctypes.data, a), pointer_to(b.ctypes.data, b)
        c, decay = pointer_to(c.ctypes.data, c), pointer_to(decay.ctypes.data, decay)
        if which == 0:
            product(a, a_step, b, b_line, b_step, lines, depth, c, c_step, width, decay)
        elif which == 1:
            add_product(a, a_step, b, b_line, b_step, lines, depth, c, c_step, width, decay)
        else:
            decay_and_add_product(a, a_step, b, b_line, b_step, lines, depth, c, c_step, width, decay)

    random = np.random.default_rng(width)
    a, decay = aligned(depth * 64 + 64, dtype), aligned(64, dtype)
    a[:], decay[:] = random.integers(-8, 8, a.size), random.integers(-2, 3, 64)
    rows = random.integers(-8, 8, (lines, depth)).astype(dtype)  # small integers: every sum is exact
    for given, steps in ((rows, (depth, 1)), (np.asfortranarray(rows), (1, lines))):
        for which in range(3):
            c = aligned(-(-lines // SPARE) * SPARE * 64, dtype)
            c[:] = before = random.integers(-8, 8, c.size).astype(dtype)
            run(a, given.ravel(order="K"), c, decay, which, 64, *steps, lines, depth, 64, width)
            made = rows @ a[: depth * 64].reshape(depth, 64)
            old = before.reshape(-1, 64)[:lines] * (0 if which == 0 else 1 if which == 1 else decay)
            np.testing.assert_array_equal(c.reshape(-1, 64)[:lines, :width], (made + old)[:, :width])


def test_what_is_not_finite_is_found_anywhere():
    @numba.njit
    def run(x, step, rows, size):
        return all_finite(pointer_to(x.ctypes.data, x), step, rows, size)

    for size in (1, 16, 19, 40):
        x = np.ones((3, size + 2), np.float32)
        x[:, size:] = np.nan  # is not looked at
        assert run(x.ravel(), size + 2, 3, size)
        for i in range(3):
            for j in range(size):
                for bad in (np.nan, np.inf, -np.inf):
                    y = x.copy()
                    y[i, j] = bad
                    assert not run(y.ravel(), size + 2, 3, size)
