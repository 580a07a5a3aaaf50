"""Winograd's convolutions: their matrices, every face at hard sizes, the stated bound of errors, and no byte outside arrays."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

import numba

import refattn
import refattn_numba
from refattn_numba.cpu.conv import winograd, winograd_tiles
from refattn_numba.cpu.conv.problem import Epilogue, Problem
from refattn_numba.cpu.conv.winograd_matrices import GROWTH, LONGEST, MATRICES, sizes, transposed
from refattn_numba.cpu.conv.winograd_transforms import shared

POINTS = {2: (0, 1, -1), 4: (0, 1, -1, Fraction(1, 2), -2)}


def polynomial(roots):
    """Coefficients of the product of ``z - root``, lowest power first."""
    made = [Fraction(1)]
    for root in roots:
        made = [a - root * b for a, b in zip([Fraction(0), *made], [*made, Fraction(0)], strict=True)]
    return made


@pytest.mark.parametrize("m", MATRICES)
def test_matrices_follow_from_their_points(m):
    """Evaluation at points and infinity, and Lagrange's interpolation; a row of B^T may change its sign with that of G."""
    points = [Fraction(p) for p in POINTS[m]]
    inputs, weights, outputs = MATRICES[m]
    for i, p in enumerate(points):
        others = points[:i] + points[i + 1 :]
        scale = math.prod((p - q for q in others), start=Fraction(1))
        sign = 1 if list(inputs[i]) == [*polynomial(others), 0] else -1
        assert [sign * x for x in inputs[i]] == [*polynomial(others), 0]
        assert list(weights[i]) == [sign * p**k / scale for k in range(3)]
        assert [row[i] for row in outputs] == [p**k for k in range(m)]
    assert list(inputs[-1]) == polynomial(points)
    assert list(weights[-1]) == [0, 0, 1]
    assert [row[-1] for row in outputs] == [0] * (m - 1) + [1]


@pytest.mark.parametrize("m", MATRICES)
def test_matrices_make_a_convolution_exactly(m):
    random = np.random.default_rng(m)
    x, w = ([Fraction(int(n)) for n in random.integers(-9, 10, count)] for count in (m + 2, 3))
    at = [[sum(a * b for a, b in zip(row, z, strict=True)) for row in rows] for rows, z in zip(MATRICES[m], (x, w), strict=False)]
    y = [sum(a * u * v for a, u, v in zip(row, *at, strict=True)) for row in MATRICES[m].outputs]
    assert y == [sum(w[t] * x[p + t] for t in range(3)) for p in range(m)]


@pytest.mark.parametrize("rows", [r for m in MATRICES.values() for rows in m for r in (rows, transposed(rows))])
def test_shared_sums_are_the_matrix_and_no_longer(rows):
    pairs, sums = shared(rows)
    operands = [[Fraction(int(i == j)) for j in range(len(rows[0]))] for i in range(len(rows[0]))]
    for i, j, ratio in pairs:
        operands.append([a + ratio * b for a, b in zip(operands[i], operands[j], strict=True)])
    for row, terms in zip(rows, sums, strict=True):
        assert list(row) == [sum(f * operands[k][n] for k, f in terms.items()) for n in range(len(row))]
    plain = sum(sum(map(bool, row)) - 1 for row in rows)
    assert len(pairs) + sum(len(terms) - 1 for terms in sums) <= plain


