"""Bias and activations of vector registers, and their gradients, against longdouble."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
from refattn_numba.cpu.conv.epilogue import before_activation, bias_gradient, finish
from refattn_numba.cpu.conv.problem import Epilogue

ACTIVATIONS = ("relu", "silu", "gelu")
UNITS = {"relu": 0, "silu": 5, "gelu": 9}  # in the last place; in float64, by the exponential, more where it is smaller
TAIL_UNITS = {"relu": 0, "silu": 220, "gelu": 220}
DTYPES = (np.float32, np.float64)

has_long = pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="nothing to measure errors of float64 with")


def numbers(dtype):
    random, near = np.random.default_rng(0), np.logspace(-30, 0, 500)
    ends = [0.0, -0.0, 1e30, -1e30, np.finfo(dtype).max / 2, -np.finfo(dtype).max / 2, np.finfo(dtype).tiny]
    return np.concatenate([random.uniform(-14, 14, 20000), random.uniform(-800, 800, 5000), near, -near, ends]).astype(dtype)


def applied(x, activation, dy=None):
    x = x.reshape(1, 1, 1, 1, -1)
    done = finish(x.copy(), Epilogue(None, activation))
    return done.output.ravel(), before_activation(done, activation, np.ones_like(x) if dy is None else dy).ravel()


@has_long
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_errors_in_units_of_the_last_place(activation, dtype):
    x, kind = numbers(dtype), np.finfo(dtype)
    y, slope = applied(x, activation)
    want, pullback = getattr(refattn, activation).vjp(x.astype(np.longdouble))
    is_normal = np.abs(want) > 1e3 * float(kind.tiny)
    units = np.abs(y - want) / np.spacing(np.abs(want).astype(dtype))
    assert units[is_normal & (x > (-14 if dtype == np.float32 else -5))].max(initial=0) <= UNITS[activation]
    assert units[is_normal].max() <= TAIL_UNITS[activation]
    assert np.abs(y - want)[~is_normal].max() <= 1e3 * float(kind.tiny)
    moving = x != 0 if activation == "relu" else np.full(x.shape, True)
    assert np.abs(slope - pullback(np.ones_like(want))["x"])[moving].max() <= 2 * kind.eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_limits_and_nan(activation, dtype):
    ends = np.array([np.inf, -np.inf, np.nan, *[1] * 30], dtype)
    y, slope = applied(ends, activation)
    assert y[0] == np.inf
    assert y[1] == 0
    assert np.isnan(y[2])
    assert list(slope[:2]) == [1, 0]
    assert np.isnan(slope[2]) == (activation != "relu")
    _, passed = applied(ends, "relu", np.full(ends.shape, np.inf, dtype).reshape(1, 1, 1, 1, -1))
    assert list(passed[:3]) == [np.inf, 0, np.inf]  # as the reference: not 0 times infinity


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 1), (2, 3, 1, 4, 5), (0, 3, 1, 2, 2), (3, 37, 2, 3, 3), (2, 5, 1, 70, 71), (1, 600, 1, 9, 9)]
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_both_layouts(shape, channels_last, activation, dtype):
    random = np.random.default_rng(0)
    x, dy = random.normal(size=(2, *shape)).astype(dtype)
    if channels_last:
        x, dy = (np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) for a in (x, dy))
    bias = random.normal(size=shape[1]).astype(dtype)
    biased = x + bias[:, None, None, None]
    done = finish(x.copy(order="K"), Epilogue(bias, activation))
    if activation != "relu":  # which needs its output alone
        np.testing.assert_array_equal(done.before, biased)
    assert done.output.strides == x.strides or x.size == 0
    eps = np.finfo(dtype).eps
    for given in (dy, np.ascontiguousarray(dy), np.broadcast_to(dy[:1], dy.shape) if len(dy) else dy):
        d = before_activation(done, activation, given)
        if activation is None:
            assert d is given
            continue
        want, pullback = getattr(refattn, activation).vjp(biased.astype(float))
        np.testing.assert_allclose(done.output, want, rtol=12 * eps, atol=eps)
        np.testing.assert_allclose(d, pullback(given.astype(float))["x"], rtol=4 * eps, atol=4 * eps * np.abs(dy).max(initial=0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 3, 1, 2, 2), (1, 1, 1, 1, 1), (3, 37, 2, 3, 3), (2, 5, 1, 170, 171), (16, 600, 1, 9, 9)])
@pytest.mark.parametrize("order", ["first", "last", "neither"])
def test_bias_gradients(shape, order, dtype):
    dy = np.random.default_rng(0).normal(size=shape).astype(dtype)
    if order != "first":
        dy = np.moveaxis(np.ascontiguousarray(np.moveaxis(dy, 1, -1 if order == "last" else 2)), -1 if order == "last" else 2, 1)
    got, exact = bias_gradient(dy), dy.astype(float).sum(axis=(0, 2, 3, 4))
    assert got.dtype == dtype
    terms, most = dy.size / shape[1], np.abs(dy.astype(float)).sum(axis=(0, 2, 3, 4))
    roundings = min(terms, 128 + 16) + terms / 128 + shape[0]  # in a part, in the sum of all parts, and of examples
    assert np.all(np.abs(got - exact) <= np.finfo(dtype).eps * roundings * most)


@pytest.mark.skipif(sys.platform != "linux", reason="fences memory by mprotect")
def test_nothing_outside_is_read_or_written():
    done = subprocess.run(
        [sys.executable, "-m", "tests.twins.conv_fences", "epilogue", "0", "40"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-2000:]
