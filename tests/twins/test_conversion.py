"""Numbers of 16 bits to float32 and back: every one of them, and every tie."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ml_dtypes")
pytest.importorskip("numba")

import ml_dtypes

from refattn_numba.cpu.conversion import narrowed, widened

EVERY = np.arange(1 << 16, dtype=np.uint16)
FORMATS = pytest.mark.parametrize(("stored", "kind"), [("uint16", ml_dtypes.bfloat16), ("float16", np.float16)])


@FORMATS
def test_widened_exactly(stored, kind):
    got, want = widened(EVERY.view(stored)), EVERY.view(kind).astype(np.float32)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(want))


@FORMATS
@pytest.mark.filterwarnings("ignore:overflow|invalid value:RuntimeWarning")
def test_rounded_to_nearest_ties_to_even(stored, kind):
    numbers = EVERY.view(kind).astype(np.float64)
    ties = ((numbers[:-1] + numbers[1:]) / 2).astype(np.float32)
    sides = [np.nextafter(ties, np.float32(end)) for end in (np.inf, -np.inf)]
    random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, dtype=np.uint32).view(np.float32)
    x = np.concatenate([numbers.astype(np.float32), ties, *sides, random])
    got, want = narrowed(x, np.dtype(stored)).view(kind), x.astype(kind)
    is_nan = np.isnan(x)
    np.testing.assert_array_equal(got.view(np.uint16)[~is_nan], want.view(np.uint16)[~is_nan])
    assert np.isnan(got[is_nan].astype(np.float32)).all()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5, 40_000)])
def test_any_shape_and_layout(shape):
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float16).T
    np.testing.assert_array_equal(widened(x), x.astype(np.float32))
    np.testing.assert_array_equal(narrowed(widened(x), x.dtype), x)
    x.flags.writeable = False
    np.testing.assert_array_equal(widened(x[..., ::-1] if x.ndim else x), (x[..., ::-1] if x.ndim else x).astype(np.float32))
