"""Kernels of one tap: hard sizes, layouts, groups, strides and activations, against the reference in float64."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("numba")

import numba

import refattn
import refattn_numba
from refattn_numba.cpu.conv.pointwise_call import PART, STREAM_BYTES

CHANNELS = (1, 2, 3, 5, 7, 16, 17, 24, 33, 64, 65, 130, 270)
LARGEST = {1: 300, 2: 20, 3: 7}  # positions along an axis, by the number of axes


def in_memory(x, channels_last):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1) if channels_last else x


def arrays(random, batch, groups, c, o, size, dtype, *, channels_last=False, bias=False):
    x = random.normal(size=(batch, groups * c, *size)).astype(dtype)
    weight = (random.normal(size=(groups * o, c, *(1,) * len(size))) / np.sqrt(c)).astype(dtype)
    given = {"x": in_memory(x, channels_last), "weight": weight, "groups": groups}
    return {**given, "bias": random.normal(size=groups * o).astype(dtype)} if bias else given


def draw(random):
    """Arguments of a convolution, and an activation."""
    axes = int(random.integers(1, 4))
    size = tuple(int(n) for n in random.integers(1, LARGEST[axes], axes))
    options = {"stride": tuple(int(n) for n in random.integers(1, 4, axes))} if random.random() < 0.3 else {}
    given = arrays(
        random, int(random.choice([0, 1, 2, 3, 5])), int(random.choice([1, 1, 1, 2, 3])), *map(int, random.choice(CHANNELS, 2)), size,
        random.choice([np.float32, np.float64]), channels_last=random.random() < 0.5, bias=random.random() < 0.5,
    )  # fmt: skip
    return {**given, **options}, random.choice(np.array([None, None, "relu", "silu", "gelu"], object))


def called(module, given, dy=None, **how):
    """The output, and all gradients; the cotangent is drawn where none is given."""
    y, pullback = getattr(module, f"conv{given['x'].ndim - 2}d").vjp(**given, **how)
    dy = np.random.default_rng(1).normal(size=y.shape).astype(y.dtype) if dy is None else dy
    return y, {n: g for n, g in pullback(dy).items() if n in given}, dy


def twin(given, dy=None, **how):
    return called(refattn_numba, given, dy, algorithm="pointwise", **how)


def doubled(given):
    return {n: x.astype(float) if isinstance(x, np.ndarray) else x for n, x in given.items()}


def bounds(given, dy):
    """How far the output and the gradients of an exact sum in parts may be off, by name: a term is rounded that many times at most."""
    sizes = {n: np.abs(x) if isinstance(x, np.ndarray) else x for n, x in doubled(given).items()}
    y, grads, _ = called(refattn, sizes, np.abs(dy.astype(float)))
    depth = {"y": given["weight"].shape[1], "x": len(given["weight"]), "weight": dy[:, 0].size, "bias": dy[:, 0].size}
    eps = np.finfo(dy.dtype).eps
    return {n: eps * (min(depth[n], PART) + depth[n] / PART + 4) * x for n, x in {"y": y, **grads}.items()}


def refuse_error(given):
    y, grads, dy = twin(given)
    want, wanted, _ = called(refattn, doubled(given), dy.astype(float))
    most = bounds(given, dy)
    for name, got, exact in [("y", y, want), *((n, g, wanted[n]) for n, g in grads.items())]:
        assert got.dtype == y.dtype
        assert got.shape == exact.shape
        assert np.all(np.abs(got - exact) <= most[name]), name


@pytest.mark.parametrize("seed", range(60))
def test_random_problems(seed):
    refuse_error(draw(np.random.default_rng(seed))[0])


@pytest.mark.parametrize("seed", range(60, 80))
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_activations_are_those_of_the_output_and_gradients_go_through_them(seed, activation):
    given, _ = draw(np.random.default_rng(seed))
    y, grads, dy = twin(given, activation=activation)
    before, _, _ = twin(given, dy)
    want, pullback = getattr(refattn, activation).vjp(before.astype(np.longdouble))  # whose own tails are as much better
    eps = np.finfo(y.dtype).eps
    np.testing.assert_allclose(y, want, rtol=12 * eps, atol=0)
    _, expected, _ = twin(given, pullback(dy.astype(np.longdouble))["x"].astype(y.dtype))
    most = bounds(given, 1.2 * dy)  # slopes are below that
    for name, gradient in grads.items():
        assert np.all(np.abs(gradient - expected[name]) <= 2 * most[name]), name


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("batch", "groups", "c", "o", "size"),
    [(1, 1, 1, 1, (1, 1)), (8, 1, 130, 70, (7, 7)), (3, 1, 40, 20, (14, 14)), (2, 1, 64, 256, (56, 56)), (25, 2, 3, 24, (32, 32)), (1, 70, 1, 1, (9,))],
    ids=["one number", "49 positions", "196 positions", "large", "large groups", "a channel each"],
)  # fmt: skip
@pytest.mark.parametrize("bias", [False, True])
def test_hard_sizes(batch, groups, c, o, size, channels_last, bias):
    refuse_error(arrays(np.random.default_rng(0), batch, groups, c, o, size, np.float32, channels_last=channels_last, bias=bias))


def test_results_are_the_same_past_the_caches_and_on_fewer_threads():
    given = arrays(np.random.default_rng(0), 3, 1, 20, 130 + 62, (64, 48), np.float32)
    whole, grads, _ = twin(given)
    assert whole.nbytes > STREAM_BYTES
    first, _, _ = twin({**given, "x": given["x"][:1]})
    assert first.nbytes < STREAM_BYTES
    np.testing.assert_array_equal(first, whole[:1])
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        y, fewer, _ = twin(given)
    finally:
        numba.set_num_threads(threads)
    np.testing.assert_array_equal(y, whole)
    for name, gradient in fewer.items():
        np.testing.assert_array_equal(gradient, grads[name])


@pytest.mark.parametrize("channels_last", [False, True])
def test_errors_are_those_of_sums_in_parts(channels_last):
    given = arrays(np.random.default_rng(0), 1, 1, 2048, 64, (128,), np.float32, channels_last=channels_last)
    y, _, _ = twin(given)
    error = y - refattn.conv1d(**doubled(given))
    # a sum of n such numbers has a relative error of eps / 5 * sqrt(n), by the variance of a random walk: in parts 2.4 eps, in one 9 eps
    assert np.sqrt(np.mean(error**2)) < 3.6 * np.finfo(np.float32).eps


@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": ((0, 1), (0, 0))}], ids=["both sides", "one side"])
def test_padding_is_refused(options):
    given = arrays(np.random.default_rng(0), 1, 1, 2, 3, (4, 4), np.float32)
    with pytest.raises(ValueError, match="algorithm is 'pointwise', but its padding is not zero"):
        refattn_numba.conv2d(**given, algorithm="pointwise", **options)
    assert refattn_numba.conv2d(**given, **options).shape[2] > 4


def test_other_kernels_are_refused():
    with pytest.raises(ValueError, match="algorithm is 'pointwise', but the kernel has 1 x 3 x 3 taps, but must have one"):
        refattn_numba.conv2d(np.ones((1, 2, 4, 4)), np.ones((3, 2, 3, 3)), algorithm="pointwise")


def test_transposed_convolutions_with_gaps():
    random = np.random.default_rng(0)
    x, weight = random.normal(size=(2, 5, 4, 3)), random.normal(size=(5, 7, 1, 1))
    options = {"stride": (2, 3), "output_padding": (1, 2)}
    y, pullback = refattn_numba.conv_transpose2d.vjp(x, weight, algorithm="pointwise", **options)
    want, wanted = refattn.conv_transpose2d.vjp(x, weight, **options)
    np.testing.assert_allclose(y, want, atol=1e-13)
    dy = random.normal(size=y.shape)
    for name, gradient in pullback(dy).items():
        if gradient is not None:
            np.testing.assert_allclose(gradient, wanted(dy)[name], atol=1e-13)


@pytest.mark.skipif(sys.platform != "linux", reason="fences memory by mprotect")
def test_nothing_outside_is_read_or_written():
    done = subprocess.run(
        [sys.executable, "-m", "tests.twins.conv_fences", "pointwise", "0", "30"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-2000:]
    assert done.stdout.split() == [str(n) for n in range(30)]