HARD = {
    "one pixel": ("conv2d", (1, 1, 1, 1), (1, 1, 3, 3), {"padding": 1}),
    "padding beyond the image": ("conv2d", (2, 3, 1, 2), (4, 3, 3, 3), {"padding": ((3, 4), (0, 5))}),
    "one row of taps": ("conv2d", (2, 5, 9, 9), (6, 5, 1, 3), {"padding": ((2, 0), (0, 1))}),
    "one column of taps": ("conv2d", (2, 5, 9, 9), (6, 5, 3, 1), {"padding": ((2, 0), (0, 1))}),
    "three groups": ("conv2d", (3, 15, 9, 13), (21, 5, 3, 3), {"padding": 1, "groups": 3}),
    "panels and registers that are not full": ("conv2d", (2, 70, 15, 6), (75, 70, 3, 3), {"padding": ((0, 2), (3, 1))}),
    "few tiles, several panels": ("conv2d", (1, 150, 4, 5), (200, 150, 3, 3), {"padding": 1}),
    "many tiles": ("conv2d", (2, 9, 61, 67), (17, 9, 3, 3), {}),
    "several slabs of a row": ("conv2d", (1, 3, 5, 300), (8, 3, 3, 3), {"padding": 1}),
    "a long sequence": ("conv1d", (2, 33, 500), (40, 33, 3), {"padding": 2}),
    "three dimensions": ("conv3d", (2, 5, 5, 6, 7), (9, 5, 3, 3, 3), {"padding": 1}),
    "flat taps in three dimensions": ("conv3d", (1, 5, 4, 9, 6), (18, 5, 1, 3, 3), {"padding": (0, 1, 1)}),
    "deep taps in three dimensions": ("conv3d", (1, 5, 9, 4, 6), (18, 5, 3, 1, 1), {"padding": (1, 0, 0)}),
    "no example": ("conv2d", (0, 4, 6, 6), (4, 4, 3, 3), {"padding": 1}),
    "transposed": ("conv_transpose2d", (2, 20, 9, 8), (20, 6, 3, 3), {"padding": 1}),
}


def draw(random):
    """One call: a function's name and its arguments."""
    axes, groups = int(random.integers(1, 4)), int(random.choice([1, 1, 2, 3]))
    kernel = [int(k) for k in random.choice([1, 3, 3], axes)]
    kernel[random.integers(0, axes)] = 3
    c, o = (int(random.choice([1, 2, 3, 8, 16, 17, 40, 65, 100])) for _ in range(2))
    padding = tuple((int(random.integers(0, 4)), int(random.integers(0, 4))) if k == 3 else (0, 0) for k in kernel)
    low = [max(1, k - sum(p)) for k, p in zip(kernel, padding, strict=True)]
    size = [int(random.integers(n, n + {1: 200, 2: 24, 3: 8}[axes])) for n in low]
    return f"conv{axes}d", (int(random.integers(1, 4)), c * groups, *size), (o * groups, c, *kernel), {"padding": padding, "groups": groups}


def agree(call, dtype, tolerance, *, channels_last, seed=0):
    """Output and gradients, against the reference in float64, relative to the largest element of each."""
    (name, shape, kernel, options), random = call, np.random.default_rng(seed)
    given = {n: random.standard_normal(s).astype(dtype) for n, s in (("x", shape), ("weight", kernel))}
    outputs = kernel[0] if "transpose" not in name else kernel[1] * options.get("groups", 1)
    given["bias"] = random.standard_normal(outputs).astype(dtype)
    if channels_last:
        given["x"] = np.moveaxis(np.ascontiguousarray(np.moveaxis(given["x"], 1, -1)), -1, 1)
    y, pullback = getattr(refattn_numba, name).vjp(**given, **options, algorithm="winograd")
    want, want_pullback = getattr(refattn, name).vjp(**{n: x.astype(float) for n, x in given.items()}, **options)
    d = random.standard_normal(want.shape).astype(dtype)
    grads, want_grads = pullback(d), want_pullback(d.astype(float))
    for got, exact in ((y, want), *((grads[n], want_grads[n]) for n in given)):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, exact, rtol=0, atol=tolerance * np.abs(exact).max(initial=1))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", HARD)
def test_hard_sizes(name, channels_last):
    agree(HARD[name], np.dtype(np.float64), 1e-13, channels_last=channels_last)
    agree(HARD[name], np.dtype(np.float32), 5e-5, channels_last=channels_last)


def test_more_channels_than_one_sum_has():
    """Blocks of tiles in both: of more than `kernels.DEPTH` channels, and several for one slice of the weight's gradient."""
    agree(("conv2d", (2, 150, 40, 41), (9, 150, 3, 3), {"padding": 1}), np.dtype(np.float32), 5e-5, channels_last=False)


