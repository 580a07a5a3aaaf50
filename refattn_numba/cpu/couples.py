"""Numbers in bfloat16, and couples of them in 32 bits, which processors multiply and sum in float32 by one instruction.

A pointer to uint16 is one to bfloat16: `simd.load` makes float32 of what it points to, `simd.store` rounds to it, and so do `get` and
`put` for one number. Tiles and rows hold couples where they are an operand of a product; each takes the place of one float32::

    couples of a row        c[k, r] = (x[r, 2k], x[r, 2k + 1])      where the sum runs along rows
    couples of two lines    c[k, r] = (x[2k, r], x[2k + 1, r])      where it runs over lines

What has no partner has a zero, and zeros fill the last matrix tile of a sum (`matrix_tiles`), where the processor has those. Only processors of which the table (`instructions`) says so have the instruction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from refattn_numba.cpu.attention_stages import Block, largest_line
from refattn_numba.cpu.call import empty
from refattn_numba.cpu.exponential import exp, rough_exp
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.matrix_tiles import HAS_TILES, SIDE, TILED
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
    multiply_add,
    pointer_to,
    put,
    select,
    store,
    store_to,
    tile_of,
    transpose,
)
from refattn_numba.cpu.sizes import ceil_to, smaller
from refattn_numba.cpu.threads import run
from refattn_numba.cpu.tiles import fill

GROWTH = 2.0  # of scores; the weight of the largest is 1, which is not rounded, but for so much


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
def fill_last_tile(rows: int, out: Any, step: int) -> None:
    """Zeros behind the couples of so many rows, in whole registers."""
    if HAS_TILES:
        for k in range((rows + 1) // 2, ceil_to(rows, TILED) // 2):
            fill(out + k * step, step, 0.0)


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
    fill_last_tile(block.keys, out, width)


@compiled
def advance_in_couples(tile: Any, block: Block, scale: float, largest: Any, total: Any, decay: Any) -> None:
    """`attention_stages.advance` of scores before a scale above 0, whose weights become couples of two lines, in place.

    `largest` is only nearly so: it stays until it is too small by `GROWTH`, since a decay other than 1 costs a pass over all sums.
    """
    width, lanes, end = tile_of(tile), lanes_of(tile), block.keys * tile_of(tile)
    nothing, zero, by, growth = filled(tile, -math.inf), filled(tile, 0.0), filled(tile, scale), filled(tile, GROWTH)
    for r in range(0, block.queries, lanes):
        before, now = load(largest, r), largest_line(tile, r, end) * by
        now = select(before + growth < now, now, before)
        less = select(now == nothing, zero, zero - now)
        i, added = r, zero
        while i < end - width:
            low, high = rough_exp(multiply_add(load(tile, i), by, less)), rough_exp(multiply_add(load(tile, i + width), by, less))
            store_couples(tile, i // (2 * width) * width + r, low, high)
            added = added + (low + high)
            i += 2 * width
        if i < end:
            low = rough_exp(multiply_add(load(tile, i), by, less))
            store_couples(tile, i // (2 * width) * width + r, low, zero)
            added = added + low
        shrunk = exp(before + less)
        store(largest, r, now)
        store(decay, r, shrunk)
        store(total, r, load(total, r) * shrunk + added)
    fill_last_tile(block.keys, tile, width)


@compiled
def narrow_lines(tile: Any, block: Block) -> None:
    """Each line in bfloat16, in place; zeros up to an even number of queries, or a whole tile's."""
    width, lanes = tile_of(tile), lanes_of(tile)
    for c in range(block.keys):
        line = tile + c * width
        halves = halves_of(line)
        for r in range(0, block.queries, lanes):
            store(halves, r, load(line, r))
        for r in range(block.queries, ceil_to(block.queries, TILED if HAS_TILES else 2)):
            put(halves, r, 0.0)


@kernel
def couple_rows(
    address: int, batch_step: int, head_step: int, row_step: int, heads: int, rows: int, size: int, out: Any, share: int, shares: int
) -> None:
    """Of each head; steps are in numbers."""
    count, step = out.shape[0], (rows + 1) // 2 * size
    for head in range(share * count // shares, (share + 1) * count // shares):
        source = halves_of(codes_at(address)) + (head // heads * batch_step + head % heads * head_step)
        load_row_couples(source, row_step, rows, size, couples_of(pointer_to(out.ctypes.data, out)) + head * step, size)


@kernel
def tile_rows(
    address: int, batch_step: int, head_step: int, row_step: int, heads: int, rows: int, size: int, out: Any, share: int, shares: int
) -> None:
    """Of each head; steps are in numbers, and `size` is one of whole tiles."""
    count, blocks = out.shape[0], (rows + TILED - 1) // TILED
    for head in range(share * count // shares, (share + 1) * count // shares):
        source = halves_of(codes_at(address)) + (head // heads * batch_step + head % heads * head_step)
        made = couples_of(pointer_to(out.ctypes.data, out)) + head * blocks * size * SIDE
        for block in range(blocks):
            here = smaller(TILED, rows - block * TILED)
            for d in range(0, size, SIDE):
                square = made + (block * size + d) * SIDE
                load_row_couples(source + (block * TILED * row_step + d), row_step, here, SIDE, square, SIDE)
                fill_last_tile(here, square, SIDE)
                transpose(square, SIDE, square, SIDE)


def coupled_rows(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Couples of two rows, with the axes head, couple, dimension."""
    return _made_of_rows(couple_rows, x, (x.shape[-2] + 1) // 2, x.shape[-1])


def tiled_rows(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Couples of two rows, with the axes head, block of 32 rows, dimension, couple."""
    return _made_of_rows(tile_rows, x, -(-x.shape[-2] // TILED), x.shape[-1], SIDE)


def couples_for_sums(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows that are summed over, as products want them: `tiled_rows` where whole tiles are made, else `coupled_rows`."""
    return tiled_rows(x) if HAS_TILES and x.shape[-1] % TILED == 0 else coupled_rows(x)


def _made_of_rows(kernel: Callable[..., None], x: np.ndarray[Any, Any], *made: int) -> np.ndarray[Any, Any]:
    *batch, heads, rows, size = x.shape
    if x.size and x.strides[-1] != x.itemsize:
        x = np.ascontiguousarray(x)
    view = x.reshape(math.prod(batch), heads, rows, size)
    out = empty((math.prod(batch) * heads, *made), np.uint32)
    steps = (step // x.itemsize for step in view.strides[:-1])
    if out.size:
        run(kernel, view.ctypes.data, *steps, heads, rows, size, out.reshape(out.shape[0], -1), tasks=out.shape[0], cost=out.size)
    return out
