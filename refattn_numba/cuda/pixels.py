"""Operations on the positions of images, volumes and sequences, whose channels are the rows of tiles.

Positions are counted along width, height, depth and batch, in this order. A triple is of depth, height and width; steps are in bytes, from
example to example first. Position i along an axis of a grid is ``start + scale * i`` along that of an array.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from refattn_numba.cuda.fragments import Element, bytes_of, stride_of
from refattn_numba.cuda.operations import Many, Operation

TRIPLE, STEPS = Many("int32", 3), Many("int64", 4)
FAR = -(2**30)
"""Outside every array, whatever tap is added."""

GRID = ("int32", "int32", TRIPLE, TRIPLE, TRIPLE)
"""The first position, the number of positions, sizes of the grid, scale and start."""


def place_of(e: Any, index: Any, sizes: Sequence[Any]) -> list[Any]:
    """Numbers along batch, depth, height and width."""
    made = []
    for size in (sizes[2], sizes[1], sizes[0]):
        above = e.quotient(index, size)
        made.append(index - above * size)
        index = above
    return [index, *reversed(made)]


def address_of(e: Any, base: Any, place: Sequence[Any], steps: Sequence[Any]) -> Any:
    """Of a position."""
    for number, step in zip(place, steps, strict=True):
        base = e.multiply_add_wide(number, step, base)
    return base


def is_inside(e: Any, place: Sequence[Any], sizes: Sequence[Any]) -> Any:
    """Whether no number is negative or too large."""
    of_depth, of_height, of_width = (e.below(x, size) for x, size in zip(place, sizes, strict=True))
    return of_depth & of_height & of_width


class Chunks:
    """Which chunks of 16 bytes of a tile a thread copies: the same part of some rows, `apart` rows from each other."""

    def __init__(self, element: Element, rows: int, size: int, threads: int) -> None:
        in_row = size * bytes_of(element) // 16
        if threads % in_row or rows * in_row % threads:
            raise ValueError(f"{threads} threads, but {rows} rows of {in_row} chunks")
        self.bits, self.last, self.apart = in_row.bit_length() - 1, in_row - 1, threads // in_row
        self.rows, self.count = rows, rows // self.apart

    def row(self, thread: Any) -> Any:
        """The first one."""
        return thread >> self.bits

    def place(self, thread: Any) -> Any:
        """Number of the chunk in its row."""
        return thread & self.last

    def places(self, e: Any, first: Any, count: Any, sizes: Any) -> Iterator[tuple[Any, list[Any]]]:
        """For each row whether there is such a position, and its place in the grid; `first` is the thread's own."""
        for i in range(self.count):
            index = first + i * self.apart
            there_is = index < count
            yield there_is, place_of(e, e.select(there_is, index, e.integer(0)), sizes)


def row_of(chunks: Chunks) -> Operation:
    """The first row of a thread."""
    return Operation(lambda _, thread: chunks.row(thread), ("int32",), "int32")


def positions(chunks: Chunks) -> Operation:
    """Triples of all rows of a thread, far outside where there is no such position."""

    def run(e: Any, first: Any, count: Any, sizes: Any, scale: Any, start: Any) -> list[Any]:
        made = []
        for there_is, (_, *place) in chunks.places(e, first, count, sizes):
            made += [e.select(there_is, start[a] + scale[a] * place[a], e.integer(FAR)) for a in range(3)]
        return made

    return Operation(run, GRID, Many("int32", 3 * chunks.count))


def addresses(chunks: Chunks) -> Operation:
    """Of a thread's part of its rows; where a position lies outside, of what is not there."""

    def run(e: Any, first: Any, count: Any, sizes: Any, scale: Any, start: Any, base: Any, steps: Any, thread: Any) -> list[Any]:
        base = base + e.wide(chunks.place(thread) * 16)
        return [
            address_of(e, base, [batch, *(start[a] + scale[a] * place[a] for a in range(3))], steps)
            for _, (batch, *place) in chunks.places(e, first, count, sizes)
        ]

    return Operation(run, (*GRID, "int64", STEPS, "int32"), Many("int64", chunks.count))


