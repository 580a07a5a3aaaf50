"""Numbers in bfloat16, and couples of them in 32 bits, which processors multiply and sum in float32 by one instruction.

A pointer to uint16 is one to bfloat16: `simd.load` makes float32 of what it points to, `simd.store` rounds to it, and so do `get` and
`put` for one number. Tiles and rows hold couples where they are an operand of a product; each takes the place of one float32::

    couples of a row        c[k, r] = (x[r, 2k], x[r, 2k + 1])      where the sum runs along rows
    couples of two lines    c[k, r] = (x[2k, r], x[2k + 1, r])      where it runs over lines

What has no partner has a zero. Only processors of which the table (`instructions`) says so have the instruction.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from refattn_numba.cpu.attention_stages import Block
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.simd import (
    I32,
    Builder,
    Value,
    bfloat16_of,
    codes_at,
    filled,
    get,
    instruction,
    lanes_of,
    load,
    pointer_to,
    put,
    store,
    store_to,
    tile_of,
    transpose,
)
from refattn_numba.cpu.sizes import smaller
from refattn_numba.cpu.threads import run
from refattn_numba.cpu.tiles import fill


@instruction
def halves_of(typing: Any, p: Any) -> Any:
    """A pointer to the bfloat16 numbers of couples."""
    made = types.CPointer(types.uint16)
    return made(p), lambda context, builder, sig, args: builder.bitcast(args[0], context.get_value_type(made))


@instruction
def couples_of(typing: Any, p: Any) -> Any:
    """A pointer to couples, as float32, of bfloat16 numbers that begin on one of 32 bits."""
    made = types.CPointer(types.float32)
    return made(p), lambda context, builder, sig, args: builder.bitcast(args[0], context.get_value_type(made))


@instruction
def store_couples(typing: Any, p: Any, i: Any, low: Any, high: Any) -> Any:
    """Two registers of float32, rounded, as one of couples."""

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        lanes = low.lanes
        order = [lane // 2 + lanes * (lane % 2) for lane in range(2 * lanes)]
        numbers = bfloat16_of(builder, *args[2:])
        mixed = builder.shuffle_vector(numbers, ir.Constant(numbers.type, ir.Undefined), ir.Constant(ir.VectorType(I32, 2 * lanes), order))
        store_to(builder, mixed, builder.gep(args[0], [args[1]]), 4)
        return context.get_dummy_value()

    return types.void(p, types.intp, low, high), build


@compiled
def load_couples(source: Any, step: int, rows: int, size: int, tile: Any) -> None:
    """Rows of bfloat16, of an even size, to a tile of the couples of each; zeros for rows that do not exist."""
    width, lanes, numbers = tile_of(tile), lanes_of(tile), couples_of(source)
    size, step = size // 2, step // 2
    if rows < width:
        fill(tile, size * width, 0.0)
    for r in range(0, rows, lanes):
        whole = size // lanes * lanes if r + lanes <= rows else 0
        for d in range(0, whole, lanes):
            transpose(numbers + (r * step + d), step, tile + (d * width + r), width)
        for row in range(r, smaller(r + lanes, rows)):
            for d in range(whole, size):
                tile[d * width + row] = numbers[row * step + d]


@compiled
def load_row_couples(source: Any, step: int, rows: int, size: int, out: Any, out_step: int) -> None:
    """Couples of two rows of bfloat16, and zeros up to `out_step`."""
    lanes, halves = lanes_of(out), halves_of(out)
    whole, zero = size // lanes * lanes, filled(out, 0.0)
    for r in range(0, rows, 2):
        at, row, has_both = r // 2 * out_step, source + r * step, r + 1 < rows
        for d in range(0, whole, lanes):
            store_couples(out, at + d, load(row, d), load(row, step + d) if has_both else zero)
        for d in range(whole, size):
            put(halves, 2 * (at + d), get(row, d))
            put(halves, 2 * (at + d) + 1, get(row, step + d) if has_both else 0.0)
        for d in range(size, out_step):
            out[at + d] = 0


@compiled
def couple_lines(tile: Any, block: Block, out: Any) -> None:
    """Couples of two lines of float32; `out` may be the tile itself."""
    width, lanes, zero = tile_of(tile), lanes_of(tile), filled(tile, 0.0)
    for r in range(0, block.queries, lanes):
        last = (block.keys - 1) * width + r
        for i in range(r, last, 2 * width):
            store_couples(out, i // (2 * width) * width + r, load(tile, i), load(tile, i + width))
        if block.keys % 2:
            store_couples(out, block.keys // 2 * width + r, load(tile, last), zero)


@compiled
def narrow_lines(tile: Any, block: Block) -> None:
    """Each line in bfloat16, in place; a zero behind an odd number of queries."""
    width, lanes = tile_of(tile), lanes_of(tile)
    for c in range(block.keys):
        line = tile + c * width
        halves = halves_of(line)
        for r in range(0, block.queries, lanes):
            store(halves, r, load(line, r))
        if block.queries % 2:
            put(halves, block.queries, 0.0)


@kernel
def couple_rows(
    address: int, batch_step: int, head_step: int, row_step: int, heads: int, rows: int, size: int, out: Any, share: int, shares: int
) -> None:
    """Of each head; steps are in numbers."""
    count, step = out.shape[0], (rows + 1) // 2 * size
    for head in range(share * count // shares, (share + 1) * count // shares):
        source = halves_of(codes_at(address)) + (head // heads * batch_step + head % heads * head_step)
        load_row_couples(source, row_step, rows, size, couples_of(pointer_to(out.ctypes.data, out)) + head * step, size)


def coupled_rows(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Couples of two rows, with the axes head, couple, dimension."""
    *batch, heads, rows, size = x.shape
    if x.size and x.strides[-1] != x.itemsize:
        x = np.ascontiguousarray(x)
    view = x.reshape(math.prod(batch), heads, rows, size)
    out = np.empty((math.prod(batch) * heads, (rows + 1) // 2, size), np.uint32)
    steps = (step // x.itemsize for step in view.strides[:-1])
    if out.size:
        run(couple_rows, view.ctypes.data, *steps, heads, rows, size, out, tasks=out.shape[0], cost=out.size)
    return out
