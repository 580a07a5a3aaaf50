"""Causal convolution of each channel, as state-space models have it, chunk by chunk."""

from __future__ import annotations

import refattn
from refattn._core import Array, Pullback
from refattn.convolution.causal import CausalConvolved
from refattn_numba._twin import twin_of
from refattn_numba.cpu.conv import causal


@twin_of(refattn.causal_conv1d, narrow=True)
def causal_conv1d(x: Array, weight: Array, bias: Array | None = None, state: Array | None = None) -> tuple[CausalConvolved, Pullback]:
    """The docstring is the reference's."""
    return causal.convolve(x, weight, bias, state)
