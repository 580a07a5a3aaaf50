"""The exponential and the hyperbolic tangent of vectors, to within three units in the last place.

The exponential of numbers below -8 is worse, by what ln(2) lacks as one number, many times over: 4 units at -80 in float32, 24 in
float64. Such a weight has no part in the digits of a sum.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.simd import Builder, Value, Vector, call_llvm, constant, fused, instruction

LN2 = 0.6931471805599453

# (e**f - 1) / f for f from -ln(2) / 2 to ln(2) / 2: the polynomial that agrees at the Chebyshev points, highest power first
SINGLE = (0.0013933641603216529, 0.008369148708879948, 0.04166646674275398, 0.16666504740715027, 0.5, 1.0)
DOUBLE = (
    2.510520637395701e-08,
    2.7626357241447223e-07,
    2.7557255425746435e-06,
    2.4801504346997686e-05,
    0.00019841269874800493,
    0.0013888888932488599,
    0.008333333333326141,
    0.04166666666657314,
    0.1666666666666667,
    0.5000000000000006,
    1.0,
)

# the same from -ln(2) / 32 and -ln(2) / 16 on, where a register holds 16 or 8 of the powers of 2 between 1 and 2
SINGLE_NEAR = (0.16666959914371368, 0.5000146624343743, 1.0)
DOUBLE_NEAR = (
    0.0001984217493849779,
    0.0013889703480254652,
    0.008333333324839985,
    0.041666666590226054,
    0.16666666666666866,
    0.500000000000018,
    1.0,
)


def _parts_by_table(builder: Builder, of: Vector, x: Value) -> tuple[Value, Value]:
    """``2**n`` and ``e**f - 1`` with ``n ln(2) + f = x`` and n a multiple of 1/16 or 1/8: shorter, and 2**n is rounded."""
    series, mantissa, name = (SINGLE_NEAR, 23, "sf") if of.element.bitwidth == 32 else (DOUBLE_NEAR, 52, "df")
    points = of.lanes.bit_length() - 1
    shift = constant(of.ir, 1.5 * 2.0 ** (mantissa - points))
    shifted = fused(builder, x, constant(of.ir, 1 / LN2), shift)
    f = fused(builder, builder.fsub(shifted, shift), constant(of.ir, -LN2), x)
    polynomial = constant(of.ir, series[0])
    for coefficient in series[1:]:
        polynomial = fused(builder, polynomial, f, constant(of.ir, coefficient))
    bits = builder.bitcast(shifted, of.bits)
    table = ir.Constant(of.ir, [2.0 ** (i / of.lanes) for i in range(of.lanes)])
    between = call_llvm(builder, f"llvm.x86.avx512.permvar.{name}.512", of.ir, table, bits)  # by the last bits alone
    whole = builder.shl(builder.lshr(bits, constant(of.bits, points)), constant(of.bits, mantissa))
    power = builder.bitcast(builder.add(builder.bitcast(between, of.bits), whole), of.ir)
    return power, builder.fmul(polynomial, f)


def _parts(builder: Builder, of: Vector, x: Value) -> tuple[Value, Value]:
    """``2**n`` and ``e**f - 1`` with ``n ln(2) + f = x`` and n an integer; below the normal numbers both are anything."""
    series, mantissa, bias = (SINGLE, 23, 127) if of.element.bitwidth == 32 else (DOUBLE, 52, 1023)
    # the sum is rounded to an integer, which with the exponent's bias stands in its last bits; NaN stays NaN in f
    shift = constant(of.ir, 1.5 * 2.0**mantissa + bias)
    shifted = fused(builder, x, constant(of.ir, 1 / LN2), shift)
    f = fused(builder, builder.fsub(shifted, shift), constant(of.ir, -LN2), x)
    polynomial = constant(of.ir, series[0])
    for coefficient in series[1:]:
        polynomial = fused(builder, polynomial, f, constant(of.ir, coefficient))
    power = builder.bitcast(builder.shl(builder.bitcast(shifted, of.bits), constant(of.bits, mantissa)), of.ir)
    return power, builder.fmul(polynomial, f)


def _is_small(builder: Builder, of: Vector, x: Value) -> Value:
    """Where the exponential is below the normal numbers."""
    return builder.fcmp_ordered("<", x, constant(of.ir, (-126 if of.element.bitwidth == 32 else -1022) * LN2))


@instruction
def exp(typing: Any, x: Any) -> Any:
    """Exponential of numbers that are not above 0; 0 below the normal numbers."""

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        power, less_one = (_parts_by_table if HOST.has_permute else _parts)(builder, x, args[0])
        return builder.select(_is_small(builder, x, args[0]), constant(x.ir, 0.0), fused(builder, power, less_one, power))

    return x(x), build


@instruction
def tanh(typing: Any, x: Any) -> Any:
    """Hyperbolic tangent, as exact near 0 as elsewhere."""

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        suffix = f"v{x.lanes}{'f32' if x.element.bitwidth == 32 else 'f64'}"
        size = call_llvm(builder, f"llvm.fabs.{suffix}", x.ir, args[0])
        exponent = builder.fmul(size, constant(x.ir, -2.0))
        power, less_one = _parts(builder, x, exponent)
        small = fused(builder, power, less_one, builder.fsub(power, constant(x.ir, 1.0)))  # e**(-2 |x|) - 1
        small = builder.select(_is_small(builder, x, exponent), constant(x.ir, -1.0), small)
        ratio = builder.fdiv(small, builder.fadd(constant(x.ir, 2.0), small))
        return call_llvm(builder, f"llvm.copysign.{suffix}", x.ir, ratio, args[0])

    return x(x), build
