"""Squares of numbers, transposed in registers, of which some rows and columns may not exist: these are neither read nor written."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.simd import I1, I32, I64, Builder, Value, Vector, call_llvm, constant, instruction, lanes_of, splat
from refattn_numba.cpu.sizes import smaller


@instruction
def doubles_at(typing: Any, p: Any) -> Any:
    """The memory that a pointer points to, for float64."""
    made = types.CPointer(types.float64)
    return made(p), lambda context, builder, sig, args: builder.bitcast(args[0], context.get_value_type(made))


def _mask(builder: Builder, vector: ir.VectorType, count: Value) -> Value:
    lanes = ir.VectorType(I32, vector.count)
    below = splat(builder, lanes, builder.trunc(count, I32))
    return builder.icmp_signed("<", ir.Constant(lanes, list(range(vector.count))), below)


def _suffix(vector: ir.VectorType) -> str:
    return f"v{vector.count}{'f32' if isinstance(vector.element, ir.FloatType) else 'f64'}.p0"


def _load_some(builder: Builder, address: Value, vector: ir.VectorType, mask: Value, size: int) -> Value:
    place = builder.bitcast(address, vector.as_pointer())
    return call_llvm(builder, f"llvm.masked.load.{_suffix(vector)}", vector, place, I32(size), mask, constant(vector, 0.0))


def _store_some(builder: Builder, value: Value, address: Value, mask: Value, size: int) -> None:
    place = builder.bitcast(address, value.type.as_pointer())
    call_llvm(builder, f"llvm.masked.store.{_suffix(value.type)}", ir.VoidType(), value, place, I32(size), mask)


@instruction
def load_some(typing: Any, p: Any, i: Any, count: Any) -> Any:
    """The first `count` lanes, and 0 in the others, which are not read."""
    made = Vector(p.dtype)

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        mask = _mask(builder, made.ir, args[2])
        return _load_some(builder, builder.gep(args[0], [args[1]]), made.ir, mask, p.dtype.bitwidth // 8)

    return made(p, types.intp, types.intp), build


@instruction
def store_some(typing: Any, p: Any, i: Any, vector: Any, count: Any) -> Any:
    """Write the first `count` lanes."""

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        mask = _mask(builder, vector.ir, args[3])
        _store_some(builder, args[2], builder.gep(args[0], [args[1]]), mask, p.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(p, types.intp, vector, types.intp), build


def _turned(builder: Builder, rows: list[Value]) -> list[Value]:
    """Rows of a square become columns."""
    lanes = len(rows)
    half = lanes // 2
    while half:  # exchange the off-diagonal quarters of all squares of 2 * half
        low = [lane + lanes - half if lane & half else lane for lane in range(lanes)]
        high = [lane + lanes if lane & half else lane + half for lane in range(lanes)]
        for i in (i for i in range(lanes) if not i & half):
            orders = (ir.Constant(ir.VectorType(I32, lanes), order) for order in (low, high))
            rows[i], rows[i + half] = [builder.shuffle_vector(rows[i], rows[i + half], order) for order in orders]
        half //= 2
    return rows


@instruction
def gather_square(typing: Any, source: Any, step: Any, rows: Any, columns: Any, out: Any) -> Any:
    """``out[i * lanes + j] = source[j * step + i]`` for the first rows j and columns i; the other numbers of the square are anything."""
    made, size = Vector(out.dtype), out.dtype.bitwidth // 8

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        source, step, rows, columns, out = args
        mask, last = _mask(builder, made.ir, columns), builder.sub(rows, I64(1))
        lines = []
        for j in range(made.lanes):
            row = builder.select(builder.icmp_signed("<", I64(j), last), I64(j), last)
            lines.append(_load_some(builder, builder.gep(source, [builder.mul(row, step)]), made.ir, mask, size))
        for i, line in enumerate(_turned(builder, lines)):
            address = builder.bitcast(builder.gep(out, [I64(i * made.lanes)]), made.ir.as_pointer())
            builder.store(line, address, align=size)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, types.intp, out), build


@instruction
def scatter_square(typing: Any, source: Any, rows: Any, columns: Any, out: Any, step: Any) -> Any:
    """``out[j * step + i] = source[i * lanes + j]`` for the first rows j and columns i; all of the square is read."""
    made, size = Vector(out.dtype), out.dtype.bitwidth // 8

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        source, rows, columns, out, step = args
        mask, none = _mask(builder, made.ir, columns), ir.Constant(ir.VectorType(I1, made.lanes), [0] * made.lanes)
        lines = []
        for i in range(made.lanes):
            address = builder.bitcast(builder.gep(source, [I64(i * made.lanes)]), made.ir.as_pointer())
            lines.append(builder.load(address, align=size))
        for j, line in enumerate(_turned(builder, lines)):
            exists = builder.select(builder.icmp_signed("<", I64(j), rows), mask, none)
            _store_some(builder, line, builder.gep(out, [builder.mul(step, I64(j))]), exists, size)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, out, types.intp), build


@compiled
def gather(source: Any, step: int, rows: int, columns: int, out: Any) -> None:
    """Some rows, as lanes, to a line for each column; one line less than a register has lanes is overwritten behind them."""
    lanes = lanes_of(out)
    for i in range(0, columns, lanes):
        gather_square(source + i, step, rows, smaller(columns - i, lanes), out + i * lanes)


@compiled
def scatter(source: Any, rows: int, columns: int, out: Any, step: int) -> None:
    """Back; what is behind the lines has to be memory."""
    lanes = lanes_of(out)
    for i in range(0, columns, lanes):
        scatter_square(source + i * lanes, rows, smaller(columns - i, lanes), out + i, step)
