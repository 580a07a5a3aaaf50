"""Depthwise and causal convolutions, and those by Fourier transforms, against the reference in float64."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
import refattn_numba
from refattn.convolution import rule
from refattn_numba.cpu.conv import causal, depthwise, fft
from refattn_numba.cpu.conv.problem import Epilogue, Problem
from refattn_numba.cpu.conv.windows import ROWS

FACES = ("correlate", "spread", "weight_gradient")
LANES = {name: depthwise.lanes_of(Problem(np.dtype(name), False, *[1] * 4, *[(1, 1, 1)] * 6)) for name in ("float32", "float64")}


def problem_of(dtype, channels_last, batch, groups, c, o, size, kernel, *, stride=1, dilation=1, before=0, after=0):
    """A problem whose axes are given from the last one on."""

    def three(given, missing):
        given = given if isinstance(given, tuple) else (given,) * len(size)
        return (missing,) * (3 - len(given)) + given

    numbers = [three(*x) for x in ((size, 1), (kernel, 1), (stride, 1), (dilation, 1), (before, 0), (after, 0))]
    out = tuple((n + a + b - d * (k - 1) - 1) // s + 1 for n, k, s, d, a, b in zip(*numbers, strict=True))
    size, kernel, stride, dilation, before, _ = numbers
    return Problem(np.dtype(dtype), channels_last, batch, groups, c, o, size, kernel, out, stride, dilation, before)


def operands(problem, random):
    """x, weight and dy in the layout that the problem states."""

    def drawn(*shape):
        x = random.standard_normal(shape).astype(problem.dtype)
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1) if problem.channels_last else x

    x, dy = (drawn(problem.batch, problem.groups * n, *s) for n, s in ((problem.c, problem.size), (problem.o, problem.out)))
    return x, random.standard_normal((problem.groups * problem.o, problem.c, *problem.kernel)).astype(problem.dtype), dy


def face_of(algorithm, problem, face, x, weight, dy):
    """One of the three."""
    if face == "weight_gradient":
        return algorithm.weight_gradient(problem, x, dy)
    return getattr(algorithm, face)(problem, x if face == "correlate" else dy, algorithm.pack(problem, face, weight), Epilogue()).output


def exact(problem, face, x, weight, dy):
    """The same by the reference, in the precision of what is given."""
    wide = [
        (o - 1) * s + d * (k - 1) + 1
        for o, s, d, k in zip(*(getattr(problem, n) for n in ("out", "stride", "dilation", "kernel")), strict=True)
    ]
    pairs = [(b, max(0, w - b - n)) for b, w, n in zip(problem.before, wide, problem.size, strict=True)]
    padded = rule.in_groups(np.pad(x, ((0, 0), (0, 0), *pairs)), problem.groups, axis=1)
    kernels, dy = rule.in_groups(weight, problem.groups, axis=0), rule.in_groups(dy, problem.groups, axis=1)
    if face == "correlate":
        return rule.joined(rule.correlate(padded, kernels, problem.out, problem.stride, problem.dilation), axis=1)
    if face == "weight_gradient":
        return rule.joined(rule.weight_gradient(padded, dy, problem.kernel, problem.stride, problem.dilation), axis=0)
    inner = tuple(slice(b, b + n) for b, n in zip(problem.before, problem.size, strict=True))
    return rule.joined(rule.spread(dy, kernels, padded.shape[3:], problem.stride, problem.dilation), axis=1)[(..., *inner)]


def compare(problem, random):
    """Each face against sums in float64: every product and every sum is rounded once, at most as many times as there are terms."""
    arrays = operands(problem, random)
    wide = [a.astype(np.longdouble if problem.dtype == np.float64 else np.float64) for a in arrays]
    for face in FACES:
        got, want = face_of(depthwise.DEPTHWISE, problem, face, *arrays), exact(problem, face, *wide)
        sizes = exact(problem, face, *map(np.abs, wide))
        terms = np.prod(problem.kernel) * problem.o + 2 if face != "weight_gradient" else problem.batch * np.prod(problem.out) + 2
        assert got.shape == want.shape
        assert got.dtype == problem.dtype
        assert (np.abs(got - want) <= terms * np.finfo(problem.dtype).eps / 2 * sizes).all(), (problem, face)


def hard(dtype):
    """Sizes next to those of registers and blocks, in both layouts."""
    lanes = LANES[dtype]
    for channels_last in (False, True):
        for width in (1, lanes // 2, lanes - 1, lanes, lanes + 1, 4 * lanes, 5 * lanes - 1):
            for height in (1, ROWS - 1, ROWS, ROWS + 1):
                yield problem_of(dtype, channels_last, 2, lanes + 3, 1, 1, (height, width), (3, 3), before=1, after=1)
        yield problem_of(dtype, channels_last, 1, lanes, 1, 1, (1, 1), (3, 3), before=1, after=1)
        yield problem_of(dtype, channels_last, 2, lanes + 1, 1, 1, (2, 3), (2, 2), before=5, after=4)
        yield problem_of(dtype, channels_last, 2, lanes + 1, 1, 1, (9, 9), (2, 2), stride=(4, 3))
        yield problem_of(dtype, channels_last, 2, lanes + 1, 1, 3, (9, 9), (3, 3), stride=2, dilation=(1, 3), before=3)
        yield problem_of(dtype, channels_last, 0, lanes, 1, 1, (9, 9), (3, 3))
        yield problem_of(dtype, channels_last, 40, 2 * lanes + 1, 1, 1, (7, 7), (7, 7), before=3, after=3)
        yield problem_of(dtype, channels_last, 1, 5 * lanes, 1, 1, (3 * ROWS + 1, 30), (7, 7), before=3, after=3)
        yield problem_of(dtype, channels_last, 2, lanes + 1, 1, 1, (3, 5, 20), (2, 3, 3), stride=(2, 1, 2), before=(1, 0, 1))
        yield problem_of(dtype, channels_last, 3, lanes, 1, 1, (300,), (31,), before=30)
        yield problem_of(dtype, channels_last, 2, lanes + 1, 1, 1, (40,), (3,), stride=2, dilation=5, before=4, after=1)
        yield problem_of(dtype, channels_last, 2, lanes + 1, 1, 1, (2 * ROWS + 3, 9), (3, 3), before=1, after=1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_hard_sizes(dtype):
    random = np.random.default_rng(0)
    for problem in hard(dtype):
        compare(problem, random)


def drawn(random):
    """A random problem."""
    dims = int(random.integers(1, 4))
    draw = lambda low, high: tuple(int(n) for n in random.integers(low, high, dims))  # noqa: E731
    kernel, dilation, size = draw(1, 6), draw(1, 4), draw(1, (60, 40, 12)[dims - 1])
    needed = tuple(max(0, d * (k - 1) + 1 - n) for k, d, n in zip(kernel, dilation, size, strict=True))
    options = {"stride": draw(1, 4), "dilation": dilation, "before": tuple(a + b for a, b in zip(needed, draw(0, 4), strict=True))}
    dtype, last = ("float32", "float64")[random.integers(2)], bool(random.integers(2))
    groups, o = int(random.choice([1, 3, 8, 17, 33])), int(random.choice([1, 1, 2, 3]))
    return problem_of(dtype, last, int(random.integers(1, 4)), groups, 1, o, size, kernel, after=draw(0, 4), **options)


@pytest.mark.parametrize("seed", range(60))
def test_random_sizes(seed):
    random = np.random.default_rng(seed)
    compare(drawn(random), random)


def test_results_do_not_depend_on_the_number_of_threads():
    import numba

    random, threads = np.random.default_rng(0), numba.get_num_threads()
    for channels_last in (False, True):
        problem = problem_of("float32", channels_last, 5, 40, 1, 1, (30, 30), (3, 3), before=1, after=1)
        arrays = operands(problem, random)
        for face in FACES:
            made = []
            for count in (1, threads):
                numba.set_num_threads(count)
                made.append(face_of(depthwise.DEPTHWISE, problem, face, *arrays))
            numba.set_num_threads(threads)
            np.testing.assert_array_equal(*made)


def test_infinite_inputs_reach_only_what_sees_them():
    problem = problem_of("float32", False, 1, 1, 1, 1, (9, 21), (3, 3))
    x, _, dy = operands(problem, np.random.default_rng(0))
    x[..., -1, -1] = np.inf
    assert np.isfinite(depthwise.weight_gradient(problem, x, dy).reshape(-1)[:-1]).all()


def test_groups_of_several_channels_are_refused():
    with pytest.raises(ValueError, match="algorithm is 'depthwise', but it takes groups of 1 channel, not of 2"):
        refattn_numba.conv2d(np.ones((1, 2, 5, 5)), np.ones((1, 2, 3, 3)), algorithm="depthwise")


@pytest.mark.parametrize("seed", range(20))
def test_transforms_stay_within_their_bound(seed):
    random = np.random.default_rng(seed)
    dims = int(random.integers(1, 4))
    draw = lambda low, high: tuple(int(n) for n in random.integers(low, high, dims))  # noqa: E731
    size, kernel = draw(5, (60, 30, 9)[dims - 1]), draw(1, 6)
    channels = (int(n) for n in random.integers(1, 4, 4))
    problem = problem_of(("float32", "float64")[seed % 2], bool(seed % 3), *channels, size, kernel, before=draw(0, 4), after=draw(0, 4))
    x, weight, dy = operands(problem, random)
    wide = np.longdouble if problem.dtype == np.float64 else np.float64
    pairs = {"correlate": (x, weight), "spread": (dy, weight), "weight_gradient": (x, dy)}
    for face in FACES:
        got = face_of(fft.FFT, problem, face, x, weight, dy)
        want = exact(problem, face, *(a.astype(wide) for a in (x, weight, dy)))
        bound = fft.error_bound(problem, *map(np.linalg.norm, pairs[face]))
        assert got.dtype == problem.dtype
        assert np.abs(got - want).max() <= bound
        assert bound < 1e4 * np.finfo(problem.dtype).eps * np.prod([np.linalg.norm(a) for a in pairs[face]])


def test_smooth_sizes():
    assert [fft.smooth(n) for n in (1, 2, 7, 11, 31, 97, 121, 1000, 1025)] == [1, 2, 8, 12, 32, 100, 125, 1000, 1080]


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2}])
def test_transforms_refuse_what_they_would_compute_in_vain(options):
    with pytest.raises(ValueError, match="algorithm is 'fft', but it takes"):
        refattn_numba.conv2d(np.ones((1, 1, 9, 9)), np.ones((1, 1, 3, 3)), algorithm="fft", **options)


def causal_call(random):
    """Random arguments, and whether the channels of x lie next to one another."""
    dtype, (batch, channels) = ("float32", "float64")[random.integers(2)], (int(random.integers(1, 4)), int(random.choice([1, 3, 17, 40])))
    taps, length = int(random.choice([1, 2, 4, 7, 18, 40])), int(random.choice([1, 2, 3, 15, 16, 17, 40, 100, 200, 400]))
    given = {"x": random.standard_normal((batch, channels, length)), "weight": random.standard_normal((channels, taps))}
    given |= {"bias": random.standard_normal(channels)} if random.random() < 0.6 else {}
    given |= {"state": random.standard_normal((batch, channels, taps - 1))} if random.random() < 0.6 else {}
    given = {name: a.astype(dtype) for name, a in given.items()}
    last = random.random() < 0.5
    if last:
        given["x"] = np.ascontiguousarray(given["x"].transpose(0, 2, 1)).transpose(0, 2, 1)
    return given, last


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_causal(seed, streams, monkeypatch):
    monkeypatch.setattr(causal, "CACHES", 1 if streams else 1 << 60)
    random = np.random.default_rng(seed)
    given, _ = causal_call(random)
    (batch, _, length), taps, dtype = given["x"].shape, given["weight"].shape[1], given["x"].dtype
    y, pullback = refattn_numba.causal_conv1d.vjp(**given)
    exactly = {name: a.astype(np.longdouble) for name, a in given.items()}
    want, want_pullback = refattn.causal_conv1d.vjp(**exactly)
    sizes, size_pullback = refattn.causal_conv1d.vjp(**{name: np.abs(a) for name, a in exactly.items()})
    ds = [random.standard_normal(a.shape).astype(dtype) for a in want]
    grads, want_grads, grad_sizes = pullback(*ds), want_pullback(*ds), size_pullback(*map(np.abs, ds))
    assert grads.keys() == want_grads.keys()
    half = np.finfo(dtype).eps / 2
    for got, right, large in zip(y, want, sizes, strict=True):
        assert (np.abs(got - right) <= (taps + 2) * half * large).all()
    for name, right in want_grads.items():
        terms = batch * length + 2 if name in {"weight", "bias"} else taps + 2
        assert (np.abs(grads[name] - right) <= terms * half * grad_sizes[name]).all(), name
