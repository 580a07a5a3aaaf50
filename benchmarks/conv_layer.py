"""A convolution as a problem to be solved: its sizes, the work that it is, and the arrays drawn for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from benchmarks.cases import on_lines

Face: TypeAlias = Literal["forward", "dX", "dW"]

FACES: tuple[Face, ...] = ("forward", "dX", "dW")


@dataclass(frozen=True)
class Layer:
    """All axes of positions are alike, but for `size`; `channels_last` says how x and the cotangent lie in memory."""

    batch: int
    channels: int
    filters: int
    size: tuple[int, ...]
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    channels_last: bool = False

    @property
    def axes(self) -> int:
        """How many axes positions have."""
        return len(self.size)

    @property
    def out(self) -> tuple[int, ...]:
        """Positions of the output."""
        return tuple((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in self.size)

    @property
    def operations(self) -> float:
        """Of each face; taps that fall on padding are none, since nobody has to multiply by 0."""
        taps = math.prod(self._taps(n, m) for n, m in zip(self.size, self.out, strict=True))
        return 2.0 * self.batch * self.filters * self.channels // self.groups * taps

    @property
    def least_bytes(self) -> float:
        """Of each face, which reads two of the arrays and writes the third."""
        x, y = self.channels * math.prod(self.size), self.filters * math.prod(self.out)
        return 4.0 * (self.batch * (x + y) + self.filters * self.channels // self.groups * self.kernel**self.axes)

    def _taps(self, size: int, out: int) -> int:
        """Along one axis, over all outputs."""
        reads = np.arange(out)[:, None] * self.stride + np.arange(self.kernel) - self.padding
        return int(((reads >= 0) & (reads < size)).sum())

    def drawn(self) -> Given:
        """Arrays, the same each time; outputs have a variance of about 1."""
        random, taps = np.random.default_rng(0), self.kernel**self.axes
        x = random.standard_normal((self.batch, self.channels, *self.size), np.float32)
        weight = random.standard_normal((self.filters, self.channels // self.groups, *(self.kernel,) * self.axes), np.float32)
        weight /= np.float32(math.sqrt(taps * self.channels / self.groups))
        dy = random.standard_normal((self.batch, self.filters, *self.out), np.float32)
        return Given(self, *((_last(x), on_lines(weight), _last(dy)) if self.channels_last else map(on_lines, (x, weight, dy))))


def _last(x: np.ndarray) -> np.ndarray:
    """The same numbers, channels next to one another."""
    return np.moveaxis(on_lines(np.moveaxis(x, 1, -1)), -1, 1)


class Given(NamedTuple):
    """A layer and its arrays, channels on axis 1."""

    layer: Layer
    x: np.ndarray
    weight: np.ndarray
    dy: np.ndarray
