"""Sums over very many keys or queries, and how far from them an honest kernel may be."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._core import Array
from refattn.testing.attention_budget import SAFETY, growth
from refattn.testing.precision import Format

SHIFTS = (0.0, 0.25, 0.5, 0.75)
"""Binary exponents by which stored numbers are moved before they are rounded, since a kernel's own maximum moves them too."""


def stored(x: Array, target: Format) -> Array:
    """The nearest numbers of a format; those of 16 bits by the processor, which `Format.round` is too slow for here."""
    if target.name == "float16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float64)
    if target.name == "bfloat16":
        bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
        even = (bits >> np.uint32(16)) & np.uint32(1)
        return ((bits + (np.uint32(0x7FFF) + even)) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    return target.round(x)


class LongSum:
    r"""The sum of :math:`x_j y_j` over very many j, block by block, with its probable error.

    A worst-case bound relative to the sum S of the magnitudes says nothing of a million keys: flat attention leaves an output
    of S / 1000, and the unit roundoff of bfloat16 is S / 512. Three things are followed instead.

    - Additions. A kernel adds in any order within a block, and blocks in order, from either end, or in contiguous parts. What
      it holds is then at most ``a = 2 * peak + |total|`` in magnitude, with the largest of the sums up to a block's edge, and
      the magnitudes w of a block within one: the error is ``e * (sqrt(sum g**2) * a + sqrt(sum (g * w)**2))``, g the growth
      of a sum over a block. In one block it is ``e * g * w``.
    - Stored factors. Where x is kept in 16 bits, it is rounded here too, at four positions between powers of two, and the root
      mean square of what this changes counts: numbers that lie close together, or repeat, err alike, which no model of
      independent errors knows. The model of independent errors, ``u * sqrt(sum (x * y)**2)``, is added.
    - Other errors of x, which the caller states, independent of each other.
    """

    def __init__(self, shape: tuple[int, ...], target: Format) -> None:
        self.target = target
        self.total, self.size = np.zeros(shape), np.zeros(shape)
        self._peak, self._spread, self._widths = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self._growth, self._blocks = np.zeros((*shape[:-1], 1)), np.zeros((*shape[:-1], 1))
        simulated = target.unit > target.accumulator
        self._stored = [np.zeros(shape) for _ in SHIFTS] if simulated else []

    def add(self, at: Any, x: Array, y: Array, own: Any = 0.0, unit: Any = 1.0) -> None:
        """One block: rows `at` gain ``x @ y``; `own` is the error of x, and x times `unit` is what a kernel stores."""
        g = growth(x.shape[-1])
        width = np.abs(x) @ np.abs(y)
        self._peak[at] = np.maximum(self._peak[at], np.abs(self.total[at]))
        self.total[at] += x @ y
        self.size[at] += width
        self._widths[at] += (g * width) ** 2
        self._growth[at] += g**2
        self._blocks[at] += 1
        self._spread[at] += (own**2 + (self.target.unit * x) ** 2) @ y**2
        for error, shift in zip(self._stored, SHIFTS, strict=False):
            factor = unit * 2.0**shift
            moved = x * factor
            rounded = stored(moved, self.target)
            error[at] += (np.where(np.isfinite(rounded), rounded - moved, 0) / factor) @ y

    @property
    def error(self) -> Array:
        """A bound of the error, besides that of storing the sum itself."""
        held = np.where(self._blocks > 1, 2 * self._peak + np.abs(self.total), 0)
        additions = self.target.accumulator * (np.sqrt(self._growth) * held + np.sqrt(self._widths))
        rounded = sum((e**2 for e in self._stored), np.zeros(())) / len(SHIFTS)
        return additions + SAFETY * np.sqrt(self._spread + rounded)


def growths(counts: Any) -> Array:
    """`growth` of many numbers of terms."""
    return 4 + np.sqrt(np.maximum(counts, 1))


def quadrature(*errors: Any) -> Any:
    """Independent errors together; `np.hypot` would keep squares from underflow, and take ten times as long."""
    return np.sqrt(sum(error**2 for error in errors))