def swizzled_place(chunks: Chunks, thread: Any) -> Any:
    """Where a thread's part of its first row stands in rows of 128 bytes, as `warpgroups` tells; in its other rows it does too."""
    if chunks.last != 7 or chunks.apart % 8:
        raise ValueError(f"rows of {chunks.last + 1} chunks, {chunks.apart} apart")
    return chunks.row(thread) * 128 + (chunks.place(thread) ^ (chunks.row(thread) & 7)) * 16


def copy_positions(element: Element, size: int, chunks: Chunks, *, is_swizzled: bool = False) -> Operation:
    """Start copies of one tap's rows to shared memory, zeros where the tap is outside, and from channel `left` on.

    `tap` is added to all positions, `offset` to all addresses.
    """
    stride, per_chunk = 128 if is_swizzled else stride_of(element, size), 16 // bytes_of(element)

    def run(e: Any, to: Any, at: Any, origins: Any, tap: Any, offset: Any, sizes: Any, left: Any, thread: Any) -> None:
        to = to + (swizzled_place(chunks, thread) if is_swizzled else chunks.row(thread) * stride + chunks.place(thread) * 16)
        has_channels = chunks.place(thread) * per_chunk < left
        for i in range(chunks.count):
            place = [origins[3 * i + a] + tap[a] for a in range(3)]
            wanted = e.select(is_inside(e, place, sizes) & has_channels, e.integer(16), e.integer(0))
            e.copy_async(to + i * chunks.apart * stride, at[i] + offset, wanted)

    takes = ("int32", Many("int64", chunks.count), Many("int32", 3 * chunks.count), TRIPLE, "int64", TRIPLE, "int32", "int32")
    return Operation(run, takes, None)


# Positions that are summed over: those of a thread's rows, which all go on by the depth of a tile


def first_positions(chunks: Chunks) -> Operation:
    """Numbers along batch, depth, height and width of all rows of a thread, from its first on; past the end the batch is too large."""

    def run(e: Any, first: Any, sizes: Any) -> list[Any]:
        return [x for i in range(chunks.count) for x in place_of(e, first + i * chunks.apart, sizes)]

    return Operation(run, ("int32", TRIPLE), Many("int32", 4 * chunks.count))


def digits() -> Operation:
    """A number of positions as it is added to each of these numbers."""
    return Operation(place_of, ("int32", TRIPLE), Many("int32", 4))


def origin() -> Operation:
    """Where a position of the grid stands in an array, from its numbers along batch and the three axes."""
    return Operation(lambda e, number, scale, start: _standing(number, scale, start), (Many("int32", 4), TRIPLE, TRIPLE), TRIPLE)


def address() -> Operation:
    """The same as an address."""

    def run(e: Any, base: Any, number: Any, scale: Any, start: Any, steps: Any) -> Any:
        return address_of(e, base, [number[0], *_standing(number, scale, start)], steps)

    return Operation(run, ("int64", Many("int32", 4), TRIPLE, TRIPLE, STEPS), "int64")


def _standing(number: Any, scale: Any, start: Any) -> list[Any]:
    return [start[a] + scale[a] * number[a + 1] for a in range(3)]


def later_positions(chunks: Chunks) -> Operation:
    """What follows so much later, with carries from width to height and on."""

    def run(e: Any, at: Any, more: Any, sizes: Any) -> list[Any]:
        made = []
        for i in range(chunks.count):
            batch, *place = at[4 * i : 4 * i + 4]
            carry = e.integer(0)
            for a in (2, 1, 0):
                x = place[a] + more[a + 1] + carry
                is_over = x >= sizes[a]
                place[a], carry = e.select(is_over, x - sizes[a], x), e.select(is_over, e.integer(1), e.integer(0))
            made += [batch + more[0] + carry, *place]
        return made

    kind = Many("int32", 4 * chunks.count)
    return Operation(run, (kind, Many("int32", 4), TRIPLE), kind)


