"""Transposed convolution of a volume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refattn._core import Array, BadCall, Pullback, Random, Sample, mechanism
from refattn.convolution.conv_transpose2d import conv_transpose2d
from refattn.convolution.rule import convolve_transposed


def _inputs(random: Random) -> dict[str, Any]:
    return {"x": random.normal((2, 2, 2, 1, 2)), "weight": random.normal((2, 2, 2, 3, 2)), "groups": 2}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    yield Sample("groups", inputs)
    yield Sample("bias and stride", {**inputs, "bias": random.normal(4), "stride": (1, 2, 3), "padding": (0, 1, 0)})
    yield Sample("output padding", {**inputs, "stride": 2, "output_padding": (1, 0, 1), "padding": ((0, 1), (1, 0), (0, 0))})
    yield Sample("dilation", {**inputs, "dilation": (2, 1, 2), "padding": 1})
    yield Sample("one group", {"x": random.normal((1, 2, 2, 2, 1)), "weight": random.normal((2, 1, 1, 2, 2))})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield BadCall("two strides", {**inputs, "stride": (1, 1)}, ValueError, r"stride is \(1, 1\), but must have 3 numbers")
    yield BadCall("nothing left", {**inputs, "padding": 2}, ValueError, "padding is 2, which cuts off all")


@mechanism(tags={"convolution"}, samples=_samples, bad_calls=_bad_calls, like=conv_transpose2d)
def conv_transpose3d(*args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
    r"""Spread each position of a volume over a larger one: the derivative of `conv3d` in its input, as an operation of its own.

    With the same weight, stride, padding, dilation and groups, it is the transpose of the linear map that `conv3d` is.

    Parameters
    ----------
    x : array, shape (batch, groups * in_group, depth, height, width)
        Volumes.
    weight : array, shape (groups * in_group, out_group, kernel_depth, kernel_height, kernel_width)
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
    array, shape (batch, groups * out_group, out_depth, out_height, out_width)
        Each axis has ``(size - 1) * stride + dilation * (kernel - 1) + 1 + output_padding`` positions less its padding.

    Notes
    -----
    Sizes: ``depth >= 1``, ``height >= 1``, ``width >= 1``, ``kernel_depth >= 1``, ``kernel_height >= 1``,
    ``kernel_width >= 1``.

    With s the stride, d the dilation and m the padding before; c runs over the channels of the group of o, and p, q and t over positions in
    three dimensions:

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
    >>> refattn.conv_transpose3d(np.ones((1, 1, 1, 2, 2)), np.ones((1, 1, 1, 2, 2)))[0, 0]
    array([[[1., 2., 1.],
            [2., 4., 2.],
            [1., 2., 1.]]])
    """
    return convolve_transposed(*args, **kwargs)
