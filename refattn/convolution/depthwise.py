"""Convolution of each channel on its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refattn._core import Array, BadCall, Pullback, Random, Sample, mechanism
from refattn.convolution.conv2d import conv2d
from refattn.convolution.rule import Padding, PerAxis
from refattn.primitives.padding import PaddingMode


def _inputs(random: Random) -> dict[str, Any]:
    return {"x": random.normal((2, 3, 4, 5)), "weight": random.normal((6, 1, 3, 2))}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    yield Sample("two for each channel", inputs)
    yield Sample("one for each channel", {"x": inputs["x"], "weight": random.normal((3, 1, 2, 2)), "bias": random.normal(3)})
    yield Sample("same", {**inputs, "padding": "same", "stride": 2, "bias": random.normal(6)})
    yield Sample("dilation", {**inputs, "padding": (1, 2), "dilation": (1, 3), "padding_mode": "circular"})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield BadCall("kernels that mix", {**inputs, "weight": random.normal((6, 3, 3, 2))}, ValueError, "1 is 3 in weight, but should be 1")
    yield BadCall("no channels", {**inputs, "x": random.normal((2, 0, 4, 5))}, ValueError, "channels")


@mechanism(tags={"convolution"}, samples=_samples, bad_calls=_bad_calls)
def depthwise_conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    padding_mode: PaddingMode = "zeros",
) -> tuple[Array, Pullback]:
    r"""Slide kernels over each channel of an image, without mixing channels: `conv2d` with as many groups as channels.

    Parameters
    ----------
    x : array, shape (batch, channels, height, width)
        Images.
    weight : array, shape (channels * multiplier, 1, kernel_height, kernel_width)
        Kernels; output channel o reads input channel ``o // multiplier``.
    bias : array or None, shape (channels * multiplier), optional
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
    array, shape (batch, channels * multiplier, out_height, out_width)
        Filtered images.

    Notes
    -----
    Sizes: ``channels >= 1``, ``height >= 1``, ``width >= 1``, ``kernel_height >= 1``, ``kernel_width >= 1``.

    With r the multiplier, s the stride, d the dilation and x the padded input:

    .. math::

        y_{o,p} = \beta_o + \sum_t w_{o,t}\, x_{\lfloor o/r \rfloor, sp + dt}, \qquad
        \bar x_{c,q} = \sum_{\lfloor o/r \rfloor = c}\ \sum_{sp + dt = q} w_{o,t}\, \bar y_{o,p}, \quad
        \bar w_{o,t} = \sum_p \bar y_{o,p}\, x_{\lfloor o/r \rfloor, sp + dt}

    References
    ----------
    .. [1] Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017. arXiv:1610.02357.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x = np.array([[[[1.0, 2.0]], [[10.0, 20.0]]]])
    >>> refattn.depthwise_conv2d(x, np.array([1.0, 2.0, 3.0, 4.0]).reshape(4, 1, 1, 1))[0, :, 0]
    array([[ 1.,  2.],
           [ 2.,  4.],
           [30., 60.],
           [40., 80.]])
    """
    return conv2d.vjp(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=x.shape[1], padding_mode=padding_mode)
