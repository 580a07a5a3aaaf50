"""Deformable convolution where it is another convolution, at its kinks, and at positions that are no places."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn._core.random import Random
from refattn.convolution.rule import border, per_axis

OPTIONS = [
    {},
    {"padding": 1, "stride": 2},
    {"padding": ((2, 1), (0, 3)), "dilation": (1, 2)},
    {"groups": 2, "padding": "same"},
    {"groups": 4, "padding": "same", "stride": (3, 1)},
]


def call(options, *, offset=0.0):
    """Arguments of a convolution, and the same offset for each tap, down and to the right."""
    random = Random(0)
    groups = options.get("groups", 1)
    given = {"x": random.normal((2, 4, 6, 7)), "weight": random.normal((4, 4 // groups, 3, 2)), "bias": random.normal(4)}
    out = refattn.conv2d(**given, **options).shape[2:]
    moves = np.broadcast_to(offset, (12, 2)).reshape(24, 1, 1)
    return given, np.broadcast_to(moves, (2, 24, *out))


@pytest.mark.parametrize("options", OPTIONS)
def test_without_offsets_it_is_a_convolution(options):
    given, offset = call(options)
    want, want_pullback = refattn.conv2d.vjp(**given, **options)
    y, pullback = refattn.deform_conv2d.vjp(**given, offset=offset, offset_groups=2, **options)
    d = np.cos(want)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-13)
    grads = pullback(d)
    for name, g in want_pullback(d).items():
        np.testing.assert_allclose(grads[name], g, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("options", OPTIONS)
def test_whole_offsets_move_the_image(options):
    """Down by two and left by one; what comes from beyond an edge is 0."""
    given, offset = call(options, offset=[2.0, -1.0])
    steps, gaps = (per_axis(name, options.get(name, 1), 2) for name in ("stride", "dilation"))
    (top, _), (left, _) = border(options.get("padding", 0), (6, 7), (3, 2), steps, gaps)
    wide = np.pad(given["x"], ((0, 0), (0, 0), (8, 8), (8, 8)))[:, :, 8 - top + 2 :, 8 - left - 1 :]
    moved = refattn.conv2d(wide, given["weight"], given["bias"], **{**options, "padding": 0})
    y = refattn.deform_conv2d(**given, offset=offset, offset_groups=2, **options)
    np.testing.assert_allclose(y, moved[:, :, : y.shape[2], : y.shape[3]], rtol=0, atol=1e-13)


def test_a_modulation_of_ones_changes_nothing_and_of_zeros_leaves_the_bias():
    given, _ = call({})
    random = Random(1)
    offset, ones = random.normal((2, 24, 4, 6)), np.ones((2, 12, 4, 6))
    y = refattn.deform_conv2d(**given, offset=offset, offset_groups=2)
    np.testing.assert_array_equal(refattn.modulated_deform_conv2d(**given, offset=offset, modulation=ones, offset_groups=2), y)
    none = refattn.modulated_deform_conv2d(**given, offset=offset, modulation=0 * ones, offset_groups=2)
    np.testing.assert_array_equal(none, np.broadcast_to(given["bias"][:, None, None], none.shape))


def test_a_modulation_scales_as_the_weight_does():
    given, _ = call({})
    offset, twos = Random(2).normal((2, 12, 4, 6)), np.full((2, 6, 4, 6), 2.0)
    doubled = refattn.modulated_deform_conv2d(given["x"], offset, twos, given["weight"])
    np.testing.assert_allclose(doubled, refattn.deform_conv2d(given["x"], offset, 2 * given["weight"]), rtol=0, atol=1e-13)


def test_the_gradient_at_a_kink_is_the_one_to_the_right():
    x = np.array([[[[1.0, 3.0, 11.0]]]])
    at = np.array([[[[-1.0, 0.0, 1.0, 2.0, 3.0]]]]).reshape(1, 1, 5)
    _, pullback = refattn.sample_bilinear.vjp(x, np.concatenate([0 * at, at], axis=1))
    d = pullback(np.ones((1, 1, 5)))["positions"]
    np.testing.assert_array_equal(d[0, 1], [1.0, 2.0, 8.0, -11.0, 0.0])
    np.testing.assert_array_equal(d[0, 0], [0.0, -1.0, -3.0, -11.0, 0.0])  # the row below is outside


@pytest.mark.parametrize("far", [np.inf, -np.inf, 1e30, -1e30, 2.0**63])
def test_positions_far_away_read_zeros_and_have_no_gradient(far):
    x, positions = Random(3).normal((1, 2, 3, 4)), np.array([[[far, 1.0], [1.5, far]]])
    y, pullback = refattn.sample_bilinear.vjp(x, positions)
    np.testing.assert_array_equal(y, np.zeros((1, 2, 2)))
    for g in pullback(np.ones_like(y)).values():
        np.testing.assert_array_equal(g, np.zeros_like(g))


def test_a_position_that_is_no_number_gives_none_and_changes_no_other():
    given, _ = call({})
    offset = Random(4).normal((2, 12, 4, 6))
    want, want_pullback = refattn.deform_conv2d.vjp(**given, offset=offset)
    offset[1, 3, 2, 2] = np.nan
    y, pullback = refattn.deform_conv2d.vjp(**given, offset=offset)
    spoilt = np.isnan(y)
    assert spoilt[1, :, 2, 2].all()
    assert spoilt.sum() == 4
    np.testing.assert_array_equal(y[~spoilt], want[~spoilt])
    grads, want_grads = pullback(np.ones_like(y)), want_pullback(np.ones_like(y))
    np.testing.assert_array_equal(grads["x"][0], want_grads["x"][0])
    assert np.isfinite(grads["x"]).all()


def test_pixels_of_weight_zero_are_not_read():
    x = np.array([[[[1.0, np.nan], [np.inf, 2.0]]]])
    y, pullback = refattn.sample_bilinear.vjp(x, np.array([[[0.0, 1.0], [0.0, 1.0]]]))
    np.testing.assert_array_equal(y, [[[1.0, 2.0]]])
    np.testing.assert_array_equal(pullback(np.array([[[np.inf, 1.0]]]))["x"], [[[[np.inf, 0.0], [0.0, 1.0]]]])
