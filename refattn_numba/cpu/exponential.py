"""The exponential and the hyperbolic tangent of vectors, to within three units in the last place.

The exponential of numbers below -8 is worse, by what ln(2) lacks as one number, many times over: 4 units at -80 in float32, 24 in
float64. Such a weight has no part in the digits of a sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
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

# the same for f up to ln(2) / 64, where two registers hold 32 of the powers of 2 between 1 and 2: the term in f**3 is left out but
# for what is nearest to it of the form a f, so that 5.3e-8 is the largest error, at a Chebyshev polynomial's four extremes
SINGLE_NEAR = (0.5, 1.0 + LN2**2 / (8 * 64**2))

# what centres the error of 1 + f there, which is f**2 / 2
ROUGH = 1.0 + LN2**2 / (4 * 64**2)

# the same for f up to ln(2) / 16, where a register holds 8 of them, by the Chebyshev points again
DOUBLE_NEAR = (
    0.0001984217493849779,
    0.0013889703480254652,
    0.008333333324839985,
    0.041666666590226054,
    0.16666666666666866,
    0.500000000000018,
    1.0,
)


def _powers(builder: Builder, of: Vector, x: Value, factor: float = 1.0) -> tuple[Value, Value]:
    """``2**n``, times a factor, and f with ``n ln(2) + f = x`` and n a multiple of 1/32 or 1/8, the powers of which are known."""
    mantissa, points = (23, 5) if of.element.bitwidth == 32 else (52, 3)
    shift = constant(of.ir, 1.5 * 2.0 ** (mantissa - points))
    shifted = fused(builder, x, constant(of.ir, 1 / LN2), shift)
    f = fused(builder, builder.fsub(shifted, shift), constant(of.ir, -LN2), x)
    # the last bits of `bits` choose a power; moved to the exponent's place they stand below it, so that the table has them taken away
    bits, place = builder.bitcast(shifted, of.bits), mantissa - points
    powers = np.array([factor * 2.0 ** (i / 2**points) for i in range(2**points)], f"f{of.element.bitwidth // 8}")
    table = powers.view(f"i{powers.itemsize}") - (np.arange(len(powers)) << place)
    halves = [builder.bitcast(ir.Constant(of.bits, [int(x) for x in half]), of.ir) for half in table.reshape(-1, of.lanes)]
    if of.element.bitwidth == 32:
        between = call_llvm(builder, "llvm.x86.avx512.vpermi2var.ps.512", of.ir, halves[0], bits, halves[1])
    else:
        between = call_llvm(builder, "llvm.x86.avx512.permvar.df.512", of.ir, halves[0], bits)
    power = builder.add(builder.bitcast(between, of.bits), builder.shl(bits, constant(of.bits, place)))
    return builder.bitcast(power, of.ir), f


def _by_table(builder: Builder, of: Vector, x: Value) -> tuple[Value, Value]:
    """``2**n`` and ``e**f - 1`` of `_powers`.

    Nine instructions in float32; that two of them begin in each cycle is all that limits them.
    """
    power, f = _powers(builder, of, x)
    series = SINGLE_NEAR if of.element.bitwidth == 32 else DOUBLE_NEAR
    polynomial = constant(of.ir, series[0])
    for coefficient in series[1:]:
        polynomial = fused(builder, polynomial, f, constant(of.ir, coefficient))
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


def _exponential(builder: Builder, of: Vector, x: Value, power: Value, less_one: Value) -> Value:
    """``power * (1 + less_one)``, which is ``e**x``; 0 below the normal numbers."""
    return builder.select(_is_small(builder, of, x), constant(of.ir, 0.0), fused(builder, power, less_one, power))


@instruction
def exp(typing: Any, x: Any) -> Any:
    """Exponential of numbers that are not far above 0; 0 below the normal numbers."""

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        power, less_one = (_by_table if HOST.has_permute else _parts)(builder, x, args[0])
        return _exponential(builder, x, args[0], power, less_one)

    return x(x), build


@instruction
def rough_exp(typing: Any, x: Any) -> Any:
    """The same to 3e-5 in float32, for what is rounded to bfloat16; two instructions less, where there is a table."""

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        power, less_one = _powers(builder, x, args[0], ROUGH) if HOST.has_permute else _parts(builder, x, args[0])
        return _exponential(builder, x, args[0], power, less_one)

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