@pytest.mark.parametrize("seed", range(30))
def test_random_sizes(seed):
    random = np.random.default_rng(seed)
    agree(draw(random), np.dtype(np.float64), 1e-13, channels_last=bool(seed % 2), seed=seed)


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_epilogue(activation, channels_last):
    random = np.random.default_rng(1)
    x, w, b = (random.standard_normal(s) for s in ((2, 20, 9, 7), (70, 20, 3, 3), 70))
    x[0, 0, 0, 0] = np.nan
    if channels_last:
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    got = refattn_numba.conv2d(x, w, b, padding=1, algorithm="winograd", activation=activation)
    want = getattr(refattn, activation)(refattn.conv2d(x, w, b, padding=1))
    spoilt = np.isnan(got)  # all of the tile of the output that reads it, where a sum of products has the taps that do
    assert spoilt[np.isnan(want)].all()
    assert spoilt.sum() <= 4 * 4 * 70
    np.testing.assert_allclose(got[~spoilt], want[~spoilt], atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 200, 7, 7), (2, 40, 33, 30)])
def test_threads_do_not_change_a_bit(shape):
    random = np.random.default_rng(2)
    x, w = (random.standard_normal(s).astype(np.float32) for s in (shape, (130, shape[1], 3, 3)))
    results, before = [], numba.get_num_threads()
    try:
        for threads in {1, before}:
            numba.set_num_threads(threads)
            y, pullback = refattn_numba.conv2d.vjp(x, w, padding=1, algorithm="winograd")
            results.append([y, *(g for g in pullback(y).values() if g is not None)])
    finally:
        numba.set_num_threads(before)
    for first, second in zip(results[0], results[-1], strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_plan_gives_the_same():
    random = np.random.default_rng(3)
    w = random.standard_normal((20, 10, 3, 3)).astype(np.float32)
    plan = refattn_numba.conv2d.plan(w, padding=1, algorithm="winograd")
    for size in ((3, 3), (40, 41)):
        x = random.standard_normal((2, 10, *size)).astype(np.float32)
        y, pullback = plan.vjp(x)
        want, want_pullback = refattn_numba.conv2d.vjp(x, w, padding=1, algorithm="winograd")
        np.testing.assert_array_equal(y, want)
        np.testing.assert_array_equal(pullback(y)["x"], want_pullback(y)["x"])


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2}])
def test_what_it_does_not_take_is_refused(options):
    x, w = np.zeros((1, 2, 9, 9)), np.zeros((3, 2, 3, 3))
    with pytest.raises(ValueError, match="algorithm is 'winograd', but it is for kernels with 3 taps"):
        refattn_numba.conv2d(x, w, **options, algorithm="winograd")
    with pytest.raises(ValueError, match="accuracy='strict' forbids"):
        refattn_numba.conv2d(x, w, algorithm="winograd", accuracy="strict")


