"""Sample data that never changes: Philox counters, and arithmetic that rounds the same everywhere.

`numpy.random.Generator` may change its distributions between releases; the bits of a bit generator may not.
Every real number drawn here is a multiple of 2**-20 below 8, so that float32 holds it exactly.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn._core.arrays import Array, Booleans, Integers

Shape = int | tuple[int, ...]
STEP = 2.0**-20
PAIRS = 0x7FFF | 0x7FFF << 30
"""Every other field of 15 bits, so that the sum of two has room."""


class Random:
    """Reproducible draws; one seed gives the same arrays on every machine and NumPy release."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(key=seed)

    def _words(self, shape: Shape, bits: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        shape = (shape,) if isinstance(shape, int) else shape
        raw = np.asarray(self._bits.random_raw(math.prod(shape)), dtype=np.uint64)
        return (raw >> np.uint64(64 - bits)).view(np.int64).reshape(shape)

    def normal(self, shape: Shape = ()) -> Array:
        """Bell-shaped, mean 0, variance near 1, between -3.5 and 3.5: the sum of four uniform draws."""
        words = self._words(shape, 64 - 4)  # four fields of 15 bits in one word, added two at a time
        pairs = (words & PAIRS) + ((words >> 15) & PAIRS)
        total = (pairs & (2**30 - 1)) + (pairs >> 30)
        return np.asarray((total - 2 * 0x7FFF) * 56.0 * STEP)  # 56 * 2**-20 * sqrt(4 / 12) * 2**15 is 1.01

    def uniform(self, low: float, high: float, shape: Shape = ()) -> Array:
        """Evenly spread between `low` and `high`, rounded to the step."""
        return np.asarray(np.round((low + (high - low) * (self._words(shape, 20) * STEP)) / STEP) * STEP)

    def integers(self, low: int, high: int, shape: Shape = ()) -> Integers:
        """Whole numbers from `low` to `high` - 1."""
        return low + self._words(shape, 32) % (high - low)

    def booleans(self, probability: float, shape: Shape = ()) -> Booleans:
        """True with the given probability."""
        return self._words(shape, 20) * STEP < probability

    def permutation(self, shape: Shape = ()) -> Integers:
        """The numbers 0, 1, ... in random order, in an array of this shape."""
        words = self._words(shape, 60)
        return np.argsort(words, axis=None, kind="stable").reshape(words.shape)
