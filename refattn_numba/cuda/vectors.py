"""Operations of one thread on a few numbers that follow one another in global memory: 16 bytes at once, or one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refattn_numba.cuda.fragments import Element, bytes_of, each
from refattn_numba.cuda.operations import Many, Operation

VECTOR_BYTES = 16
BORDERS = {"zeros": 0, "reflect": 1, "replicate": 2, "circular": 3}


def vector_of(element: Element) -> int:
    """How many numbers a thread reads at once."""
    return VECTOR_BYTES // bytes_of(element)


def kind_of(count: int) -> Many:
    """Of so many numbers."""
    return Many("float32", count)


def _numbers(e: Any, element: Element, bits: Sequence[Any]) -> list[Any]:
    """What 16 bytes hold."""
    if element == "float32":
        return [e.float_of(x) for x in bits]
    if element == "bfloat16":
        return [half for x in bits for half in (e.widened(x, element), e.float_of(x & -65536))]
    return [half for x in bits for half in (e.widened(x, element), e.widened(x >> 16, element))]


def _bits(e: Any, element: Element, numbers: Sequence[Any]) -> list[Any]:
    """The other way."""
    if element == "float32":
        return [e.bits_of(x) for x in numbers]
    return [e.packed(numbers[i], numbers[i + 1], element) for i in range(0, len(numbers), 2)]


def _loaded(e: Any, element: Element, count: int, address: Any, valid: Any) -> list[Any]:
    if count == 1:
        return [e.load(address, element, valid)]
    return _numbers(e, element, e.load_vector(address, valid))


def load(element: Element, count: int) -> Operation:
    """Numbers that follow one another; zeros where not `left > 0`."""
    return Operation(lambda e, address, left: _loaded(e, element, count, address, left > 0), ("int64", "int32"), kind_of(count))


def _store(e: Any, element: Element, address: Any, numbers: Sequence[Any], valid: Any) -> None:
    if len(numbers) > 1:
        e.store_vector(address, _bits(e, element, numbers), valid)
    else:
        bits = e.bits_of(numbers[0]) if element == "float32" else e.packed(numbers[0], numbers[0], element)
        e.store(address, bits, bytes_of(element), valid)


def store(element: Element, count: int) -> Operation:
    """The other way, where `left > 0`."""
    return Operation(
        lambda e, address, numbers, left: _store(e, element, address, numbers, left > 0), ("int64", kind_of(count), "int32"), None
    )


def store_run(element: Element, count: int, positions: int) -> Operation:
    """Of some positions, `step` bytes from one another, the first `left`."""

    def run(e: Any, address: Any, step: Any, numbers: Any, left: Any) -> None:
        for i in range(positions):
            _store(e, element, e.stepped(address, step, i), numbers[count * i : count * (i + 1)], left > i)

    return Operation(run, ("int64", "int64", kind_of(count * positions), "int32"), None)


def load_apart(element: Element, count: int) -> Operation:
    """Numbers `step` bytes from one another, the first `left` of them; zeros in place of the others."""

    def run(e: Any, address: Any, step: Any, left: Any) -> list[Any]:
        return [e.load(e.stepped(address, step, i), element, left > i) for i in range(count)]

    return Operation(run, ("int64", "int64", "int32"), kind_of(count))


def store_apart(element: Element, count: int) -> Operation:
    """The other way."""

    def run(e: Any, address: Any, step: Any, numbers: Any, left: Any) -> None:
        for i, x in enumerate(numbers):
            bits = e.bits_of(x) if element == "float32" else e.packed(x, x, element)
            e.store(e.stepped(address, step, i), bits, bytes_of(element), left > i)

    return Operation(run, ("int64", "int64", kind_of(count), "int32"), None)


def added(count: int) -> Operation:
    """Number by number."""
    return each(kind_of(count), lambda e, x, y: x + y, kind_of(count))


def _place(e: Any, at: Any, stride: Any, size: Any, *, is_spread: bool) -> tuple[Any, Any]:
    """The position that is read, and whether there is one: `at` itself, or the one that `stride` takes there."""
    place = e.quotient(e.select(at > 0, at, at & 0), stride) if is_spread else at
    is_there = (place >= 0) & (place < size) & (at >= 0)
    return place, is_there & (place * stride == at) if is_spread else is_there


def place(*, is_spread: bool) -> Operation:
    """Where tap `tap` of position `p` reads along an axis; -1 where it reads nothing.

    A correlation reads ``stride * p + dilation * tap - pad``; what spreads, whose positions are those of the input, the output position
    that saw them.
    """

    def run(e: Any, p: Any, tap: Any, stride: Any, dilation: Any, pad: Any, size: Any) -> Any:
        at = p + pad - tap * dilation if is_spread else p * stride + tap * dilation - pad
        found, is_there = _place(e, at, stride, size, is_spread=is_spread)
        return e.select(is_there, found, e.integer(-1))

    return Operation(run, ("int32", "int32", "int32", "int32", "int32", "int32"), "int32")


def add_tap(element: Element, count: int, positions: int, *, is_spread: bool) -> Operation:
    """To the sums of some positions in a row, one tap's products: of one vector of weights and one of each position's.

    `address` is of position 0 of the row that is read, `step` in bytes, `at` where the first position reads, of `size` positions, if
    `left >= 0`. From one position to the next it is `stride` more, or, where it spreads, 1 in `stride`.
    """
    kind = kind_of(count * positions)

    def run(e: Any, sums: Any, weights: Any, address: Any, step: Any, at: Any, stride: Any, size: Any, left: Any) -> list[Any]:
        made: list[Any] = []
        for i in range(positions):
            there = at + i if is_spread else at + stride * i
            found, is_there = _place(e, there, stride, size, is_spread=is_spread)
            loaded = _loaded(e, element, count, e.multiply_add_wide(found, step, address), is_there & (left >= 0))
            of_position = sums[count * i : count * (i + 1)]
            made += [e.multiply_add(w, x, s) for w, x, s in zip(weights, loaded, of_position, strict=True)]
        return made

    return Operation(run, (kind, kind_of(count), "int64", "int64", "int32", "int32", "int32", "int32"), kind)


def repeated(count: int, positions: int) -> Operation:
    """The same numbers for each position."""
    return Operation(lambda e, numbers: list(numbers) * positions, (kind_of(count),), kind_of(count * positions))


def add_products(element: Element, count: int, positions: int) -> Operation:
    """To sums, the products of the numbers at `positions` places of one row and those of another, both by their first address and step.

    Place i of the left row is there where ``i < left``, of the right one where ``0 <= at + stride * i < size``.
    """
    kind = kind_of(count)

    def run(
        e: Any, sums: Any, address: Any, step: Any, left: Any, other: Any, other_step: Any, at: Any, stride: Any, size: Any
    ) -> list[Any]:
        made = list(sums)
        for i in range(positions):
            there = at + stride * i
            is_there = (left > i) & (there >= 0) & (there < size)
            a = _loaded(e, element, count, e.stepped(address, step, i), is_there)
            b = _loaded(e, element, count, e.multiply_add_wide(there, other_step, other), is_there)
            made = [e.multiply_add(x, y, s) for x, y, s in zip(a, b, made, strict=True)]
        return made

    return Operation(run, (kind, "int64", "int64", "int32", "int64", "int64", "int32", "int32", "int32"), kind)


def smaller() -> Operation:
    """Of two int32."""
    return Operation(lambda e, a, b: e.smallest(a, b), ("int32", "int32"), "int32")


def border_place() -> Operation:
    """Which position of an axis stands at position `i` beside or in it, by a mode of `BORDERS`; -1 where none does."""

    def run(e: Any, i: Any, size: Any, mode: Any) -> Any:
        before, after = i < 0, i >= size
        last = size - 1
        turned = e.select(before, 0 - i, e.select(after, last + last - i, i))
        nearest = e.select(before, i & 0, e.select(after, last, i))
        around = e.select(before, i + size, e.select(after, i - size, i))
        nothing = e.select(before | after, e.integer(-1), i)
        by_mode = ((BORDERS["reflect"], turned), (BORDERS["replicate"], nearest), (BORDERS["circular"], around))
        for code, found in by_mode:
            nothing = e.select(mode == code, found, nothing)
        return e.select(nothing < size, nothing, e.integer(-1))

    return Operation(run, ("int32", "int32", "int32"), "int32")


def source_of_border() -> Operation:
    """Of the positions of a padded axis that are copies of `p`, number `k`, or -1: first its own, then those of the border that are."""
    place_in = border_place().run

    def run(e: Any, p: Any, k: Any, low: Any, size: Any, mode: Any) -> Any:
        border = e.select(k <= low, k - 1, k - 1 + size)
        there = place_in(e, border - low, size, mode)
        return e.select(k == 0, p + low, e.select(there == p, border, e.integer(-1)))

    return Operation(run, ("int32", "int32", "int32", "int32", "int32"), "int32")
