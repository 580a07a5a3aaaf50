"""Sums over the taps of one kernel, whose outputs and whose inputs stay in registers.

Outputs lie in `rows` rows. Taps that are one row apart make a **run**: their inputs are the same registers, moved by one row, so that one
load serves a tap of all rows::

    tap 0:  rows 0 1 2 3            sums[j] += weight[tap] * input[j + tap]
    tap 1:    rows 1 2 3 4
    tap 2:      rows 2 3 4 5

A table has for each run three integers: where its first input is, how many taps it has, and the number of its first tap. What a row is
depends on the layout: with lanes along the last axis a row of the image, with lanes over channels a pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
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

RUN = 3  # integers in a table
LINE_SUMS = 8  # registers of dy that `line_sums` takes
ROWS = 6 if HOST.name in {"AVX2", "generic"} else 8
"""Sums and inputs of this many rows fill at most half of the registers each."""


def _runs(builder: Builder, table: Value, count: Value, body: Callable[[Value, Value, Value], None]) -> None:
    """Call ``body(place, taps, first)`` for each run."""
    with cgutils.for_range(builder, count) as loop:
        entry = builder.gep(table, [builder.mul(loop.index, I64(RUN))])
        body(*(builder.load(builder.gep(entry, [I64(i)])) for i in range(RUN)))


class _Sliding:
    """Registers of `rows` rows, of which the first drops out when the next one comes in."""

    def __init__(self, builder: Builder, rows: int, registers: int, vector: ir.VectorType, read: Callable[[Value, int], Value]) -> None:
        self.builder, self.rows, self.read = builder, rows, read
        self.held = [[cgutils.alloca_once(builder, vector) for _ in range(registers)] for _ in range(rows)]

    def begin(self) -> None:
        """Read all rows but the last."""
        for j, row in enumerate(self.held[:-1]):
            for i, place in enumerate(row):
                self.builder.store(self.read(I64(j), i), place)

    def enter(self, tap: Value) -> None:
        """Read the row that a tap needs besides."""
        for i, place in enumerate(self.held[-1]):
            self.builder.store(self.read(self.builder.add(tap, I64(self.rows - 1)), i), place)

    def leave(self) -> None:
        """Move each row to the one before."""
        for row, after in zip(self.held, self.held[1:], strict=False):
            for place, source in zip(row, after, strict=True):
                self.builder.store(self.builder.load(source), place)


def _window(rows: int, registers: int, *, each_lane: bool = False, streamed: bool = False) -> Any:
    """Outputs from `start`; a tap's weight is one number, or one `each_lane`.

    Outputs that are `streamed` go to memory past the caches, and lie on whole registers.
    """

    @instruction
    def window(
        typing: Any, x: Any, step: Any, runs: Any, count: Any, weight: Any, weight_step: Any, start: Any, out: Any, out_step: Any
    ) -> Any:
        vector = Vector(x.dtype)
        size, lanes = x.dtype.bitwidth // 8, vector.lanes

        def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            x, step, runs, count, weight, weight_step, start, out, out_step = args
            sums = [[cgutils.alloca_once_value(builder, start) for _ in range(registers)] for _ in range(rows)]
            for line in sums:
                for place in line:
                    builder.store(start, place)
            first = cgutils.alloca_once_value(builder, x)

            def read(row: Value, i: int) -> Value:
                address = builder.gep(builder.load(first), [builder.add(builder.mul(row, step), I64(i * lanes))])
                return load_from(builder, address, vector.ir, size)

            sliding = _Sliding(builder, rows, registers, vector.ir, read)

            def add_run(place: Value, taps: Value, tap: Value) -> None:
                builder.store(builder.gep(x, [place]), first)
                sliding.begin()
                with cgutils.for_range(builder, taps) as loop:
                    sliding.enter(loop.index)
                    address = builder.gep(weight, [builder.mul(builder.add(tap, loop.index), weight_step)])
                    by = load_from(builder, address, vector.ir, size) if each_lane else splat(builder, vector.ir, builder.load(address))
                    for line, inputs in zip(sums, sliding.held, strict=True):
                        for total, given in zip(line, inputs, strict=True):
                            builder.store(fused(builder, builder.load(given), by, builder.load(total)), total)
                    sliding.leave()

            _runs(builder, runs, count, add_run)
            for j, line in enumerate(sums):
                for i, place in enumerate(line):
                    address = builder.gep(out, [builder.add(builder.mul(out_step, I64(j)), I64(i * lanes))])
                    if streamed:
                        store_past_caches(builder, builder.load(place), address)
                    else:
                        store_to(builder, builder.load(place), address, size)
            return context.get_dummy_value()

        index = types.intp
        return types.void(x, index, runs, index, weight, index, start, out, index), build

    return window


def _products(rows: int) -> Any:
    """To the sums of each tap its products with one register of each row; other lanes than those of `lanes` count as 0."""

    @instruction
    def products(
        typing: Any, x: Any, step: Any, runs: Any, count: Any, dy: Any, dy_step: Any, lanes: Any, sums: Any, sums_step: Any
    ) -> Any:
        vector = Vector(x.dtype)
        size = x.dtype.bitwidth // 8

        def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            x, step, runs, count, dy, dy_step, lanes, sums, sums_step = args
            zero = constant(vector.ir, 0.0)

            def masked(address: Value) -> Value:
                return builder.select(lanes, load_from(builder, address, vector.ir, size), zero)

            given = [masked(builder.gep(dy, [builder.mul(dy_step, I64(j))])) for j in range(rows)]
            first = cgutils.alloca_once_value(builder, x)
            sliding = _Sliding(
                builder, rows, 1, vector.ir, lambda row, _: masked(builder.gep(builder.load(first), [builder.mul(row, step)]))
            )

            def add_run(place: Value, taps: Value, tap: Value) -> None:
                builder.store(builder.gep(x, [place]), first)
                sliding.begin()
                with cgutils.for_range(builder, taps) as loop:
                    sliding.enter(loop.index)
                    inputs = [builder.load(row[0]) for row in sliding.held]
                    parts = [builder.fmul(d, i) for d, i in zip(given[:2], inputs, strict=False)]
                    for j in range(2, rows):
                        parts[j % 2] = fused(builder, given[j], inputs[j], parts[j % 2])
                    added = parts[0] if rows == 1 else builder.fadd(*parts)
                    address = builder.gep(sums, [builder.mul(builder.add(tap, loop.index), sums_step)])
                    store_to(builder, builder.fadd(load_from(builder, address, vector.ir, size), added), address, size)
                    sliding.leave()

            _runs(builder, runs, count, add_run)
            return context.get_dummy_value()

        index = types.intp
        return types.void(x, index, runs, index, dy, index, lanes, sums, index), build

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


plane_window = _window(ROWS, 1)
"""`ROWS` rows of one register each, and one weight for all lanes."""
line_window = _window(1, 4)
"""One row of four registers."""
short_window = _window(1, 1)
"""One register."""
channel_window = _window(ROWS, 1, each_lane=True)
"""One register of channels of `ROWS` pixels."""
pixel_window = _window(1, 1, each_lane=True)
"""One register of channels of one pixel."""
row_products = _products(ROWS)
line_products = _products(1)
streamed_window = _window(1, 4, streamed=True)
"""As `line_window`."""
line_sums = _line_sums(LINE_SUMS)