def copy_summed(element: Element, stride: int, chunks: Chunks, blocks: int = 0) -> Operation:
    """Start copies of rows to shared memory: zeros outside the array, and from channel `left` on. Steps are in 16 bytes.

    Where there are `blocks` of 64 channels, they come one after the other, as `warpgroups` tells, and not side by side.
    """
    per_chunk = 16 // bytes_of(element)

    def run(
        e: Any, to: Any, base: Any, at: Any, batches: Any, scale: Any, start: Any, sizes: Any, steps: Any, left: Any, thread: Any
    ) -> None:
        to = to + (swizzled_place(chunks, thread) if blocks else chunks.row(thread) * stride + chunks.place(thread) * 16)
        base = base + e.wide(chunks.place(thread) * 16)
        for i in range(chunks.count):
            batch, *place = at[4 * i : 4 * i + 4]
            place = [start[a] + scale[a] * place[a] for a in range(3)]
            offset = e.wide(e.integer(0))
            for number, step in zip((batch, *place), steps, strict=True):
                offset = e.multiply_add_longer(number, step, offset)
            is_there = (batch < batches) & is_inside(e, place, sizes)
            for block in range(max(blocks, 1)):
                size = e.select(is_there & (chunks.place(thread) * per_chunk + 64 * block < left), e.integer(16), e.integer(0))
                e.copy_async(to + (block * chunks.rows + i * chunks.apart) * stride, base + (offset << 4) + 128 * block, size)

    takes = ("int32", "int64", Many("int32", 4 * chunks.count), "int32", TRIPLE, TRIPLE, TRIPLE, Many("int32", 4), "int32", "int32")
    return Operation(run, takes, None)


# Rows that begin at any number, of any number of channels: taps and channels are one axis, whose numbers are read one by one


def load_taps(element: Element, count: int) -> Operation:
    """Numbers of a row that `count` taps and channels in turn see, from number `first` of `total` on, as 16 or 32 bits.

    `counts` are taps along height and width, and channels; a tap moves the address by `tap_steps` and the position by `tap`. Zeros outside
    the array, and where not `is_there`.
    """

    def run(
        e: Any, base: Any, first: Any, total: Any, counts: Any, channel_step: Any, tap_steps: Any, origin: Any, tap: Any, sizes: Any, is_there: Any
    ) -> list[Any]:  # fmt: skip
        number, found = place_of(e, first, counts), []
        for i in range(count):
            offset = e.wide(number[3]) * channel_step
            for x, step in zip(number[:3], tap_steps, strict=True):
                offset = offset + e.wide(x) * step
            inside = is_inside(e, [origin[a] + tap[a] * number[a] for a in range(3)], sizes)
            found.append(e.load(base + offset, element, inside & (first + i < total) & (is_there != 0)))
            carry = e.integer(1)
            for a, size in ((3, counts[2]), (2, counts[1]), (1, counts[0])):
                x = number[a] + carry
                carry = e.select(x == size, e.integer(1), e.integer(0))
                number[a] = e.select(x == size, e.integer(0), x)
            number[0] = number[0] + carry
        if element == "float32":
            return [e.bits_of(x) for x in found]
        return [e.packed(found[i], found[i + 1], element) for i in range(0, count, 2)]

    takes = ("int64", "int32", "int32", TRIPLE, "int64", Many("int64", 3), TRIPLE, TRIPLE, TRIPLE, "int32")
    return Operation(run, takes, registers_of(element, count))


def registers_of(element: Element, count: int) -> Many:
    """That hold so many numbers."""
    return Many("int32", count * bytes_of(element) // 4)


def store_bits(element: Element, count: int) -> Operation:
    """To one place in shared memory."""

    def run(e: Any, to: Any, bits: Any) -> None:
        for i in range(0, len(bits), 4):
            e.store_shared(to + 4 * i, bits[i : i + 4], to >= 0)

    return Operation(run, ("int32", registers_of(element, count)), None)
