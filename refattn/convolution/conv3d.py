"""Convolution of a volume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refattn._core import Array, BadCall, Pullback, Random, Sample, mechanism
from refattn.convolution.conv2d import conv2d
from refattn.convolution.rule import by_taps, convolve, ungrouped


def _inputs(random: Random) -> dict[str, Any]:
    return {"x": random.normal((2, 2, 3, 4, 3)), "weight": random.normal((4, 1, 2, 2, 3)), "groups": 2}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    yield Sample("groups", inputs)
    yield Sample("bias and stride", {**inputs, "bias": random.normal(4), "stride": (1, 2, 1), "padding": 1})
    yield Sample("dilation", {**inputs, "dilation": (2, 1, 1), "padding": (0, 1, 0)})
    yield Sample("more after", {**inputs, "padding": ((0, 1), (0, 0), (1, 0)), "padding_mode": "replicate"})
    yield Sample("same", {**inputs, "padding": "same", "stride": (2, 1, 2)})
    yield Sample("reflect", {**inputs, "padding": (1, 3, 2), "padding_mode": "reflect", "stride": 2})
    yield Sample("circular", {**inputs, "padding": (3, 1, 0), "padding_mode": "circular", "stride": 2})
    yield Sample("one group", {"x": random.normal((1, 2, 2, 2, 2)), "weight": random.normal((1, 2, 2, 1, 2)), "padding": "valid"})
    yield from ungrouped({"x": random.normal((1, 2, 2, 3, 3)), "weight": random.normal((2, 2, 2, 1, 2))}, random)


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield BadCall("two strides", {**inputs, "stride": (1, 1)}, ValueError, r"stride is \(1, 1\), but must have 3 numbers")
    yield BadCall("kernel too deep", {**inputs, "dilation": (3, 1, 1)}, ValueError, r"weight reaches over \(4, 2, 3\) positions")
    yield BadCall("no depth", {**inputs, "x": random.normal((2, 2, 0, 4, 3)), "padding": 2}, ValueError, "depth is 0")


@mechanism(tags={"convolution"}, samples=_samples, bad_calls=_bad_calls, like=conv2d)
def conv3d(*args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
    r"""Slide a small kernel over a volume, or over a video.

    This is what networks call a convolution, in mathematics a cross-correlation: the kernel is not flipped.

    Parameters
    ----------
    x : array, shape (batch, groups * in_group, depth, height, width)
        Volumes.
    weight : array, shape (groups * out_group, in_group, kernel_depth, kernel_height, kernel_width)
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
    array, shape (batch, groups * out_group, out_depth, out_height, out_width)
        Each axis has ``(padded - dilation * (kernel - 1) - 1) // stride + 1`` positions.

    Notes
    -----
    Sizes: ``depth >= 1``, ``height >= 1``, ``width >= 1``, ``kernel_depth >= 1``, ``kernel_height >= 1``,
    ``kernel_width >= 1``.

    With s the stride, d the dilation and x the padded input; c runs over the channels of the group of o:

    .. math::

        y_{b,o,p} = \beta_o + \sum_{c,t} w_{o,c,t}\, x_{b,c,s \odot p + d \odot t}, \qquad p, t \in \mathbb{N}^3

    .. math::

        \bar x_{b,c,q} = \sum_{o}\ \sum_{p,t:\, s \odot p + d \odot t = q} w_{o,c,t}\, \bar y_{b,o,p}, \quad
        \bar w_{o,c,t} = \sum_{b,p} \bar y_{b,o,p}\, x_{b,c,s \odot p + d \odot t}, \quad
        \bar\beta_o = \sum_{b,p} \bar y_{b,o,p}

    References
    ----------
    .. [1] Dumoulin, Visin, "A Guide to Convolution Arithmetic for Deep Learning", 2016, chapters 2 and 5. arXiv:1603.07285.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.conv3d(np.ones((1, 1, 2, 3, 3)), np.ones((1, 1, 2, 3, 3)), padding=(0, 1, 1))[0, 0]
    array([[[ 8., 12.,  8.],
            [12., 18., 12.],
            [ 8., 12.,  8.]]])
    """
    return convolve(by_taps, *args, **kwargs)
