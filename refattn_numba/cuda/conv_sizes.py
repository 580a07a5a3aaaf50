"""The sizes of one convolution on a device, as kernels are told of them."""

from __future__ import annotations

import math
from typing import NamedTuple

from refattn_numba.cpu.conv.problem import Axes
from refattn_numba.cuda.conv_layout import AXES

MOST_POSITIONS, FARTHEST, MOST_CHANNELS = 1 << 30, 1 << 29, 1 << 30
"""Below which numbers of positions of x and of the output, coordinates beside them, and channels stay."""


class Sizes(NamedTuple):
    """Of one convolution: x is (batch, groups * c, *size), the weight (groups * o, c, *kernel), y (batch, groups * o, *out).

    Tap t of output position p reads position ``stride * p + dilation * t - before`` of x, which is 0 outside ``range(size)``.
    """

    batch: int
    groups: int
    c: int
    o: int
    size: Axes
    kernel: Axes
    out: Axes
    stride: Axes
    dilation: Axes
    before: Axes

    @property
    def of_x(self) -> tuple[int, ...]:
        """Its shape, channels last."""
        return (self.batch, *self.size, self.groups * self.c)

    @property
    def of_y(self) -> tuple[int, ...]:
        """Its shape, channels last."""
        return (self.batch, *self.out, self.groups * self.o)

    @property
    def is_depthwise(self) -> bool:
        """Whether each output channel reads one channel of x."""
        return self.c == 1

    def refuse_large(self) -> None:
        """ValueError where a kernel's numbers would not hold it."""
        for name, shape in (("x", self.of_x), ("the output", self.of_y)):
            if (found := math.prod(shape[:-1])) >= MOST_POSITIONS:
                raise ValueError(f"{name} has {found} positions, but on a device must have fewer than {MOST_POSITIONS}: cut the batch")
            if shape[-1] >= MOST_CHANNELS:
                raise ValueError(f"{name} has {shape[-1]} channels, but on a device must have fewer than {MOST_CHANNELS}")
        reach = [n + abs(b) + d * k for n, b, d, k in zip(self.size, self.before, self.dilation, self.kernel, strict=True)]
        reach += [s * n for s, n in zip(self.stride, self.out, strict=True)]
        if max(reach) >= FARTHEST:
            found = f"stride, padding and dilation reach over {max(reach)} positions"
            raise ValueError(f"{found}, but on a device must reach over fewer than {FARTHEST}")

    def fields(self) -> dict[str, int]:
        """Parameters of kernels; channels are those of one group."""
        named = {
            "in": self.size, "out": self.out, "kernel": self.kernel, "stride": self.stride, "dilation": self.dilation, "pad": self.before,
        }  # fmt: skip
        numbers = {f"{name}_{axis}": n for name, axes in named.items() for axis, n in zip(AXES, axes, strict=True)}
        return {"batch": self.batch, "groups": self.groups, "c_in": self.c, "c_out": self.o, **numbers}
