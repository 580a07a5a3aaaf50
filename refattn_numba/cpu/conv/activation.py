"""ReLU, SiLU and GELU of vector registers, and their gradients, by a code.

Errors are below 5 units in the last place for SiLU and 9 for GELU, tails included, in float32 and where x > -5 in float64. Further down
they grow with the exponent's, as `exponential` explains, to 220 before the results are subnormal; then they are 0. Gradients are
within two units of 1, times the cotangent. At plus and minus infinity all have their limits.
"""

from __future__ import annotations

from typing import Any

from refattn_numba._activations import CODES, DENSITY, DOUBLE, DOUBLE_K, SINGLE, SINGLE_K
from refattn_numba.cpu.exponential import exp
from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.simd import (
    Builder,
    Value,
    constant,
    filled,
    fused,
    instruction,
    lanes_of,
    load,
    multiply_add,
    select,
    store,
)
from refattn_numba.cpu.sizes import smaller

RELU, SILU = CODES["relu"], CODES["silu"]

FAR = 40.0  # where the normal density is 0 in float64; the logistic function's tail is 0 at its square


@instruction
def tail_over_density(typing: Any, t: Any) -> Any:
    """``exp(t**2 / 2) Q(t)`` for t not below 0."""

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        k, series = (SINGLE_K, SINGLE) if t.element.bitwidth == 32 else (DOUBLE_K, DOUBLE)
        u = builder.fdiv(builder.fsub(args[0], constant(t.ir, k)), builder.fadd(args[0], constant(t.ir, k)))
        polynomial = constant(t.ir, series[0])
        for coefficient in series[1:]:
            polynomial = fused(builder, polynomial, u, constant(t.ir, coefficient))
        return builder.fdiv(polynomial, fused(builder, args[0], constant(t.ir, 1.25), constant(t.ir, 1.0)))

    return t(t), build


@instruction
def square_error(typing: Any, t: Any, square: Any) -> Any:
    """What the rounded square lacks; 0 where products cannot be fused."""
    return t(t, t), lambda context, builder, sig, args: fused(builder, args[0], args[0], builder.fneg(args[1]))


@compiled
def _size(like: Any, x: Any, most: float) -> Any:
    """``abs(x)``, but not more than that."""
    far, zero = filled(like, most), filled(like, 0.0)
    size = select(x < zero, zero - x, x)
    return select(far < size, far, size)


@compiled
def _bell(like: Any, t: Any) -> Any:
    """``exp(-t**2 / 2)``, as exact where that is small: what the square lacks comes to as many units in the last place as it is large."""
    square, half = t * t, filled(like, -0.5)
    e = exp(square * half)
    return multiply_add(e, square_error(t, square) * half, e)


@compiled
def activated(like: Any, code: int, x: Any) -> Any:
    """The function of that code of a register; `like` is a pointer to its type."""
    zero, one = filled(like, 0.0), filled(like, 1.0)
    y = x
    if code == RELU:
        y = select(x < zero, zero, x)
    elif code == SILU:
        t = _size(like, x, FAR * FAR)
        e = exp(zero - t)
        y = select(x < zero, (zero - t) * e, x) / (one + e)
    elif code > SILU:
        t = _size(like, x, FAR)
        tail = _bell(like, t) * tail_over_density(t)
        y = select(x < zero, (zero - t) * tail, x * (one - tail))
    return y


@compiled
def before_activated(like: Any, code: int, x: Any, dy: Any) -> Any:
    """The cotangent of x; ReLU may be given its result in the place of x, and passes nothing at 0."""
    zero, one = filled(like, 0.0), filled(like, 1.0)
    d = dy
    if code == RELU:
        d = select(x < zero, zero, select(x == zero, zero, dy))
    elif code == SILU:
        t = _size(like, x, FAR * FAR)
        e = exp(zero - t)
        share = one / (one + e)
        d = dy * multiply_add(select(x < zero, zero - t, t) * e, share * share, select(x < zero, e, one) * share)
    elif code > SILU:
        t = _size(like, x, FAR)
        bell = _bell(like, t)
        tail = bell * tail_over_density(t)
        d = dy * multiply_add(select(x < zero, zero - t, t) * filled(like, DENSITY), bell, select(x < zero, tail, one - tail))
    return d


@compiled
def activate_rows(code: int, tile: Any, step: int, rows: int, size: int) -> None:
    """Of each row of a tile, in place, by whole registers."""
    if code:
        for r in range(rows):
            for i in range(r * step, r * step + size, lanes_of(tile)):
                store(tile, i, activated(tile, code, load(tile, i)))


@compiled
def bias_rows(bias: Any, rows: int, size: int, tile: Any, step: int) -> None:
    """Each row of a tile, by whole registers, becomes its own number."""
    for r in range(rows):
        number = filled(tile, bias[r])
        for i in range(0, size, lanes_of(tile)):
            store(tile, r * step + i, number)


@compiled
def bias_lanes(bias: Any, rows: int, size: int, tile: Any, step: int) -> None:
    """All rows of a tile become these numbers."""
    lanes = lanes_of(tile)
    for first in range(0, size, lanes):
        for r in range(rows):
            for i in range(first, smaller(first + lanes, size)):
                tile[r * step + i] = bias[i]
