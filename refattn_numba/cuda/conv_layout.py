"""Arrays of a convolution as kernels see them: five axes, (batch, depth, height, width, channels), at any steps.

Kernels want the channels of a position next to one another, and what lies otherwise is copied by a kernel. What a call returns lies as its
x does: with channels last where those of x are, of the caller's axes or in memory alone, as PyTorch has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from refattn.primitives.padding import PaddingMode
from refattn_numba.cuda import conv_small_configurations, driver
from refattn_numba.cuda.arrays import ITEM_BYTES, ROW_BYTES, DeviceArray, merged, read
from refattn_numba.cuda.kernel import Kernel
from refattn_numba.cuda.launching import launch
from refattn_numba.cuda.vectors import BORDERS, VECTOR_BYTES

AXES = "d", "h", "w"
STEPS = ("batch", *AXES)


class Five(NamedTuple):
    """An array with five axes.

    Attributes
    ----------
    array : DeviceArray
        With the axes that its library knows.
    shape, steps : tuple of int
        Sizes, and steps in numbers, of (batch, depth, height, width, channels); axes of one position have the step 0.
    """

    array: DeviceArray
    shape: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def address(self) -> int:
        """Of the first number."""
        return self.array.memory.address

    @property
    def is_aligned(self) -> bool:
        """Whether every position begins at a multiple of 16 bytes, and no step is beyond 2**31 of these."""
        steps = [step * ITEM_BYTES[self.array.dtype] for step in self.steps[:-1]]
        return not any(at % ROW_BYTES for at in (self.address, *steps)) and max(map(abs, steps)) < ROW_BYTES << 31

    @property
    def has_rows(self) -> bool:
        """Whether the channels of a position are next to one another."""
        return self.shape[-1] <= 1 or self.steps[-1] == 1

    @property
    def is_wide(self) -> bool:
        """Whether these can be read 16 bytes at a time."""
        return self.has_rows and self.is_aligned and self.shape[-1] % (VECTOR_BYTES // ITEM_BYTES[self.array.dtype]) == 0

    @property
    def positions(self) -> int:
        """In all."""
        return math.prod(self.shape[:-1])

    @property
    def row_step(self) -> int | None:
        """From one position to the next, whatever the axis; None where there is no such step."""
        return merged(self.shape[:-1], self.steps[:-1])

    def fields(self, name: str, prefix: str = "") -> dict[str, int]:
        """Parameters of a kernel: the address, and a step for each axis but the channels."""
        steps = zip(STEPS, self.steps, strict=False)
        return {name: self.address, **{f"{prefix}{name}_{axis}": step for axis, step in steps}}


def five(array: DeviceArray, *, is_last: bool) -> Five:
    """An array (batch, channels, ...), or (batch, ..., channels)."""
    count = len(array.shape)
    order = (*range(count),) if is_last else (0, *range(2, count), 1)
    sizes = [array.shape[i] for i in order]
    steps = [array.memory.strides[i] if array.shape[i] > 1 else 0 for i in order]
    absent = 5 - count
    return Five(array, (sizes[0], *(1,) * absent, *sizes[1:]), (steps[0], *(0,) * absent, *steps[1:]))


class Style(NamedTuple):
    """How the caller's arrays lie.

    Attributes
    ----------
    axes : int
        Of x and of the output.
    is_last : bool
        Whether channels are the last axis.
    is_last_in_memory : bool
        Whether they are in memory alone.
    """

    axes: int
    is_last: bool
    is_last_in_memory: bool

    @property
    def has_rows(self) -> bool:
        """Whether the channels of a position are next to one another."""
        return self.is_last or self.is_last_in_memory


def style_of(x: DeviceArray, *, is_last: bool) -> Style:
    """That of x; of a weight too, whose axes are those of a channels-first x."""
    found, count = five(x, is_last=is_last), len(x.shape)
    has_rows = found.shape[-1] > 1 and found.positions > 1 and found.steps[-1] == 1 and found.row_step == found.shape[-1]
    return Style(count, is_last, not is_last and has_rows and x.library.turned(x.owner, (*range(count),)) is not None)


class Queue:
    """Where the kernels of a call are launched."""

    def __init__(self, x: DeviceArray) -> None:
        self.x, self.device, self.stream = x, x.memory.device, x.library.stream(x.owner)
        self.facts = driver.current().facts(self.device)
        self.architecture = self.facts.architecture  # an error where the device is too old

    def start(self, kernel: Kernel, blocks: int, fields: Mapping[str, int | float]) -> None:
        """Launch a kernel; nothing where there are no blocks."""
        launch(kernel, self.device, self.stream, blocks, fields)

    def finish(self) -> None:
        """Wait for the kernels where the caller's library would not."""
        if not self.x.library.in_order:
            driver.current().synchronize(self.device, self.stream)

    def empty(self, shape: Sequence[int], axes: int = 5) -> Five:
        """A new array with five axes, or with so many of the first and last."""
        sizes = (shape[0], *shape[6 - axes : -1], shape[-1])
        return five(self.x.packed(sizes, self.x.dtype), is_last=True)

    def moved(
        self, source: Five, target: Five, *, low: Sequence[int] = (0, 0, 0), mode: PaddingMode = "zeros", is_back: bool = False
    ) -> Five:
        """Give each position of the target what stands there of the source, which is `low` further on.

        Or, going back, all that is a copy of it.
        """
        face = "conv_fold" if is_back else "conv_place"
        kernel = conv_small_configurations.choose(face, self.x.dtype)  # pyright: ignore[reportArgumentType]
        inner, outer = (target, source) if is_back else (source, target)
        high = [n - a - m for n, a, m in zip(outer.shape[1:4], low, inner.shape[1:4], strict=True)]
        fields: dict[str, int] = {"source": source.address, "target": target.address, "groups": 1, "batch": target.shape[0]}
        for name, sizes in (("target", target.shape[1:4]), ("source", source.shape[1:4]), ("low", low), ("high", high)):
            fields |= {f"{name}_{axis}": size for axis, size in zip(AXES, sizes, strict=True)}
        for name, x in (("source", source), ("target", target)):
            fields |= {f"of_{name}_group": 0, f"of_{name}_channel": x.steps[-1], f"{name}_vectors": int(x.is_wide)}
            fields |= {f"of_{name}_{axis}": step for axis, step in zip(STEPS, x.steps, strict=False)}
        has_rows = source.has_rows and target.has_rows
        fields |= {"channels": target.shape[-1], "mode": BORDERS[mode], "by_channel": int(has_rows)}
        chunks = -(-target.shape[-1] // kernel.config.vector)
        self.start(kernel, -(-chunks * target.positions // kernel.tile), fields)
        return target

    def in_rows(self, x: Five) -> Five:
        """Itself, or a copy in which the channels of a position are next to one another."""
        return x if x.has_rows else self.moved(x, self.empty(x.shape))

    def with_one_step(self, x: Five) -> Five:
        """Itself, or a copy whose positions follow one another."""
        return x if x.has_rows and x.row_step is not None else self.moved(x, self.empty(x.shape))

    def delivered(self, x: Five, style: Style, *, is_copied: bool = False) -> DeviceArray:
        """What the caller gets of an array that `empty` made with his axes."""
        if not style.has_rows:
            shape = (x.shape[0], x.shape[-1], *x.shape[6 - style.axes : -1])
            target = five(self.x.packed(shape, self.x.dtype), is_last=False)
            return self.moved(x, target).array
        owner = (self.moved(x, self.empty(x.shape, style.axes)) if is_copied else x).array.owner
        return self.labelled(owner, style)

    def labelled(self, owner: Any, style: Style) -> DeviceArray:
        """An array with channels last under the caller's axes."""
        library = self.x.library
        if style.is_last_in_memory:
            owner = library.turned(owner, (0, style.axes - 1, *range(1, style.axes - 1)))
        return read("output", owner, library)