def test_no_tile_has_a_larger_bound_than_two_axes_of_four():
    for kernel in ((1, 1, 3), (1, 3, 3), (3, 3, 3)):
        made = winograd_tiles.allowed(kernel, winograd_tiles.LARGEST_GROWTH)
        assert max(math.prod(GROWTH[i] for i in m) for m in made) <= GROWTH[4] ** 2
    assert winograd_tiles.allowed((1, 3, 3), winograd_tiles.LARGEST_GROWTH_OF_FEW) == [(1, 2, 2)]
    assert winograd_tiles.allowed((3, 3, 3), winograd_tiles.LARGEST_GROWTH_OF_FEW) == [(2, 2, 2)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_passes_the_check(dtype):
    def forced(x, weight, bias=None, **options):
        problem_takes = weight.shape[-1] == 3 and weight.shape[-2] in {1, 3} and options.get("stride", 1) in {1, (1, 1)}
        takes = problem_takes and options.get("dilation", 1) in {1, (1, 1)}
        return refattn_numba.conv2d(x, weight, bias, **options, algorithm="winograd" if takes else "auto")

    refattn.testing.check(forced, refattn.conv2d, dtype=dtype).raise_if_wrong()


def along(rows, x, axes):
    """A matrix times each of the axes of x."""
    for axis in axes:
        x = np.moveaxis(np.tensordot(rows, x, (1, axis)), 0, axis)
    return x


def windows(x, m, step):
    """Windows (..., across, down, m, m) of the last two axes."""
    return np.lib.stride_tricks.sliding_window_view(x, (m, m), (-2, -1))[..., ::step, ::step, :, :]


def roundings(m, terms):
    """Those of B^T, A^T or G^T along two axes, of a weight's transform and of a product, and of sums of at most 128 products and their sums."""
    return 2 * 2 * 2 * LONGEST[m] + 2 + min(terms, 128) + terms // 32


@pytest.mark.parametrize("tail", [1.5, 3, 30])
@pytest.mark.parametrize("m", MATRICES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_errors_stay_within_the_bound(m, tail, dtype, monkeypatch):
    """Numbers of Student's distribution: the smaller `tail`, the heavier its tails. The reference is in longdouble for float64."""
    random, tiles, c, o = np.random.default_rng(4), 12 // m, 40, 20
    size = tiles * m
    x, w, d = (random.standard_t(tail, s).astype(dtype) for s in ((2, c, size + 2, size + 2), (o, c, 3, 3), (2, o, size, size)))
    monkeypatch.setattr(winograd, "best", lambda problem, face: (1, m, m))
    problem = Problem(
        np.dtype(dtype), False, 2, 1, c, o, (1, size + 2, size + 2), (1, 3, 3), (1, size, size), (1, 1, 1), (1, 1, 1), (0, 0, 0)
    )
    five = [a[:, :, None] for a in (x, w, d)]
    y = winograd.correlate(problem, five[0], winograd.pack(problem, "correlate", np.ascontiguousarray(five[1])), Epilogue()).output[:, :, 0]
    dw = winograd.weight_gradient(problem, five[0], five[2])[:, :, 0]
    want, pullback = refattn.conv2d.vjp(x.astype(np.longdouble), w.astype(np.longdouble))
    want_dw = pullback(d.astype(np.longdouble))["weight"]
    inputs, weights, outputs = map(sizes, MATRICES[m])
    seen = along(inputs, windows(np.abs(x.astype(float)), m + 2, m), (-2, -1))
    of_weight = along(weights, np.abs(w.astype(float)), (-2, -1))
    of_y = along(outputs, np.einsum("ncabij,ocij->noabij", seen, of_weight), (-2, -1))
    of_y = np.moveaxis(of_y, 4, 3).reshape(want.shape)
    of_dy = along(outputs.T, windows(np.abs(d.astype(float)), m, m), (-2, -1))
    of_dw = along(weights.T, np.einsum("ncabij,noabij->ocij", seen, of_dy), (-2, -1))
    u = np.finfo(dtype).eps / 2
    assert (np.abs(y - want) <= roundings(m, c) * u * of_y).all()
    assert (np.abs(dw - want_dw) <= roundings(m, 2 * tiles**2) * u * of_dw).all()
    assert np.abs(y - want).max() > 0.05 * u * of_y.min()  # it is the error of this dtype that is looked at


def test_random_calls_stay_inside_arrays():
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is protected by Linux's mprotect")
    done = subprocess.run(
        [sys.executable, "-m", "tests.twins.test_conv_winograd", "25"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"the call before which it ended: {done.stdout.split()[-1:]}\n{done.stderr}"


if __name__ == "__main__":
    from refattn_numba.cpu import call, threads
    from tests.twins.guard_pages import Fenced, fenced

    threads.aligned = winograd.aligned = call.aligned = Fenced().aligned
    winograd.np = Fenced()
    calls = [*HARD.values(), *(draw(np.random.default_rng(seed)) for seed in range(int(sys.argv[1])))]
    for number, (name, shape, kernel, options) in enumerate(calls):
        for at_start in (False, True):
            x, w = (fenced(np.ones(s, np.float32), at_start=at_start) for s in (shape, kernel))
            y, pullback = getattr(refattn_numba, name).vjp(x, w, **options, algorithm="winograd")
            grads = pullback(fenced(np.ones(y.shape, np.float32), at_start=at_start))
            assert all(np.isfinite(a).all() for a in (y, grads["x"], grads["weight"]))
        print(number, flush=True)
