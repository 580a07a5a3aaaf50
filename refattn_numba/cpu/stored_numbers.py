"""Vectors of numbers from the types in which caches are stored.

Each reader is ``read(address, lanes, like)``: as many numbers as a register of the precision of `like` holds, from an address
in bytes; with `lanes` of None all of them, else zeros where the bit is not set, and no byte of those is touched. Formats that a
processor may not know are decoded by arithmetic on their bits, so that LLVM has no C function to look for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types

from refattn_numba.cpu.simd import I32, Builder, Value, Vector, call_llvm, constant, instruction

SAME, FLOAT32, FLOAT16, BFLOAT16, INT8, E4M3FN, E5M2 = range(7)
"""What bits mean; `SAME` is the precision in which one computes."""

KINDS = {
    "float32": FLOAT32,
    "float16": FLOAT16,
    "bfloat16": BFLOAT16,
    "int8": INT8,
    "float8_e4m3fn": E4M3FN,
    "float8_e5m2": E5M2,
}


BYTE, PAIR, FLOAT = ir.IntType(8), ir.IntType(16), ir.FloatType()
BYTES = {BYTE: 1, PAIR: 2, FLOAT: 4, ir.DoubleType(): 8}


def _reader(stored: ir.Type | None, convert: Callable[[Builder, Value, Vector], Value]) -> Callable[..., Any]:
    """Load elements of a type, or of the precision asked for, and convert them."""

    @instruction
    def read(typing: Any, address: Any, lanes: Any, like: Any) -> Any:
        made = Vector(like.dtype)

        def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            element = stored or made.ir.element
            size, vector = BYTES[element], ir.VectorType(element, made.lanes)
            place = builder.inttoptr(args[0], vector.as_pointer())
            if lanes == types.none:
                return convert(builder, builder.load(place, align=size), made)
            name = f"llvm.masked.load.v{made.lanes}{'i' if isinstance(element, ir.IntType) else 'f'}{8 * size}.p0"
            return convert(builder, call_llvm(builder, name, vector, place, I32(size), args[1], ir.Constant(vector, None)), made)

        return made(types.int64, lanes, like), build

    return read


def _as(builder: Builder, numbers: Value, made: Vector) -> Value:
    """The same numbers in the precision of a computation, which is at least theirs."""
    return numbers if numbers.type == made.ir else builder.fpext(numbers, made.ir)


def _integers(builder: Builder, codes: Value, made: Vector) -> Value:
    return builder.sitofp(codes, made.ir)


def _bfloat16(builder: Builder, codes: Value, made: Vector) -> Value:
    """The upper half of a float32."""
    words, numbers = ir.VectorType(I32, made.lanes), ir.VectorType(FLOAT, made.lanes)
    return _as(builder, builder.bitcast(builder.shl(builder.zext(codes, words), constant(words, 16)), numbers), made)


def _small_float(bits: int, mantissa: int, infinite: int, bias: int) -> Callable[[Builder, Value, Vector], Value]:
    """Exponent and mantissa go where float32 has them, times two to the difference of the biases.

    Codes from `infinite` on, without the sign, are infinite where they end in zeros and not numbers elsewhere.
    """
    shift = 23 - mantissa
    magnitude = (1 << (bits - 1)) - 1

    def convert(builder: Builder, codes: Value, made: Vector) -> Value:
        words, numbers = ir.VectorType(I32, made.lanes), ir.VectorType(FLOAT, made.lanes)
        # copies of the sign fill the bits above a number, so that it is still the first after the shift
        kept = constant(words, 1 << 31 | magnitude << shift)
        placed = builder.and_(builder.shl(builder.sext(codes, words), constant(words, shift)), kept)
        scaled = builder.fmul(builder.bitcast(placed, numbers), constant(numbers, 2.0 ** (127 - bias)))
        size = builder.and_(codes, constant(codes.type, magnitude))
        odd = builder.bitcast(builder.or_(placed, constant(words, 0x7F800000)), numbers)
        return _as(builder, builder.select(builder.icmp_unsigned(">=", size, constant(codes.type, infinite)), odd, scaled), made)

    return convert


read_same = _reader(None, _as)
read_float32 = _reader(FLOAT, _as)
read_float16 = _reader(PAIR, _small_float(16, 10, 0x7C00, 15))
read_bfloat16 = _reader(PAIR, _bfloat16)
read_int8 = _reader(BYTE, _integers)
read_e4m3fn = _reader(BYTE, _small_float(8, 3, 0x7F, 7))
read_e5m2 = _reader(BYTE, _small_float(8, 2, 0x7C, 15))

CONVERTERS: dict[Any, Callable[[Builder, Value, Vector], Value]] = {types.int8: _integers, types.uint16: _bfloat16}
"""Of codes that cost little to convert wherever they are multiplied, by the type that a pointer to them has."""

IN_REGISTERS = frozenset({INT8, BFLOAT16})
