"""Deformable convolutions: samples of some positions at a time, and a product with the weights, in the cache, on all cores."""

from __future__ import annotations

import refattn
from refattn._core import Array, Pullback
from refattn.convolution.rule import Padding, PerAxis
from refattn_numba._twin import twin_of
from refattn_numba.cpu.deformable import convolve_deformed


@twin_of(refattn.deform_conv2d)
def deform_conv2d(
    x: Array,
    offset: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    offset_groups: int = 1,
) -> tuple[Array, Pullback]:
    """The docstring is the reference's."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "offset_groups": offset_groups}
    return convolve_deformed(x, offset, None, weight, bias, **options)


@twin_of(refattn.modulated_deform_conv2d)
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
    """The docstring is the reference's."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "offset_groups": offset_groups}
    return convolve_deformed(x, offset, modulation, weight, bias, **options)
