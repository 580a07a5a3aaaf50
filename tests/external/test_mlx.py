"""Arrays of MLX, on its CPU device: numbers unchanged, gradients by its own derivatives, and faults that it has."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn.testing import frameworks
from refattn.testing.precision import FORMATS, Format

mx = pytest.importorskip("mlx.core")


def softmax(x):
    return mx.softmax(x, axis=-1, precise=True)


def attention(query, key, value, *, mask=None, scale=None):
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask=mask)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_numbers_come_back_as_they_were(dtype):
    frame, target = frameworks.framework("mlx"), FORMATS[dtype]
    x = target.round(np.random.default_rng(0).normal(size=(4, 5)) * 2.0 ** np.random.default_rng(1).integers(-10, 10, (4, 5)))
    made = frame.make(x, target)
    assert made.dtype == getattr(mx, dtype)
    np.testing.assert_array_equal(frame.value(made), x)
    np.testing.assert_array_equal(np.asarray(frame.make(np.array([True, False]), target)), [True, False])


def test_a_type_that_it_has_not_is_refused():
    with pytest.raises(TypeError, match="MLX has no float8_e4m3fn"):
        frameworks.framework("mlx").make(np.ones(2), Format("float8_e4m3fn", 4, -6, 448.0, 2.0**-24))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_softmax_is_right_forward_and_backward(dtype):
    report = testing.check(softmax, refattn.softmax, framework="mlx", dtype=dtype)
    report.raise_if_wrong()
    assert {r.what for r in report.results if r.passed} == {"output", "d_x"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_in_sixteen_bits_are_found(dtype):
    """What it does unless asked for more: 2055 classes that are alike should sum to 1."""
    report = testing.check(lambda x: mx.softmax(x, axis=-1), refattn.softmax, framework="mlx", dtype=dtype)
    assert {"many classes", "many classes, all alike"} <= {r.case for r in report.failures if r.what == "output"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_kernel_is_found(dtype):
    report = testing.check(lambda x: softmax(x) * 1.02, refattn.softmax, framework="mlx", dtype=dtype)
    assert {r.what for r in report.failures} == {"output", "d_x"}


def test_attention_in_float32_is_right_but_for_rows_without_keys_and_what_is_masked_and_not_finite():
    report = testing.check(attention, refattn.scaled_dot_product_attention, framework="mlx")
    assert report.counts["pass"] > 60
    given_the_mean, multiplied_by_0 = {"masked row", "masked rows"}, {"NaN behind the lengths", "infinity behind the lengths"}
    assert {r.case.partition(",")[0] for r in report.failures} == given_the_mean | multiplied_by_0


def test_a_kernel_that_writes_to_its_arguments_is_found():
    def careless(x):
        y = softmax(x)
        x[...] = mx.zeros_like(x)
        return y

    for dtype in ("float32", "bfloat16"):
        report = testing.check(careless, refattn.softmax, gradients=lambda d, x: {"x": d}, framework="mlx", dtype=dtype)
        assert {r.reason for r in report.failures} == {"changed in place: x"}
