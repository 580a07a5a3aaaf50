"""What must hold between convolutions."""

from __future__ import annotations

import math

import numpy as np
import pytest

import refattn
from refattn._core import Random

GEOMETRIES = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (1, 3), "padding": ((0, 2), (1, 0)), "dilation": (2, 1), "groups": 2},
    {"dilation": 2, "padding": 3, "groups": 4},
]


@pytest.mark.parametrize("options", GEOMETRIES)
def test_transposed_is_the_transpose(options):
    random = Random(1)
    x, weight = random.normal((2, 4, 7, 6)), random.normal((8, 4 // options.get("groups", 1), 3, 2))
    y, pullback = refattn.conv2d.vjp(x, weight, **options)
    d = random.normal(y.shape)
    stride, dilation, pairs = (options.get(n, v) for n, v in (("stride", 1), ("dilation", 1), ("padding", 0)))
    strides, dilations = ((o, o) if isinstance(o, int) else o for o in (stride, dilation))
    pairs = ((pairs, pairs),) * 2 if isinstance(pairs, int) else pairs
    reached = [s * (n - 1) + g * (k - 1) + 1 for n, s, g, k in zip(y.shape[2:], strides, dilations, weight.shape[2:], strict=True)]
    more = tuple(n + sum(p) - r for n, p, r in zip(x.shape[2:], pairs, reached, strict=True))
    z = refattn.conv_transpose2d(d, weight, output_padding=more, **options)
    np.testing.assert_allclose(z, pullback(d)["x"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose((y * d).sum(), (x * z).sum(), rtol=1e-12)


@pytest.mark.parametrize("other", ["conv2d_im2col", "conv2d_fft"])
@pytest.mark.parametrize("options", [*GEOMETRIES, {"padding": "same", "stride": 3, "padding_mode": "circular"}])
def test_algorithms_agree_with_the_definition(other, options):
    random = Random(2)
    x, weight, bias = random.normal((3, 4, 13, 11)), random.normal((8, 4 // options.get("groups", 1), 5, 3)), random.normal(8)
    agree(getattr(refattn, other), x, weight, bias, 1e-13, options, options)


@pytest.mark.parametrize(("tile", "tolerance"), [(2, 1e-14), (4, 1e-13)])
@pytest.mark.parametrize("size", [(3, 3), (4, 9), (14, 13)])
@pytest.mark.parametrize("groups", [1, 2])
def test_winograd_agrees_with_the_definition(tile, tolerance, size, groups):
    random = Random(3)
    x, weight, bias = random.normal((2, 4, *size)), random.normal((6, 4 // groups, 3, 3)), random.normal(6)
    for padding in (0, 1, ((0, 2), (3, 0))):
        options = {"groups": groups, "padding": padding}
        agree(refattn.conv2d_winograd, x, weight, bias, tolerance, options, {**options, "tile": tile})


def agree(other, x, weight, bias, tolerance, options, others):
    """Outputs and gradients, relative to the largest element."""
    (y, pullback), (z, other_pullback) = refattn.conv2d.vjp(x, weight, bias, **options), other.vjp(x, weight, bias, **others)
    d = Random(4).normal(y.shape)
    grads, other_grads = pullback(d), other_pullback(d)
    for a, b in ((y, z), *((grads[n], other_grads[n]) for n in ("x", "weight", "bias"))):
        assert np.abs(a - b).max() <= tolerance * max(np.abs(a).max(), 1)


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4])
def test_same_gives_ceil_and_puts_more_after(size, stride, dilation, kernel_size):
    weight = np.ones((1, 1, kernel_size))
    y = refattn.conv1d(np.ones((1, 1, size)), weight, padding="same", stride=stride, dilation=dilation)
    out = math.ceil(size / stride)
    assert y.shape == (1, 1, out)
    added = max((out - 1) * stride + dilation * (kernel_size - 1) + 1 - size, 0)
    pair = ((added // 2, math.ceil(added / 2)),)
    np.testing.assert_array_equal(y, refattn.conv1d(np.ones((1, 1, size)), weight, padding=pair, stride=stride, dilation=dilation))


def test_the_kernel_is_not_flipped():
    x, kernel = np.arange(6.0), np.array([1.0, 2.0, 5.0])
    np.testing.assert_array_equal(refattn.conv1d(x[None, None], kernel[None, None])[0, 0], np.correlate(x, kernel, mode="valid"))


@pytest.mark.parametrize("cuts", [(1, 2, 3), (4,), (5, 6)])
def test_chunks_with_carried_state_are_the_whole(cuts):
    random = Random(5)
    x, weight, bias = random.normal((2, 3, 8)), random.normal((3, 4)), random.normal(3)
    whole, state = refattn.causal_conv1d(x, weight, bias)
    outputs, carried = [], None
    for chunk in np.split(x, cuts, axis=-1):
        output, carried = refattn.causal_conv1d(chunk, weight, bias, carried)
        outputs.append(output)
    np.testing.assert_array_equal(np.concatenate(outputs, axis=-1), whole)
    np.testing.assert_array_equal(carried, state)


def test_later_positions_are_not_seen():
    random = Random(6)
    x, weight = random.normal((1, 2, 6)), random.normal((2, 3))
    changed = x.copy()
    changed[..., 4:] += 1
    a, b = (refattn.causal_conv1d(z, weight).output for z in (x, changed))
    np.testing.assert_array_equal(a[..., :4], b[..., :4])


def test_a_large_batch_is_computed_in_blocks_that_agree(monkeypatch):
    random = Random(7)
    x, weight = random.normal((5, 2, 4, 4)), random.normal((3, 2, 3, 3))
    y, pullback = refattn.conv2d.vjp(x, weight, padding=1)
    grads = pullback(y)
    monkeypatch.setattr("refattn.convolution.rule.BLOCK", 1)
    z, other = refattn.conv2d.vjp(x, weight, padding=1)
    np.testing.assert_allclose(z, y, rtol=1e-14, atol=1e-14)
    for name, g in other(y).items():
        np.testing.assert_allclose(g, grads[name], rtol=1e-13, atol=1e-13)


def test_volumes_of_depth_one_are_images_and_images_of_height_one_are_sequences():
    random = Random(8)
    x, weight = random.normal((2, 3, 1, 1, 7)), random.normal((4, 3, 1, 1, 3))
    volume = refattn.conv3d(x, weight, stride=2)
    np.testing.assert_array_equal(volume[:, :, 0], refattn.conv2d(x[:, :, 0], weight[:, :, 0], stride=2))
    np.testing.assert_array_equal(volume[:, :, 0, 0], refattn.conv1d(x[:, :, 0, 0], weight[:, :, 0, 0], stride=2))


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"])
def test_numpy_integers_and_lists_are_numbers_and_tuples(name):
    axes = int(name[-2])
    x, weight = np.ones((1, 1, *(3,) * axes)), np.ones((1, 1, *(2,) * axes))
    m = getattr(refattn, name)
    np.testing.assert_array_equal(
        m(x, weight, stride=[np.int64(2)] * axes, padding=[[0, 1]] * axes), m(x, weight, stride=2, padding=((0, 1),) * axes)
    )
