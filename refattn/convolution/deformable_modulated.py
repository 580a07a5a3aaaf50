"""Convolution whose taps stand where the input says, each with a weight of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from refattn._core import Array, BadCall, Pullback, Random, Sample, mechanism
from refattn.convolution import deformable
from refattn.convolution.deformable import deformed
from refattn.convolution.rule import Padding, PerAxis


def _with_modulation(given: Mapping[str, Any], random: Random) -> dict[str, Any]:
    batch, moves, *out = given["offset"].shape
    return {**given, "modulation": random.normal((batch, moves // 2, *out))}


def _samples(random: Random) -> Iterator[Sample]:
    for sample in deformable.samples(random):
        yield Sample(sample.name, _with_modulation(sample.arguments, random))


def _bad_calls(random: Random) -> Iterator[BadCall]:
    for bad in deformable.bad_calls(random):
        yield BadCall(bad.name, _with_modulation(bad.arguments, random), bad.error, bad.match)
    given = deformable.inputs(random)
    two = {**given, "modulation": random.normal((2, 12, 2, 4))}
    yield BadCall("two numbers a tap", two, ValueError, r"kernel_width is 12 in modulation, but should be 6")


def _benchmark(random: Random) -> Mapping[str, Any]:
    return _with_modulation(deformable.benchmark(random), random)


@mechanism(tags={"convolution"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def modulated_deform_conv2d(
    x: Array,
    offset: Array,
    modulation: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    offset_groups: int = 1,
) -> tuple[Array, Pullback]:
    r"""Convolve an image with taps that are moved, and multiplied, by learned numbers, other ones at each position.

    This is the second version; with a modulation of 1 it is `deform_conv2d`, the first. In a network the modulation is a sigmoid
    of a convolution of the same input. Elsewhere it is called the mask; here a mask is boolean.

    Parameters
    ----------
    x : array, shape (batch, groups * in_group, height, width)
        Images.
    offset : array, shape (batch, offset_groups * kernel_height * kernel_width * 2, out_height, out_width)
        How far each tap is moved at each output position, in pixels: for each group of channels and each tap, in row-major order,
        first down, then to the right.
    modulation : array, shape (batch, offset_groups * kernel_height * kernel_width, out_height, out_width)
        What each sample is multiplied by, in the order of the offsets.
    weight : array, shape (groups * out_group, in_group, kernel_height, kernel_width)
        One kernel for each output channel; output channel o reads the input channels of group ``o // out_group``.
    bias : array or None, shape (groups * out_group), optional
        Added to each output channel.
    stride : positive int or tuple of positive int, optional
        Step from one output position to the next; one number, or one for each axis.
    padding : non-negative int or tuple of non-negative int or tuple of (non-negative int, non-negative int) or {"same", "valid"}, optional
        Positions with zeros before and after each axis, as of `conv2d`.
    dilation : positive int or tuple of positive int, optional
        Step from one tap of the kernel to the next.
    groups : positive int, optional
        Into how many parts the channels fall, each convolved on its own.
    offset_groups : positive int, optional
        Into how many parts the input channels fall, each with offsets and a modulation of its own; independent of `groups`.

    Returns
    -------
    array, shape (batch, groups * out_group, out_height, out_width)
        Each axis has ``(padded - dilation * (kernel - 1) - 1) // stride + 1`` positions.

    Notes
    -----
    Sizes: ``height >= 1``, ``width >= 1``, ``kernel_height >= 1``, ``kernel_width >= 1``.

    In the letters of `deform_conv2d`, with m the modulation of the offset group of c:

    .. math::

        y_{o,p} = \beta_o + \sum_{c,t} w_{o,c,t}\, m_{p,t}\, x_c(r_{p,t}), \qquad
        \bar z_{c,t,p} = \sum_o w_{o,c,t}\, \bar y_{o,p}, \quad
        \bar m_{p,t} = \sum_c x_c(r_{p,t})\, \bar z_{c,t,p}, \quad
        \bar\delta_{p,t} = m_{p,t} \sum_c \nabla x_c(r_{p,t})\, \bar z_{c,t,p}

    References
    ----------
    .. [1] Zhu et al., "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019, eq. (1). arXiv:1811.11168.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x = np.array([[[[1.0, 2.0, 4.0]]]])
    >>> offset, modulation = np.zeros((1, 2, 1, 3)), np.array([[[[1.0, 0.5, 0.0]]]])
    >>> offset[0, 1, 0] = [0.5, 1.0, 0.5]  # to the right
    >>> refattn.modulated_deform_conv2d(x, offset, modulation, np.ones((1, 1, 1, 1)))
    array([[[[1.5, 2. , 0. ]]]])
    """
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "offset_groups": offset_groups}
    return deformed(x, offset, modulation, weight, bias, **options)
