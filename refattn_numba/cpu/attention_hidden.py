"""Products with what stands behind a mask: a weight of 0 times NaN would be NaN, so masked pairs are passed over one by one.

They are slow, and taken for the few tiles that hold masked pairs beside a number that is not finite. `logits` is such a tile
from before the softmax: -inf where a pair is masked.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn_numba.cpu.attention_stages import Block
from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.simd import filled, get, lanes_of, load, multiply_add, select, store, tile_of


@compiled
def hide(logits: Any, block: Block, tile: Any) -> None:
    """Zeros at masked pairs."""
    width, lanes, masked, zero = tile_of(tile), lanes_of(tile), filled(tile, -np.inf), filled(tile, 0.0)
    for c in range(block.keys):
        for i in range(c * width, c * width + block.queries, lanes):
            store(tile, i, select(load(logits, i) == masked, zero, load(tile, i)))


@compiled
def add_visible(logits: Any, block: Block, pairs: Any, rows: Any, step: int, size: int, decay: Any, out: Any) -> None:
    """``out[d, r] = out[d, r] * decay[r] + sum over c of pairs[c, r] * rows[c, d]``; lanes are queries, rows are of keys."""
    width, lanes, masked = tile_of(pairs), lanes_of(pairs), filled(pairs, -np.inf)
    for d in range(size):
        for r in range(0, block.queries, lanes):
            total = filled(pairs, 0.0)
            for c in range(block.keys):
                i = c * width + r
                more = multiply_add(load(pairs, i), filled(pairs, get(rows, c * step + d)), total)
                total = select(load(logits, i) == masked, total, more)
            store(out, d * width + r, multiply_add(load(out, d * width + r), load(decay, r), total))


@compiled
def add_visible_rows(logits: Any, block: Block, pairs: Any, rows: Any, row: int, out: Any) -> None:
    """``out[c, d] += sum over r of pairs[c, r] * rows[r, d]``; lanes are dimensions, rows of `row` numbers are of queries."""
    width, lanes = tile_of(pairs), lanes_of(pairs)
    for c in range(block.keys):
        for r in range(block.queries):
            if logits[c * width + r] != -np.inf:
                by = filled(pairs, pairs[c * width + r])
                for d in range(0, row, lanes):
                    store(out, c * row + d, multiply_add(by, load(rows, r * row + d), load(out, c * row + d)))
