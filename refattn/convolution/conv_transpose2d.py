"""Transposed convolution of an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refattn._core import Array, BadCall, Pullback, Random, Sample, mechanism
from refattn.convolution.rule import Pairs, PerAxis, convolve_transposed


def _inputs(random: Random) -> dict[str, Any]:
    return {"x": random.normal((2, 4, 3, 2)), "weight": random.normal((4, 3, 2, 3)), "groups": 2}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    yield Sample("groups", inputs)
    yield Sample("bias and stride", {**inputs, "bias": random.normal(6), "stride": (3, 2), "padding": 1})
    yield Sample("output padding", {**inputs, "stride": 2, "output_padding": (1, 0), "padding": ((0, 1), (2, 1))})
    yield Sample("output padding, dilated", {**inputs, "dilation": (2, 3), "output_padding": (1, 2), "padding": (1, 2)})
    yield Sample("one group", {"x": random.normal((1, 2, 2, 2)), "weight": random.normal((2, 3, 2, 2))})
    yield Sample("no examples", {**inputs, "x": random.normal((0, 4, 3, 2))})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield BadCall("three strides", {**inputs, "stride": (1, 1, 1)}, ValueError, r"stride is \(1, 1, 1\), but must have 2 numbers")
    yield BadCall("one padding", {**inputs, "padding": (1,)}, ValueError, r"padding is \(1,\), but must have 2 entries")
    yield BadCall(
        "much output padding", {**inputs, "stride": 2, "output_padding": 2}, ValueError, "output_padding is 2, but must be below stride"
    )
    yield BadCall("nothing left", {**inputs, "padding": (2, 1)}, ValueError, r"padding is \(2, 1\), which cuts off all of \(4, 4\)")
    yield BadCall("no padding by name", {**inputs, "padding": "same"}, TypeError, "padding is 'same', but must be")
    yield BadCall("no height", {**inputs, "x": random.normal((2, 4, 0, 2))}, ValueError, "height is 0, but must be at least 1")
    yield BadCall("channels that disagree", {**inputs, "x": random.normal((2, 6, 3, 2))}, ValueError, r"groups \* in_group is")


@mechanism(tags={"convolution"}, samples=_samples, bad_calls=_bad_calls)
def conv_transpose2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: PerAxis = 1,
    padding: int | tuple[int, ...] | Pairs = 0,
    output_padding: PerAxis = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
) -> tuple[Array, Pullback]:
    r"""Spread each position of an image over a larger one: the derivative of `conv2d` in its input, as an operation of its own.

    With the same weight, stride, padding, dilation and groups, it is the transpose of the linear map that `conv2d` is.

    Parameters
    ----------
    x : array, shape (batch, groups * in_group, height, width)
        Images.
    weight : array, shape (groups * in_group, out_group, kernel_height, kernel_width)
        One kernel for each input channel, as in the convolution of which this is the transpose.
    bias : array or None, shape (groups * out_group), optional
        Added to each output channel.
    stride : positive int or tuple of positive int, optional
        Step between the places that neighbouring input positions spread to; one number, or one for each axis.
    padding : non-negative int or tuple of non-negative int or tuple of (non-negative int, non-negative int), optional
        Positions cut off before and after each axis of the output: what a convolution with this padding would have added.
    output_padding : non-negative int or tuple of non-negative int, optional
        Positions put after each axis, below `stride` or `dilation`: a convolution maps outputs of several sizes to one.
    dilation : positive int or tuple of positive int, optional
        Step from one tap of the kernel to the next.
    groups : positive int, optional
        Into how many parts the channels fall, each convolved on its own.

    Returns
    -------
    array, shape (batch, groups * out_group, out_height, out_width)
        Each axis has ``(size - 1) * stride + dilation * (kernel - 1) + 1 + output_padding`` positions less its padding.

    Notes
    -----
    Sizes: ``height >= 1``, ``width >= 1``, ``kernel_height >= 1``, ``kernel_width >= 1``.

    With s the stride, d the dilation and m the padding before; c runs over the channels of the group of o, and p, q and t over positions in
    two dimensions:

    .. math::

        y_{b,o,q} = \beta_o + \sum_c\ \sum_{p,t:\, s \odot p + d \odot t - m = q} w_{c,o,t}\, x_{b,c,p}

    .. math::

        \bar x_{b,c,p} = \sum_{o,t} w_{c,o,t}\, \bar y_{b,o,s \odot p + d \odot t - m}, \quad
        \bar w_{c,o,t} = \sum_{b,p} x_{b,c,p}\, \bar y_{b,o,s \odot p + d \odot t - m}, \quad \bar\beta_o = \sum_{b,q} \bar y_{b,o,q}

    References
    ----------
    .. [1] Dumoulin, Visin, "A Guide to Convolution Arithmetic for Deep Learning", 2016, chapter 4. arXiv:1603.07285.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x = np.array([[[[1.0, 10.0]]]])
    >>> refattn.conv_transpose2d(x, np.array([[[[1.0, 2.0], [3.0, 4.0]]]]))[0, 0]
    array([[ 1., 12., 20.],
           [ 3., 34., 40.]])
    """
    return convolve_transposed(
        x, weight, bias, stride=stride, padding=padding, output_padding=output_padding, dilation=dilation, groups=groups
    )
