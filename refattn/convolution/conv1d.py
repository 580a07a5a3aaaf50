"""Convolution of a sequence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refattn._core import Array, BadCall, Pullback, Random, Sample, mechanism
from refattn.convolution.conv2d import conv2d
from refattn.convolution.rule import by_taps, convolve, ungrouped


def _inputs(random: Random) -> dict[str, Any]:
    return {"x": random.normal((2, 4, 7)), "weight": random.normal((6, 2, 3))}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    yield Sample("groups", {**inputs, "groups": 2})
    yield Sample("stride and bias", {**inputs, "groups": 2, "stride": (2,), "padding": 1, "bias": random.normal(6)})
    yield Sample("same, dilated", {**inputs, "groups": 2, "padding": "same", "dilation": 2})
    yield Sample("same, strided", {**inputs, "groups": 2, "padding": "same", "stride": 3, "padding_mode": "replicate"})
    yield Sample("reflect, more after", {**inputs, "groups": 2, "padding": ((1, 4),), "padding_mode": "reflect"})
    yield Sample("circular", {**inputs, "groups": 2, "padding": (3,), "padding_mode": "circular", "dilation": (2,)})
    yield Sample("one tap", {"x": random.normal((1, 2, 3)), "weight": random.normal((2, 2, 1)), "padding": "valid"})
    yield from ungrouped({"x": random.normal((2, 2, 5)), "weight": random.normal((3, 2, 2))}, random)


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield BadCall("two strides", {**inputs, "groups": 2, "stride": (1, 1)}, ValueError, "stride is .1, 1., but must have 1 number")
    yield BadCall("pair for no axis", {**inputs, "groups": 2, "padding": (1, 1)}, ValueError, "padding is .1, 1., but must have 1 entry")
    yield BadCall("kernel too wide", {**inputs, "groups": 2, "dilation": 4}, ValueError, r"weight reaches over \(9,\) positions")
    yield BadCall("nothing to see", {**inputs, "x": random.normal((2, 4, 0)), "groups": 2, "padding": 3}, ValueError, "length is 0")


@mechanism(tags={"convolution"}, samples=_samples, bad_calls=_bad_calls, like=conv2d)
def conv1d(*args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
    r"""Slide a small kernel over a sequence.

    This is what networks call a convolution, in mathematics a cross-correlation: the kernel is not flipped.

    Parameters
    ----------
    x : array, shape (batch, groups * in_group, length)
        Sequences.
    weight : array, shape (groups * out_group, in_group, kernel_size)
        One kernel for each output channel; output channel o reads the input channels of group ``o // out_group``.
    bias : array or None, shape (groups * out_group), optional
        Added to each output channel.
    stride : positive int or tuple of positive int, optional
        Step from one output position to the next; one number, or one for each axis.
    padding : non-negative int or tuple of non-negative int or tuple of (non-negative int, non-negative int) or {"same", "valid"}, optional
        Positions put before and after each axis: one number, one for each axis, or a pair for each axis. With "same" the output
        has ``ceil(size / stride)`` positions, and an odd number of added positions puts the extra one after; "valid" is 0.
    dilation : positive int or tuple of positive int, optional
        Step from one tap of the kernel to the next.
    groups : positive int, optional
        Into how many parts the channels fall, each convolved on its own.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}, optional
        What stands in the added positions, as in `pad`.

    Returns
    -------
    array, shape (batch, groups * out_group, out_length)
        Each axis has ``(padded - dilation * (kernel - 1) - 1) // stride + 1`` positions.

    Notes
    -----
    Sizes: ``length >= 1``, ``kernel_size >= 1``.

    With s the stride, d the dilation and x the padded input; c runs over the channels of the group of o:

    .. math::

        y_{b,o,p} = \beta_o + \sum_{c,t} w_{o,c,t}\, x_{b,c,sp + dt}

    .. math::

        \bar x_{b,c,q} = \sum_{o}\ \sum_{p,t:\, sp + dt = q} w_{o,c,t}\, \bar y_{b,o,p}, \quad
        \bar w_{o,c,t} = \sum_{b,p} \bar y_{b,o,p}\, x_{b,c,sp + dt}, \quad \bar\beta_o = \sum_{b,p} \bar y_{b,o,p}

    References
    ----------
    .. [1] Dumoulin, Visin, "A Guide to Convolution Arithmetic for Deep Learning", 2016, chapters 2 and 5. arXiv:1603.07285.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x = np.array([[[1.0, 2.0, 4.0, 8.0]]])
    >>> refattn.conv1d(x, np.array([[[-1.0, 1.0]]]))
    array([[[1., 2., 4.]]])
    """
    return convolve(by_taps, *args, **kwargs)
