"""Transposed convolution of a sequence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refattn._core import Array, BadCall, Pullback, Random, Sample, mechanism
from refattn.convolution.conv_transpose2d import conv_transpose2d
from refattn.convolution.rule import convolve_transposed


def _inputs(random: Random) -> dict[str, Any]:
    return {"x": random.normal((2, 4, 3)), "weight": random.normal((4, 3, 3)), "groups": 2}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    yield Sample("groups", inputs)
    yield Sample("bias and stride", {**inputs, "bias": random.normal(6), "stride": (3,), "padding": 1})
    yield Sample("output padding", {**inputs, "stride": 2, "output_padding": 1, "padding": ((0, 2),)})
    yield Sample("output padding, dilated", {**inputs, "dilation": (3,), "output_padding": (2,), "padding": (2,)})
    yield Sample("one group", {"x": random.normal((1, 2, 1)), "weight": random.normal((2, 1, 1))})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield BadCall("two strides", {**inputs, "stride": (1, 1)}, ValueError, r"stride is \(1, 1\), but must have 1 number")
    yield BadCall("nothing left", {**inputs, "padding": 3}, ValueError, "padding is 3, which cuts off all")


@mechanism(tags={"convolution"}, samples=_samples, bad_calls=_bad_calls, like=conv_transpose2d)
def conv_transpose1d(*args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
    r"""Spread each position of a sequence over a larger one: the derivative of `conv1d` in its input, as an operation of its own.

    With the same weight, stride, padding, dilation and groups, it is the transpose of the linear map that `conv1d` is.

    Parameters
    ----------
    x : array, shape (batch, groups * in_group, length)
        Sequences.
    weight : array, shape (groups * in_group, out_group, kernel_size)
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
    array, shape (batch, groups * out_group, out_length)
        Each axis has ``(size - 1) * stride + dilation * (kernel - 1) + 1 + output_padding`` positions less its padding.

    Notes
    -----
    Sizes: ``length >= 1``, ``kernel_size >= 1``.

    With s the stride, d the dilation and m the padding before; c runs over the channels of the group of o:

    .. math::

        y_{b,o,q} = \beta_o + \sum_c\ \sum_{p,t:\, sp + dt - m = q} w_{c,o,t}\, x_{b,c,p}

    .. math::

        \bar x_{b,c,p} = \sum_{o,t} w_{c,o,t}\, \bar y_{b,o,sp + dt - m}, \quad
        \bar w_{c,o,t} = \sum_{b,p} x_{b,c,p}\, \bar y_{b,o,sp + dt - m}, \quad \bar\beta_o = \sum_{b,q} \bar y_{b,o,q}

    References
    ----------
    .. [1] Dumoulin, Visin, "A Guide to Convolution Arithmetic for Deep Learning", 2016, chapter 4. arXiv:1603.07285.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.conv_transpose1d(np.array([[[1.0, 10.0]]]), np.array([[[1.0, 2.0, 3.0]]]), stride=2)
    array([[[ 1.,  2., 13., 20., 30.]]])
    """
    return convolve_transposed(*args, **kwargs)
