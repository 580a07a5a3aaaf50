"""The feature map of linear attention, in one pass."""

from __future__ import annotations

import numpy as np

from refattn._core import Array
from refattn_numba.cpu.jit import kernel
from refattn_numba.cpu.plain.exponential import exp

BLOCK = np.int64(4096)  # numbers of one task


@kernel
def elu_plus_one(x: Array, y: Array, share: int, shares: int) -> None:
    """``y = x + 1`` where x is positive, and its exponential elsewhere."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for first in range(share * BLOCK, x.size, shares * BLOCK):
        given, made = x[first : first + BLOCK], y[first : first + BLOCK]
        for i in range(given.size):
            power = exp(zero if given[i] > 0 else given[i])
            made[i] = given[i] + one if given[i] > 0 else power
