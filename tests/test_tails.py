"""Functions with tails, against mpmath where digits are lost most easily, and at infinity."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from tests.enumeration import EXTENDED

mpmath = pytest.importorskip("mpmath")

NEAR = np.concatenate([np.linspace(-8, 8, 161), [1e-300, -1e-20, 1e-5, 0.5, np.nextafter(0.5, 0), 6.28, 20.0, 40.0, 100.0]])


def exactly(x):
    """A NumPy number as an mpmath number: a longdouble is the sum of two floats."""
    high = float(x)
    return mpmath.mpf(high) + mpmath.mpf(float(x - type(x)(high)))


def errors(got, function, x):
    """Relative errors in units in the last place, where the value is not near the smallest numbers."""
    with mpmath.workdps(50):
        wanted = [function(exactly(v)) for v in x]
        eps = mpmath.mpf(float(np.finfo(got.dtype).eps))
        return np.array([float(abs((exactly(a) - b) / b) / eps) if abs(b) > 1e-290 else 0.0 for a, b in zip(got, wanted, strict=True)])


DTYPES = [np.float64, pytest.param(np.longdouble, marks=pytest.mark.skipif(not EXTENDED, reason="longdouble is float64"))]


@pytest.mark.parametrize("dtype", DTYPES)
def test_erf_to_the_last_places(dtype):
    x = NEAR.astype(dtype)
    assert errors(refattn.erf(x), mpmath.erf, x).max() < 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_erfc_and_gelu_keep_their_tails(dtype):
    """An error of half a unit in x**2 is one of x**2 units in exp(-x**2)."""
    x = NEAR.astype(dtype)
    assert (errors(refattn.erfc(x), mpmath.erfc, x) < 4 + x**2).all()
    # x / sqrt(2) is rounded before it is squared, which adds one unit of x**2 / 2 for the root and one for the product
    assert (errors(refattn.gelu(x), lambda v: v * mpmath.erfc(-v / mpmath.sqrt(2)) / 2, x) < 4 + 2 * x**2).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_logistic_functions_keep_their_tails(dtype):
    x = np.concatenate([NEAR, -NEAR]).astype(dtype)
    assert errors(refattn.sigmoid(x), lambda v: 1 / (1 + mpmath.exp(-v)), x).max() < 4
    assert errors(refattn.silu(x), lambda v: v / (1 + mpmath.exp(-v)), x).max() < 4
    assert errors(refattn.softplus(x), lambda v: mpmath.log1p(mpmath.exp(v)), x).max() < 4


def test_derivatives_keep_their_tails():
    x = np.concatenate([NEAR, -NEAR])
    ones = np.ones_like(x)
    of_tanh = refattn.tanh.vjp(x)[1](ones)["x"]
    assert errors(of_tanh, lambda v: mpmath.sech(v) ** 2, x).max() < 6
    of_sigmoid = refattn.sigmoid.vjp(x)[1](ones)["x"]
    assert errors(of_sigmoid, lambda v: 1 / (2 + mpmath.exp(v) + mpmath.exp(-v)), x).max() < 6


LIMITS = {  # at minus infinity, at infinity, and the derivatives there
    "relu": (0, np.inf, 0, 1),
    "sigmoid": (0, 1, 0, 0),
    "tanh": (-1, 1, 0, 0),
    "softplus": (0, np.inf, 0, 1),
    "silu": (0, np.inf, 0, 1),
    "gelu": (0, np.inf, 0, 1),
    "erf": (-1, 1, 0, 0),
    "erfc": (2, 0, 0, 0),
}


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in LIMITS), ("gelu", {"approximate": "tanh"})])
def test_limits_at_infinity(name, options):
    low, high, low_slope, high_slope = LIMITS[name]
    y, pullback = getattr(refattn, name).vjp(np.array([-np.inf, np.inf, -1e3, 1e3, np.nan]), **options)
    slopes = pullback(np.ones(5))["x"]
    np.testing.assert_array_equal(y[:2], [low, high])
    np.testing.assert_array_equal(slopes[:2], [low_slope, high_slope])
    np.testing.assert_array_equal(y[2:4], [low, 1e3 if high == np.inf else high])
    np.testing.assert_array_equal(slopes[2:4], [low_slope, high_slope])
    assert np.isnan(y[4])
