"""Sums over the taps of one kernel, whose outputs stay in registers.

Taps that are one row apart make a **run**: their inputs are the same registers, moved by one row, so that one load serves a tap of all
rows of a block::

    tap 0:  rows 0 1 2 3            sums[j] += weight[tap] * input[j + tap]
    tap 1:    rows 1 2 3 4
    tap 2:      rows 2 3 4 5

A table has for each run four integers: where its first input is, how many taps it has, the number of its first tap, and the step from a
tap's number to the next. Blocks take runs of the lengths `LENGTHS` alone, longest first, and are told how many there are of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core import cgutils, types

from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.simd import (
    I64,
    Builder,
    Value,
    Vector,
    constant,
    fused,
    instruction,
    load_from,
    splat,
    store_past_caches,
    store_to,
)

RUN = 4  # integers in a table
LENGTHS = (7, 5, 3, 2, 1)
"""Of runs, for each of which there is a loop without branches."""
LINE_SUMS = 8  # registers of dy that `line_sums` takes
ROWS = 4 if HOST.name in {"AVX2", "generic"} else 7
"""Two registers of sums for each row, and as many weights, fill three quarters of 32 registers. Many images have multiples of 7 rows."""
PAIR = 2


def _runs(builder: Builder, table: Value, count: Value, body: Callable[[Value, Value, Value, Value], None]) -> None:
    """Call ``body(place, taps, first, step)`` for each run."""
    with cgutils.for_range(builder, count) as loop:
        entry = builder.gep(table, [builder.mul(loop.index, I64(RUN))])
        body(*(builder.load(builder.gep(entry, [I64(i)])) for i in range(RUN)))


def _runs_by_length(builder: Builder, table: Value, counts: Value, body: Callable[[Value, int, Value, Value], None]) -> None:
    """Likewise, with the number of taps known when this is compiled."""
    for i, length in enumerate(LENGTHS):
        count = builder.load(builder.gep(counts, [I64(i)]))
        _runs(builder, table, count, lambda place, _, first, step, length=length: body(place, length, first, step))
        table = builder.gep(table, [builder.mul(count, I64(RUN))])


def _steps(builder: Builder, first: Value, step: Value, count: int) -> list[Value]:
    """Addresses, each from the one before: as many products of a step would fill the registers."""
    places = [first]
    while len(places) < count:
        places.append(builder.gep(places[-1], [step]))
    return places


class _Weights:
    """A tap's weight in all lanes: one number, or one of `each_lane`."""

    def __init__(self, builder: Builder, vector: Vector, weight: Value, *, each_lane: bool) -> None:
        self.builder, self.vector, self.weight, self.each_lane = builder, vector, weight, each_lane

    def of(self, tap: Value) -> Value:
        """Of one tap."""
        builder, lanes, made = self.builder, self.vector.lanes, self.vector.ir
        if not self.each_lane:
            return splat(builder, made, builder.load(builder.gep(self.weight, [tap])))
        return load_from(builder, builder.gep(self.weight, [builder.mul(tap, I64(lanes))]), made, self.vector.element.bitwidth // 8)


def _block(*, each_lane: bool) -> Any:
    """Outputs of `ROWS` rows, from `start`: of each row two registers, which lie `gap` apart."""

    @instruction
    def block(
        typing: Any, x: Any, step: Any, gap: Any, runs: Any, counts: Any, weight: Any, start: Any, out: Any, out_step: Any, out_gap: Any
    ) -> Any:
        vector = Vector(x.dtype)
        size = x.dtype.bitwidth // 8

        def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            x, step, gap, runs, counts, weight, start, out, out_step, out_gap = args
            sums = [[cgutils.alloca_once(builder, vector.ir) for _ in range(PAIR)] for _ in range(ROWS)]
            for place in (place for line in sums for place in line):
                builder.store(start, place)
            weights = _Weights(builder, vector, weight, each_lane=each_lane)

            def add_run(place: Value, length: int, first: Value, tap_step: Value) -> None:
                by = [weights.of(builder.add(first, builder.mul(I64(t), tap_step))) for t in range(length)]
                for i, row in enumerate(_steps(builder, builder.gep(x, [place]), step, ROWS + length - 1)):
                    inputs = [load_from(builder, address, vector.ir, size) for address in (row, builder.gep(row, [gap]))]
                    for t, j in ((t, i - t) for t in range(length) if 0 <= i - t < ROWS):
                        for given, total in zip(inputs, sums[j], strict=True):
                            builder.store(fused(builder, given, by[t], builder.load(total)), total)

            _runs_by_length(builder, runs, counts, add_run)
            for line, row in zip(sums, _steps(builder, out, out_step, ROWS), strict=True):
                for place, address in zip(line, (row, builder.gep(row, [out_gap])), strict=True):
                    store_to(builder, builder.load(place), address, size)
            return context.get_dummy_value()

        index = types.intp
        return types.void(x, index, index, runs, counts, weight, start, out, index, index), build

    return block


def _line(registers: int, *, each_lane: bool = False, streamed: bool = False) -> Any:
    """Outputs of one row from `start`: registers that follow one another in x, and in `out` by `out_step`.

    Outputs that are `streamed` go to memory past the caches, and lie on whole registers.
    """

    @instruction
    def line(
        typing: Any, x: Any, step: Any, runs: Any, count: Any, weight: Any, start: Any, out: Any, out_step: Any
    ) -> Any:  # fmt: skip
        vector = Vector(x.dtype)
        size, lanes = x.dtype.bitwidth // 8, vector.lanes

        def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            x, step, runs, count, weight, start, out, out_step = args
            sums = [cgutils.alloca_once(builder, vector.ir) for _ in range(registers)]
            for place in sums:
                builder.store(start, place)
            weights = _Weights(builder, vector, weight, each_lane=each_lane)

            def add_run(place: Value, taps: Value, first: Value, tap_step: Value) -> None:
                with cgutils.for_range(builder, taps) as loop:
                    by = weights.of(builder.add(first, builder.mul(loop.index, tap_step)))
                    row = builder.gep(x, [builder.add(place, builder.mul(loop.index, step))])
                    for i, total in enumerate(sums):
                        given = load_from(builder, builder.gep(row, [I64(i * lanes)]), vector.ir, size)
                        builder.store(fused(builder, given, by, builder.load(total)), total)

            _runs(builder, runs, count, add_run)
            for place, address in zip(sums, _steps(builder, out, out_step, registers), strict=True):
                if streamed:
                    store_past_caches(builder, builder.load(place), address)
                else:
                    store_to(builder, builder.load(place), address, size)
            return context.get_dummy_value()

        index = types.intp
        return types.void(x, index, runs, index, weight, start, out, index), build

    return line


def _products(rows: int, *, masked: bool) -> Any:
    """To the sums of each tap its products with one register of each row; where it is masked, other `lanes` count as 0."""

    @instruction
    def products(
        typing: Any, x: Any, step: Any, runs: Any, counts: Any, dy: Any, dy_step: Any, lanes: Any, sums: Any
    ) -> Any:  # fmt: skip
        vector = Vector(x.dtype)
        size, width = x.dtype.bitwidth // 8, vector.lanes

        def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            x, step, runs, counts, dy, dy_step, lanes, sums = args
            zero = constant(vector.ir, 0.0)

            def read(address: Value) -> Value:
                found = load_from(builder, address, vector.ir, size)
                return builder.select(lanes, found, zero) if masked else found

            given = [read(row) for row in _steps(builder, dy, dy_step, rows)]

            def add_run(place: Value, length: int, first: Value, tap_step: Value) -> None:
                parts: list[Value] = [None] * length
                for i, row in enumerate(_steps(builder, builder.gep(x, [place]), step, rows + length - 1)):
                    number = read(row)
                    for t, j in ((t, i - t) for t in range(length) if 0 <= i - t < rows):
                        parts[t] = fused(builder, given[j], number, parts[t]) if j else builder.fmul(given[j], number)
                tap = builder.gep(sums, [builder.mul(first, I64(width))])
                for part, address in zip(parts, _steps(builder, tap, builder.mul(tap_step, I64(width)), length), strict=True):
                    store_to(builder, builder.fadd(load_from(builder, address, vector.ir, size), part), address, size)

            _runs_by_length(builder, runs, counts, add_run)
            return context.get_dummy_value()

        index = types.intp
        return types.void(x, index, runs, counts, dy, index, lanes, sums), build

    return products


def _line_sums(registers: int) -> Any:
    """To the sums of each tap the products of `registers` registers of dy with those of x from there on, and of dy alone behind them."""

    @instruction
    def line_sums(typing: Any, x: Any, taps: Any, dy: Any, sums: Any) -> Any:
        vector = Vector(x.dtype)
        size, lanes = x.dtype.bitwidth // 8, vector.lanes

        def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            x, taps, dy, sums = args

            def read(pointer: Value, i: int) -> Value:
                return load_from(builder, builder.gep(pointer, [I64(i * lanes)]), vector.ir, size)

            def add(number: Value, tap: Value) -> None:
                address = builder.gep(sums, [builder.mul(tap, I64(lanes))])
                store_to(builder, builder.fadd(load_from(builder, address, vector.ir, size), number), address, size)

            given = [read(dy, i) for i in range(registers)]
            with cgutils.for_range(builder, taps) as loop:
                first = builder.gep(x, [loop.index])
                parts = [builder.fmul(given[i], read(first, i)) for i in range(2)]
                for i in range(2, registers):
                    parts[i % 2] = fused(builder, given[i], read(first, i), parts[i % 2])
                add(builder.fadd(*parts), loop.index)
            while len(given) > 1:
                given = [builder.fadd(a, b) for a, b in zip(given[::2], given[1::2], strict=True)]
            add(given[0], taps)
            return context.get_dummy_value()

        return types.void(x, types.intp, dy, sums), build

    return line_sums


plane_block = _block(each_lane=False)
"""One weight for all lanes, which are positions."""
channel_block = _block(each_lane=True)
"""Lanes are channels."""
line_window = _line(4)
"""Four registers of positions."""
short_window = _line(1)
"""One."""
channel_window = _line(4, each_lane=True)
"""One register of channels of four positions."""
pixel_window = _line(1, each_lane=True)
"""Of one."""
row_products = _products(ROWS, masked=True)
line_products = _products(1, masked=True)
channel_products = _products(ROWS, masked=False)
pixel_products = _products(1, masked=False)
streamed_window = _line(4, streamed=True)
"""As `line_window`."""
line_sums = _line_sums(LINE_SUMS)
