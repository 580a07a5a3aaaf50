"""Winograd's transforms in compiled code: one axis of a tile after the other, with channels in the lanes."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import combinations
from typing import Any

from llvmlite import ir
from numba.core import types

from refattn_numba.cpu.conv.winograd_matrices import MATRICES, Rows, transposed
from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.simd import Builder, Value, Vector, constant, fused, instruction, lanes_of, load_from, store_to

I64 = ir.IntType(64)


def shared(rows: Rows) -> tuple[list[tuple[int, int, Fraction]], list[dict[int, Fraction]]]:
    """A matrix as sums with fewer terms: operands ``x[i] + ratio * x[j]``, numbered on from the inputs, which several rows have in common.

    Then for each row the factors of its operands.
    """
    sums = [{i: factor for i, factor in enumerate(row) if factor} for row in rows]
    made: list[tuple[int, int, Fraction]] = []
    while True:
        pairs = [(i, j, row[j] / row[i]) for row in sums for i, j in combinations(sorted(row), 2)]
        best = max(pairs, key=pairs.count, default=None)
        if best is None or pairs.count(best) < 2:
            return made, sums
        i, j, ratio = best
        number = len(rows[0]) + len(made)
        made.append(best)
        for row in sums:
            if i in row and j in row and row[j] / row[i] == ratio:
                row[number] = row.pop(i)
                del row[j]


def _sum(builder: Builder, vector: ir.VectorType, terms: list[tuple[Fraction, Value]]) -> Value:
    """Those without a factor first."""
    terms = sorted(terms, key=lambda term: (term[0] != 1, abs(term[0]) != 1))
    factor, total = terms[0]
    if factor == -1:
        total = builder.fneg(total)
    elif factor != 1:
        total = builder.fmul(total, constant(vector, float(factor)))
    for factor, operand in terms[1:]:
        if factor == 1:
            total = builder.fadd(total, operand)
        elif factor == -1:
            total = builder.fsub(total, operand)
        else:
            total = fused(builder, operand, constant(vector, float(factor)), total)
    return total


def product_with(rows: Rows) -> Callable[..., Any]:
    """Straight-line code for ``out = rows @ x``; x and out have, for each number, as many channels as a register of `like` holds.

    Where one of them is in float64, so is what is between.
    """
    pairs, sums = shared(rows)

    @instruction
    def multiply(typing: Any, like: Any, x: Any, x_step: Any, out: Any, out_step: Any) -> Any:
        def vector(pointer: Any) -> ir.VectorType:
            return ir.VectorType(Vector(pointer.dtype).ir.element, Vector(like.dtype).lanes)

        wide = vector(max(x, out, key=lambda pointer: pointer.dtype.bitwidth))

        def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            _, x_at, x_by, out_at, out_by = args

            def read(i: int) -> Value:
                address = builder.gep(x_at, [builder.mul(x_by, I64(i))])
                value = load_from(builder, address, vector(x), x.dtype.bitwidth // 8)
                return value if value.type == wide else builder.fpext(value, wide)

            values = [read(i) for i in range(len(rows[0]))]
            for i, j, ratio in pairs:
                values.append(_sum(builder, wide, [(Fraction(1), values[i]), (ratio, values[j])]))
            for i, row in enumerate(sums):
                total = _sum(builder, wide, [(factor, values[j]) for j, factor in row.items()])
                total = total if vector(out) == wide else builder.fptrunc(total, vector(out))
                store_to(builder, total, builder.gep(out_at, [builder.mul(out_by, I64(i))]), out.dtype.bitwidth // 8)
            return context.get_dummy_value()

        return types.void(like, x, types.intp, out, types.intp), build

    return multiply


copy = product_with(((Fraction(1),),))


def _along(which: str, *, turned: bool = False) -> Callable[..., None]:
    """The transform of some lines along one axis."""

    def made(m: int) -> Callable[..., Any]:
        rows = getattr(MATRICES[m], which)
        return product_with(transposed(rows) if turned else rows)

    two, four = made(2), made(4)

    @compiled
    def lines(m: int, like: Any, x: Any, x_step: int, x_next: int, out: Any, out_step: int, out_next: int, count: int) -> None:
        """Numbers lie a step apart, lines a `next`; an axis of one tap has m = 1."""
        if m == 4:
            for i in range(count):
                four(like, x + i * x_next, x_step, out + i * out_next, out_step)
        elif m == 2:
            for i in range(count):
                two(like, x + i * x_next, x_step, out + i * out_next, out_step)
        else:
            for i in range(count):
                copy(like, x + i * x_next, x_step, out + i * out_next, out_step)

    return lines


inputs_along = _along("inputs")
"""B^T x."""
weights_along = _along("weights")
"""G w."""
outputs_along = _along("outputs")
"""A^T y."""
outputs_back = _along("outputs", turned=True)
"""A dy."""
weights_back = _along("weights", turned=True)
"""G^T dw."""


@compiled
def points_of(m: int) -> int:
    """How many numbers a tile has along an axis before it becomes m outputs."""
    return m + 2 if m > 1 else 1


@compiled
def taps_of(m: int) -> int:
    """Of an axis."""
    return 3 if m > 1 else 1


@compiled
def transform_weight(m_d: int, m_h: int, m_w: int, x: Any, x_step: int, one: Any, two: Any, out: Any, out_step: int) -> None:
    """From one register for each tap, x_step apart, to one for each point; `one` and `two` are memory of float64."""
    lanes, p_d, p_h = lanes_of(x), points_of(m_d), points_of(m_h)
    t_h, t_w = taps_of(m_h), taps_of(m_w)
    if m_d == 1:
        weights_along(m_h, x, x, t_w * x_step, x_step, two, t_w * lanes, lanes, t_w)
        weights_along(m_w, x, two, lanes, t_w * lanes, out, out_step, points_of(m_w) * out_step, p_h)
        return
    weights_along(m_d, x, x, t_h * t_w * x_step, x_step, one, t_h * t_w * lanes, lanes, t_h * t_w)
    for d in range(p_d):
        weights_along(m_h, x, one + d * t_h * t_w * lanes, t_w * lanes, lanes, two + d * p_h * t_w * lanes, t_w * lanes, lanes, t_w)
    weights_along(m_w, x, two, lanes, t_w * lanes, out, out_step, points_of(m_w) * out_step, p_d * p_h)


@compiled
def gradient_of_weight(m_d: int, m_h: int, m_w: int, x: Any, x_step: int, one: Any, two: Any, out: Any, out_step: int) -> None:
    """From one register for each point, x_step apart, to one for each tap; `one` and `two` are memory."""
    lanes, p_d, p_h, p_w = lanes_of(x), points_of(m_d), points_of(m_h), points_of(m_w)
    t_h, t_w = taps_of(m_h), taps_of(m_w)
    weights_back(m_w, x, x, x_step, p_w * x_step, one, lanes, t_w * lanes, p_d * p_h)
    for d in range(p_d):
        weights_back(m_h, x, one + d * p_h * t_w * lanes, t_w * lanes, lanes, two + d * t_h * t_w * lanes, t_w * lanes, lanes, t_w)
    weights_back(m_d, x, two, t_h * t_w * lanes, lanes, out, t_h * t_w * out_step, out_step, t_h * t_w)
