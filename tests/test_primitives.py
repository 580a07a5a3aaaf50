"""Identities between primitives, and where values that are not finite go."""

from __future__ import annotations

import numpy as np
import pytest

import refattn
from refattn._core.random import Random

X = Random(0).normal((2, 4, 6, 6))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("pool", [refattn.avg_pool2d, refattn.max_pool2d])
def test_what_is_not_finite_stays_in_its_windows(pool, value):
    x = X[0, 0].copy()
    clean = pool(x, kernel_size=3, stride=1, padding=1)
    x[2, 3] = value
    y = pool(x, kernel_size=3, stride=1, padding=1)
    reached = np.zeros((6, 6), bool)
    reached[1:4, 2:5] = True
    np.testing.assert_array_equal(y[reached], np.full(9, value))
    np.testing.assert_array_equal(y[~reached], clean[~reached])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_interpolation_reads_nothing_of_weight_zero(value):
    x = X[0, 0, :3, :3].copy()
    x[1, 1] = value
    y = refattn.resize_bilinear(x, output_size=5, align_corners=True)  # every second output is an input
    reached = np.zeros((5, 5), bool)
    reached[1:4, 1:4] = True
    assert not np.isfinite(y[reached]).any()
    assert np.isfinite(y[~reached]).all()


def test_a_gradient_of_the_maximum_goes_to_the_first_nan():
    _, pullback = refattn.max_pool1d.vjp(np.array([1.0, np.nan, np.nan]), kernel_size=3)
    np.testing.assert_array_equal(pullback(np.ones(1))["x"], [0, 1, 0])


def test_adaptive_bins_that_divide_are_windows():
    np.testing.assert_array_equal(refattn.adaptive_avg_pool2d(X, output_size=(2, 3)), refattn.avg_pool2d(X, kernel_size=(3, 2)))
    np.testing.assert_array_equal(refattn.adaptive_max_pool2d(X, output_size=(2, 3)), refattn.max_pool2d(X, kernel_size=(3, 2)))


def test_one_bin_is_global():
    np.testing.assert_allclose(refattn.adaptive_avg_pool2d(X, output_size=1)[..., 0, 0], refattn.global_avg_pool(X), rtol=1e-14, atol=1e-16)
    np.testing.assert_array_equal(refattn.adaptive_max_pool2d(X, output_size=1)[..., 0, 0], refattn.global_max_pool(X))


def test_normalisations_that_are_others():
    one_group = refattn.group_norm(X, num_groups=1)
    np.testing.assert_allclose(one_group, refattn.layer_norm(X, normalized=3), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(refattn.instance_norm(X), refattn.layer_norm(X, normalized=2), rtol=1e-13, atol=1e-15)
    centred = X - X.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(refattn.rms_norm(centred, eps=1e-5), refattn.layer_norm(X), rtol=1e-13, atol=1e-15)
    made = refattn.batch_norm_training(X, np.zeros(4), np.ones(4), momentum=1.0)
    count = X.size / 4
    same = refattn.batch_norm(X, made.running_mean, made.running_var * (count - 1) / count)
    np.testing.assert_allclose(made.output, same, rtol=1e-13, atol=1e-15)


def test_resizing_to_the_same_size_changes_nothing():
    for y in (
        refattn.resize_nearest(X, output_size=6),
        refattn.resize_nearest(X, output_size=6, half_pixel=True),
        refattn.resize_bilinear(X, output_size=6),
        refattn.resize_bilinear(X, output_size=6, align_corners=True),
    ):
        np.testing.assert_array_equal(y, X)


def test_a_segment_for_all_is_softmax():
    x = X[0, 0]
    y = refattn.segment_softmax(x, np.zeros(6, int), num_segments=1)
    np.testing.assert_allclose(y, refattn.softmax(x.T).T, rtol=1e-14)
    empty = refattn.segment_softmax(np.full((2, 1), -np.inf), np.array([0, 0]), num_segments=3)
    np.testing.assert_array_equal(empty, 0)


def test_masked_classes_cost_nothing():
    """A class of score -inf that is no target adds nothing to the loss or the gradient."""
    scores = np.array([[1.0, -np.inf, 2.0]])
    loss, pullback = refattn.cross_entropy.vjp(scores, np.array([2]))
    shorter, shorter_pullback = refattn.cross_entropy.vjp(scores[:, ::2], np.array([1]))
    np.testing.assert_array_equal(loss, shorter)
    np.testing.assert_array_equal(pullback(np.array(1.0))["scores"][:, ::2], shorter_pullback(np.array(1.0))["scores"])
    assert pullback(np.array(1.0))["scores"][0, 1] == 0
