"""Convolution in two steps: positions first, then channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism
from refattn.convolution.depthwise import depthwise_conv2d
from refattn.convolution.pointwise import pointwise_conv2d
from refattn.convolution.rule import Padding, PerAxis
from refattn.primitives.padding import PaddingMode


def _inputs(random: Random) -> dict[str, Any]:
    return {"x": random.normal((2, 3, 4, 5)), "w_depthwise": random.normal((6, 1, 3, 2)), "w_pointwise": random.normal((2, 6, 1, 1))}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    yield Sample("plain", inputs)
    yield Sample("bias and stride", {**inputs, "bias": random.normal(2), "stride": 2, "padding": 1})
    yield Sample("dilation", {**inputs, "padding": "same", "dilation": (2, 1), "padding_mode": "replicate"})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield BadCall("channels that disagree", {**inputs, "w_pointwise": random.normal((2, 5, 1, 1))}, ValueError, "multiplier is 5")


@mechanism(tags={"convolution"}, samples=_samples, bad_calls=_bad_calls)
def separable_conv2d(
    x: Array,
    w_depthwise: Array,
    w_pointwise: Array,
    bias: Array | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    padding_mode: PaddingMode = "zeros",
) -> tuple[Array, Pullback]:
    r"""Filter each channel of an image, then mix the channels of each pixel, with nothing between.

    Parameters
    ----------
    x : array, shape (batch, channels, height, width)
        Images.
    w_depthwise : array, shape (channels * multiplier, 1, kernel_height, kernel_width)
        Kernels of `depthwise_conv2d`.
    w_pointwise : array, shape (out_channels, channels * multiplier, 1, 1)
        Weights of `pointwise_conv2d`.
    bias : array or None, shape (out_channels), optional
        Added to each output channel.
    stride : positive int or tuple of positive int, optional
        Step from one output position to the next; one number, or one for each axis.
    padding : non-negative int or tuple of non-negative int or tuple of (non-negative int, non-negative int) or {"same", "valid"}, optional
        As of `conv2d`.
    dilation : positive int or tuple of positive int, optional
        Step from one tap of the kernel to the next.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}, optional
        What stands in the added positions, as in `pad`.

    Returns
    -------
    array, shape (batch, out_channels, out_height, out_width)
        Filtered and mixed images.

    Notes
    -----
    Sizes: ``channels >= 1``, ``height >= 1``, ``width >= 1``, ``kernel_height >= 1``, ``kernel_width >= 1``.

    With D the depthwise convolution with weight v, and P the pointwise convolution with weight w and bias:

    .. math::

        h = D_v x, \quad y = P_w h, \qquad
        \bar h = w^\top \bar y, \quad \bar w = \sum \bar y\, h^\top, \quad \bar\beta = \sum \bar y, \quad
        \bar x = D_v^\top \bar h

    References
    ----------
    .. [1] Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017, section 3.1.
       arXiv:1704.04861.
    .. [2] Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017. arXiv:1610.02357.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x = np.array([[[[1.0, 2.0, 4.0]], [[10.0, 20.0, 40.0]]]])
    >>> differences = np.array([[[[-1.0, 1.0]]], [[[-1.0, 1.0]]]])
    >>> refattn.separable_conv2d(x, differences, np.ones((1, 2, 1, 1)))
    array([[[[11., 22.]]]])
    """
    hidden, depthwise_pullback = depthwise_conv2d.vjp(
        x, w_depthwise, stride=stride, padding=padding, dilation=dilation, padding_mode=padding_mode
    )
    output, pointwise_pullback = pointwise_conv2d.vjp(hidden, w_pointwise, bias)

    def pullback(dy: Array) -> Grads:
        d_pointwise = pointwise_pullback(dy)
        d_depthwise = depthwise_pullback(d_pointwise["x"])
        return {
            "x": d_depthwise["x"],
            "w_depthwise": d_depthwise["weight"],
            "w_pointwise": d_pointwise["weight"],
            "bias": d_pointwise.get("bias"),
        }

    return output, pullback
