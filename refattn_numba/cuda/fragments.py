"""Operations of a warp on tiles that it holds in registers, for numbers of 16 bits and of 32.

A tile of R by C sums is, for each 16 rows and each 8 columns in turn, four registers of a lane: rows l // 4 and l // 4 + 8, columns
2 (l % 4) and one more (PTX ISA, "Matrix fragments for mma.m16n8k16"). What a product takes on its left has the same places, so weights
go from one product into the next without leaving their lane. In shared memory a row takes 16 bytes more than its numbers, so that eight
lanes read eight rows from different banks.

float32 is multiplied as three products of TF32, of 11 bits each: large by large, and both times large by small. What is left out is 2**-22
of a product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from refattn_numba.cuda.operations import Many, Operation

Element: TypeAlias = Literal["bfloat16", "float16", "float32"]
Eight: TypeAlias = Literal["float8_e4m3fn"]
Stored: TypeAlias = Element | Eight
"""What operands may be made of; of 8 bits they are for compute capability 9.0 alone."""

FLOAT8: Eight = "float8_e4m3fn"
LOG2_E, LN_2 = 1.4426950408889634, 0.6931471805599453


def bytes_of(element: Stored) -> int:
    """Of one number."""
    return {"float32": 4, FLOAT8: 1}.get(element, 2)


def stride_of(element: Stored, size: int) -> int:
    """Bytes from one row of `size` numbers to the next in shared memory."""
    return size * bytes_of(element) + 16


class Tile(NamedTuple):
    """Sums of one warp."""

    rows: int
    columns: int

    @property
    def kind(self) -> Many:
        """Of its registers."""
        return Many("float32", self.rows * self.columns // 32)

    @property
    def of_rows(self) -> Many:
        """A number for each of a lane's rows."""
        return Many("float32", self.rows // 8)

    @property
    def of_columns(self) -> Many:
        """A number for each of a lane's columns."""
        return Many("float32", self.columns // 4)

    def places(self) -> Iterator[tuple[int, int, int]]:
        """For each register the number of its row among the lane's, and row and column from the lane's first."""
        for i in range(self.kind.count):
            block, c = divmod(i, 4)
            m, n = divmod(block, self.columns // 8)
            yield 2 * m + c // 2, 16 * m + 8 * (c // 2), 8 * n + c % 2


def _columns(tile: Tile, m: int, n: int) -> slice:
    """Four registers of a tile."""
    start = 4 * (m * (tile.columns // 8) + n)
    return slice(start, start + 4)


def _right_offset(e: Any, lane: Any, stride: int) -> Any:
    """The same for a right operand whose columns are rows in memory."""
    return ((lane & 7) + (((lane >> 4) & 1) * 8)) * stride + ((lane >> 3) & 1) * 16


def _left_offset(e: Any, lane: Any, stride: int) -> Any:
    return (lane & 15) * stride + ((lane >> 4) & 1) * 16


# Products


def _halves(e: Any, bits: Any) -> tuple[Any, Any]:
    """A float32 as two numbers in TF32."""
    large = e.narrowed(e.float_of(bits))
    return large, e.narrowed(e.float_of(bits) - e.float_of(large))


def _multiply(e: Any, element: Element, sums: Any, a: Any, b: Any) -> Any:
    """One product; of float32 the operands are pairs of halves."""
    if element != "float32":
        return e.product(element, sums, a, b)
    (a_large, a_small), (b_large, b_small) = zip(*a, strict=True), zip(*b, strict=True)
    sums = e.product(element, sums, a_small, b_large)
    sums = e.product(element, sums, a_large, b_small)
    return e.product(element, sums, a_large, b_large)


def _operand(e: Any, element: Element, bits: Sequence[Any]) -> list[Any]:
    return [_halves(e, x) for x in bits] if element == "float32" else list(bits)


def product_of_rows(element: Element, tile: Tile, depth: int, left_stride: int, right_stride: int) -> Operation:
    """``sums + left @ right.T``, whose rows are in shared memory at two addresses."""

    def run(e: Any, sums: Any, left: Any, right: Any, lane: Any) -> list[Any]:
        sums = list(sums)
        left, right = left + _left_offset(e, lane, left_stride), right + _right_offset(e, lane, right_stride)
        for k in range(0, depth * bytes_of(element), 32):
            a = [_operand(e, element, e.load_matrices(left + (m * left_stride + k), transposed=False)) for m in range(0, tile.rows, 16)]
            for n in range(0, tile.columns, 16):
                b = _operand(e, element, e.load_matrices(right + (n * right_stride + k), transposed=False))
                for half in range(2):
                    for m, rows in enumerate(a):
                        at = _columns(tile, m, n // 8 + half)
                        sums[at] = _multiply(e, element, sums[at], rows, b[2 * half : 2 * half + 2])
        return sums

    return Operation(run, (tile.kind, "int32", "int32", "int32"), tile.kind)


def _left_of(e: Any, element: Element, weights: Sequence[Any], of_weights: Tile, m: int, k: int) -> list[Any]:
    """Sums as the left operand of step `k`: of float32 its columns 2 t and 2 t + 1 stand at places t and t + 4."""
    if element == "float32":
        c = weights[_columns(of_weights, m, k)]
        return [_halves(e, e.bits_of(c[i])) for i in (0, 2, 1, 3)]
    pairs = (*weights[_columns(of_weights, m, 2 * k)], *weights[_columns(of_weights, m, 2 * k + 1)])
    return [e.packed(pairs[i], pairs[i + 1], element) for i in range(0, 8, 2)]


def _right_pairs(e: Any, element: Element, right: Any, lane: Any, k: int, n: int, stride: int) -> list[list[Any]]:
    """Bits of the right operand of step `k` for two blocks of 8 columns from `n` on, whose rows are in shared memory."""
    if element != "float32":
        bits = e.load_matrices(right + _left_offset(e, lane, stride) + (k * 16 * stride + n * 2), transposed=True)
        return [list(bits[:2]), list(bits[2:])]
    at = right + ((lane & 3) * (2 * stride) + ((lane >> 2) & 7) * 4)
    return [[e.load_shared(at + ((8 * k + i) * stride + (n + half) * 4)) for i in range(2)] for half in (0, 8)]


def product_of_weights(element: Element, tile: Tile, depth: int, right_stride: int) -> Operation:
    """``sums + weights @ right``; the weights are sums of this warp, the right operand's rows are in shared memory."""
    of_weights, step = Tile(tile.rows, depth), 8 if element == "float32" else 16

    def run(e: Any, sums: Any, weights: Any, right: Any, lane: Any) -> list[Any]:
        sums = list(sums)
        for k in range(depth // step):
            a = [_left_of(e, element, weights, of_weights, m, k) for m in range(tile.rows // 16)]
            for n in range(0, tile.columns, 16):
                for half, bits in enumerate(_right_pairs(e, element, right, lane, k, n, right_stride)):
                    b = _operand(e, element, bits)
                    for m, rows in enumerate(a):
                        at = _columns(tile, m, n // 8 + half)
                        sums[at] = _multiply(e, element, sums[at], rows, b)
        return sums

    return Operation(run, (tile.kind, of_weights.kind, "int32", "int32"), tile.kind)


_EXPONENT = {"bfloat16": 0x7F80, "float16": 0x7C00}


def make_finite(element: Element, rows: int, size: int, threads: int, *, of_warp: bool = False) -> Operation:
    """Zeros in place of what is not finite in a tile in shared memory, and whether there was any, for all threads alike.

    They wait for each other, or those of a warp that has the tile for itself. Before a tile is multiplied by weights of which some are of masked pairs: 0 times NaN is NaN.
    """
    stride, in_row = stride_of(element, size), size * bytes_of(element) // 16

    def run(e: Any, tile: Any, thread: Any) -> Any:
        found = thread < 0
        for i in range(0, rows * in_row, threads):
            chunk = thread + i
            row, is_mine = _part(chunk, in_row), chunk < rows * in_row
            place = e.select(is_mine, tile + (row * stride + (chunk - row * in_row) * 16), tile)
            bits = e.load_shared(place, 4)
            finite = [_finite(e, element, x) for x in bits]
            changed = found ^ found
            for x, y in zip(bits, finite, strict=True):
                changed = changed | (x != y)
            e.store_shared(place, finite, changed & is_mine)
            found = found | (changed & is_mine)
        if of_warp:
            e.warp_barrier()
            return e.any_lane(found)
        return e.barrier_any(found)

    return Operation(run, ("int32", "int32"), "int32")


def _finite(e: Any, element: Element, bits: Any) -> Any:
    """Zeros in place of numbers that are not finite."""
    zero = bits & 0
    if element == "float32":
        return e.select((bits & 0x7F800000) == 0x7F800000, zero, bits)
    found, ones = zero, _EXPONENT[element]
    for shift, part in ((0, 0x0000FFFF), (16, -0x10000)):
        found = found | e.select(((bits >> shift) & ones) == ones, zero, bits & part)
    return found


def _part(x: Any, size: int) -> Any:
    """``x // size``, where `size` is a power of two."""
    return x >> (size.bit_length() - 1)


# Softmax


def zeros(kind: Many) -> Operation:
    """Nothing summed yet."""
    return filled(kind, 0.0)


def filled(kind: Many, x: float) -> Operation:
    """One number everywhere."""
    return Operation(lambda e: [e.number(x)] * kind.count, (), kind)


def each(kind: Many, function: Callable[..., Any], *others: Many | Literal["float32", "int32"]) -> Operation:
    """``function(machine, x, ...)`` of each register, and of those of more tuples, or of single ones."""

    def run(e: Any, *given: Any) -> list[Any]:
        return [function(e, *(x[i] if isinstance(k, Many) else x for x, k in zip(given, takes, strict=True))) for i in range(kind.count)]

    takes = (kind, *others)
    return Operation(run, takes, kind)


def same(kind: Many) -> Operation:
    """One number everywhere, known as the kernel runs."""
    return Operation(lambda e, x: [x + 0.0] * kind.count, ("float32",), kind)


def at_first_lane(kind: Many) -> Operation:
    """A number in the first of the four lanes of a row, 0 in the others, so that `whole_rows` makes it that number."""
    return Operation(lambda e, x, thread: [e.select((thread & 3) == 0, x, e.number(0.0))] * kind.count, ("float32", "int32"), kind)


def products(kind: Many) -> Operation:
    """Of the numbers of two tuples."""
    return each(kind, lambda e, x, y: x * y, kind)


def inverses(kind: Many) -> Operation:
    """1 over each number, 0 where that is 0."""
    return each(kind, lambda e, x: e.select(x == 0.0, e.number(0.0), e.reciprocal(x)))


def row_maxima(tile: Tile) -> Operation:
    """Of each row, and what was the largest before."""

    def run(e: Any, values: Any, largest: Any) -> list[Any]:
        largest = list(largest)
        for (r, _, _), x in zip(tile.places(), values, strict=True):
            largest[r] = e.largest(largest[r], x)
        for distance in (1, 2):
            largest = [e.largest(x, e.shuffled(x, distance)) for x in largest]
        return largest

    return Operation(run, (tile.kind, tile.of_rows), tile.of_rows)


def row_sums(tile: Tile) -> Operation:
    """What this lane holds of each row's sum; `whole_rows` adds what other lanes do."""

    def run(e: Any, values: Any, totals: Any) -> list[Any]:
        totals = list(totals)
        for (r, _, _), x in zip(tile.places(), values, strict=True):
            totals[r] = totals[r] + x
        return totals

    return Operation(run, (tile.kind, tile.of_rows), tile.of_rows)


def whole_rows(kind: Many) -> Operation:
    """Sums over the four lanes of a row."""

    def run(e: Any, totals: Any) -> list[Any]:
        for distance in (1, 2):
            totals = [x + e.shuffled(x, distance) for x in totals]
        return totals

    return Operation(run, (kind,), kind)


def _or_zero(e: Any, x: Any) -> Any:
    """A largest score, 0 where there is none: -inf less -inf would be NaN."""
    return e.select(x == float("-inf"), e.number(0.0), x)


def decays(kind: Many) -> Operation:
    """By what sums shrink as the largest score grows: ``2 ** ((old - new) * factor)``."""
    return each(kind, lambda e, old, new, factor: e.exp2((old - _or_zero(e, new)) * factor), kind, "float32")


def exponentials(tile: Tile, raised: int = 0) -> Operation:
    """``2 ** ((score - largest) * factor + raised)``."""

    def run(e: Any, scores: Any, largest: Any, factor: Any) -> list[Any]:
        shifts = [_or_zero(e, x) * factor * -1.0 for x in largest]
        shifts = [x + float(raised) for x in shifts] if raised else shifts
        return [e.exp2(e.multiply_add(x, factor, shifts[r])) for (r, _, _), x in zip(tile.places(), scores, strict=True)]

    return Operation(run, (tile.kind, tile.of_rows, "float32"), tile.kind)


def scale_rows(tile: Tile) -> Operation:
    """Each row times a number."""

    def run(e: Any, values: Any, factors: Any) -> list[Any]:
        return [x * factors[r] for (r, _, _), x in zip(tile.places(), values, strict=True)]

    return Operation(run, (tile.kind, tile.of_rows), tile.kind)


def scale_rows_and_add(tile: Tile) -> Operation:
    """The same, and other numbers added."""

    def run(e: Any, values: Any, factors: Any, others: Any) -> list[Any]:
        return [e.multiply_add(x, factors[r], y) for (r, _, _), x, y in zip(tile.places(), values, others, strict=True)]

    return Operation(run, (tile.kind, tile.of_rows, tile.kind), tile.kind)


def fill_empty_rows(tile: Tile) -> Operation:
    """A number in the rows whose weights sum to 0."""

    def run(e: Any, values: Any, totals: Any, empty: Any) -> list[Any]:
        return [e.select(totals[r] == 0.0, empty, x) for (r, _, _), x in zip(tile.places(), values, strict=True)]

    return Operation(run, (tile.kind, tile.of_rows, "float32"), tile.kind)


def masked_by_place(tile: Tile) -> Operation:
    """-inf where not ``low <= column - row <= high``, and from column `end` on. Row and column are the lane's first."""

    def run(e: Any, scores: Any, row: Any, column: Any, low: Any, high: Any, end: Any) -> list[Any]:
        made = []
        for (_, down, right), x in zip(tile.places(), scores, strict=True):
            place = column + right
            distance = place - (row + down)
            made.append(e.select((distance >= low) & (distance <= high) & (place < end), x, e.number(float("-inf"))))
        return made

    return Operation(run, (tile.kind, "int32", "int32", "int32", "int32", "int32"), tile.kind)


# Backward


def weights_from_lse(tile: Tile, *, by_column: bool = False) -> Operation:
    """``exp(score - lse)`` from scores times a factor in base 2; 0 where a score is -inf, whatever its row holds."""

    def run(e: Any, scores: Any, lse: Any, factor: Any) -> list[Any]:
        lowest, nothing = e.number(float("-inf")), e.number(0.0)
        shifts = [e.select(x == lowest, lowest, x * -LOG2_E) for x in lse]
        return [
            e.select(x == lowest, nothing, e.exp2(e.multiply_add(x, factor, shift)))
            for x, shift in zip(scores, _spread(tile, shifts, by_column=by_column), strict=True)
        ]

    return Operation(run, (tile.kind, tile.of_columns if by_column else tile.of_rows, "float32"), tile.kind)


def scores_cotangent(tile: Tile, *, by_column: bool = False) -> Operation:
    """``weight * (d_weight - delta)``, and 0 for a weight of 0: what is masked may have a cotangent of NaN."""

    def run(e: Any, weights: Any, d_weights: Any, delta: Any) -> list[Any]:
        spread = _spread(tile, delta, by_column=by_column)
        return [e.select(w == 0.0, e.number(0.0), w * (d - x)) for w, d, x in zip(weights, d_weights, spread, strict=True)]

    return Operation(run, (tile.kind, tile.kind, tile.of_columns if by_column else tile.of_rows), tile.kind)


def _spread(tile: Tile, numbers: Any, *, by_column: bool) -> Iterator[Any]:
    """The number of its row or column for each register."""
    for r, _, right in tile.places():
        yield numbers[right // 8 * 2 + right % 2] if by_column else numbers[r]
