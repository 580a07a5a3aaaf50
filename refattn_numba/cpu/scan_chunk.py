"""One chunk of a linear attention: what its positions write, and what its queries read, given the state before it.

With E the decay from position j to i, S the state, and X what is written (the values, or for the delta rule their difference
from what the state holds for the key):

    Z = V - (E_i0 K) S      X_i = beta_i (Z_i - sum_{j < i} E_ij (k_i . k_j) X_j)      O = (E_i0 Q) S + (E Q K^T) X

Decays are products of factors, never differences of running sums: a factor of 0 forgets, and nothing cancels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array
from refattn_numba.cpu.jit import helper, reordered_helper
from refattn_numba.cpu.plain.exponential import exp
from refattn_numba.cpu.scan_panels import (
    LINES,
    MORE,
    NEW,
    NEXT,
    PANEL,
    START,
    add_product,
    apart,
    ceil_to,
    clear,
    flat,
    load,
    multiply,
    multiply_transposed,
    panels,
    transpose,
)

CHUNK: Any = np.int64(32)  # positions at most: the state's products cost as much for any number, those inside a chunk grow with it
LARGEST = 80.0  # the polynomial exponential holds up to here


class Operands(NamedTuple):
    """Arrays whose first axis is batch and key heads.

    Attributes
    ----------
    query : array, shape (n, group, length, head_dim)
        What is asked.
    key : array, shape (n, length, head_dim)
        Where each position writes.
    value : array, shape (n, length, value_dim)
        What each position writes.
    log_decay : array, shape (n, length, 0 or 1 or head_dim)
        None, one for all rows of the state, or one for each.
    beta : array, shape (n, length or 0)
        Empty where nothing is erased.
    state : array, shape (n, head_dim, value_dim)
        The state before the first position.
    scale : float
        Factor of the queries.
    chunk : int
        Positions of a chunk.
    """

    query: Array
    key: Array
    value: Array
    log_decay: Array
    beta: Array
    state: Array
    scale: Any
    chunk: int


class Place(NamedTuple):
    """Positions ``first`` to before ``first + positions`` of one head, and values from column `begin`."""

    head: int
    first: int
    positions: int
    begin: int
    columns: int


class Keys(NamedTuple):
    """Of one chunk, what no query enters.

    Attributes
    ----------
    key, transposed : array
        Keys in rows, and in columns.
    key_end : array
        Keys decayed from their position to the last.
    key_start : array
        Minus the keys, as the state before the chunk meets them.
    gains, since, until : array
        Factors of decay at each position; from before the chunk to it; from it to the last.
    decays : array
        Between positions, where one factor holds for all rows: E below the diagonal, 1 on it, 0 above.
    inner : array
        Decayed products of the keys below the diagonal.
    erase : array
        The same, times minus beta: what of earlier writes a position takes away.
    """

    key: Array
    transposed: Array
    key_end: Array
    key_start: Array
    gains: Array
    since: Array
    until: Array
    decays: Array
    inner: Array
    erase: Array


@helper
def keys_scratch(operands: Operands) -> Keys:
    """One thread's memory."""
    key, head_dim = operands.key, operands.key.shape[2]
    return Keys(
        panels(operands.chunk, head_dim, key),
        panels(head_dim, operands.chunk, key),
        panels(operands.chunk, head_dim, key),
        panels(operands.chunk, head_dim, key),
        panels(operands.chunk, head_dim, key),
        panels(operands.chunk, head_dim, key),
        panels(operands.chunk, head_dim, key),
        panels(operands.chunk, operands.chunk, key),
        panels(operands.chunk, operands.chunk, key),
        panels(operands.chunk, operands.chunk, key),
    )


@helper
def by_row(operands: Operands) -> bool:
    """Whether each row of the state has a decay of its own."""
    return operands.log_decay.shape[2] > 1


@helper
def load_keys(operands: Operands, at: Place, s: Keys) -> None:
    """Fill `Keys`."""
    apart()
    one = operands.key.dtype.type(1)
    head_dim, count = operands.key.shape[2], at.positions
    load(operands.key[at.head], at.first, count, START, one, s.key)
    _load_gains(operands, at, s)
    for p in range(s.key.shape[0]):
        for i in range(count):
            row, before, since, start, gain = s.key[p, i], s.since[p, i - (i > 0)], s.since[p, i], s.key_start[p, i], s.gains[p, i]
            for lane in range(PANEL):
                factor = before[lane] * gain[lane] if i else gain[lane]
                since[lane] = factor
                start[lane] = -row[lane] * factor
        for i in range(count - 1, -1, -1):
            last = i == count - 1
            row, after, until, end, gain = (
                s.key[p, i],
                s.until[p, i + (not last)],
                s.until[p, i],
                s.key_end[p, i],
                s.gains[p, i + (not last)],
            )
            for lane in range(PANEL):
                factor = one if last else after[lane] * gain[lane]
                until[lane] = factor
                end[lane] = row[lane] * factor
        clear(s.key_end, p, count)
        clear(s.key_start, p, count)
    if by_row(operands):
        return
    transpose(s.key, count, head_dim, s.transposed)
    for i in range(count):
        line, above, gain = s.decays[0, i], s.decays[0, i - (i > 0)], s.gains[0, i, 0]
        for j in range(CHUNK):
            line[j] = above[j] * gain if j < i else one if j == i else 0
    clear(s.decays, START, count)
    if not operands.beta.shape[1]:
        return
    multiply(s.key, s.transposed, s.inner, count, head_dim, count, NEW)
    for i in range(count):
        rate = operands.beta[at.head, at.first + i]
        line, decays, erase = s.inner[0, i], s.decays[0, i], s.erase[0, i]
        for j in range(CHUNK):
            line[j] = line[j] * decays[j] if j < i else 0
            erase[j] = -rate * line[j]
    clear(s.inner, START, count)
    clear(s.erase, START, count)


@helper
def _load_gains(operands: Operands, at: Place, s: Keys) -> None:
    """Exponentials of the log decays; ones where there are none."""
    apart()
    log_decay = operands.log_decay[at.head]
    if not by_row(operands):
        for i in range(at.positions):
            gain = np.exp(log_decay[at.first + i, 0]) if log_decay.shape[1] else s.key.dtype.type(1)
            for p in range(s.key.shape[0]):
                for lane in range(PANEL):
                    s.gains[p, i, lane] = gain
        return
    load(log_decay, at.first, at.positions, START, s.key.dtype.type(1), s.gains)
    for p in range(s.key.shape[0]):
        for i in range(at.positions):
            row, large = s.gains[p, i], False
            for lane in range(PANEL):
                large |= row[lane] > LARGEST
            if large:
                for lane in range(PANEL):
                    row[lane] = np.exp(row[lane])
            else:
                for lane in range(PANEL):
                    row[lane] = exp(row[lane])


@helper
def load_queries(
    operands: Operands, member: int, at: Place, s: Keys, query: Array, query_start: Array, scores: Array, moved: Array
) -> None:
    """Queries of one head, scaled; as the state before the chunk meets them; and their decayed products with the keys."""
    apart()
    count, head_dim = at.positions, operands.key.shape[2]
    load(operands.query[at.head, member], at.first, count, START, operands.scale, query)
    for p in range(query.shape[0]):
        for i in range(count):
            for lane in range(PANEL):
                query_start[p, i, lane] = query[p, i, lane] * s.since[p, i, lane]
        clear(query_start, p, count)
    if by_row(operands):
        for i in range(count):
            decay_keys(s, i, moved)
            _products(moved, query, i, scores[0])
        clear(scores, START, count)
        return
    multiply(query, s.transposed, scores, count, head_dim, count, NEW)
    for i in range(count):
        line, decays = scores[0, i], s.decays[0, i]
        for j in range(CHUNK):
            line[j] = line[j] * decays[j] if j <= i else 0


@helper
def decay_keys(s: Keys, i: int, moved: Array) -> None:
    """From the keys decayed to position i - 1, those decayed to i."""
    apart()
    for p in range(moved.shape[0]):
        gain = s.gains[p, i]
        for j in range(i):
            line = moved[p, j]
            for lane in range(PANEL):
                line[lane] *= gain[lane]
        for lane in range(PANEL):
            moved[p, i, lane] = s.key[p, i, lane]


@reordered_helper
def _products(moved: Array, query: Array, i: int, scores: Array) -> None:
    """Inner products of query i with the first keys."""
    for lane in range(PANEL):
        scores[i, lane] = 0
    for p in range(moved.shape[0]):
        row = query[p, i]
        for j in range(i + 1):
            line, total = moved[p, j], moved.dtype.type(0)
            for lane in range(PANEL):
                total += row[lane] * line[lane]
            scores[i, j] += total


@helper
def write(operands: Operands, at: Place, s: Keys, state: Array, missing: Array, writes: Array) -> None:
    """Fill `writes`, and for the delta rule what is missing for each key in the state before the chunk."""
    apart()
    one, count = operands.key.dtype.type(1), at.positions
    load(operands.value[at.head], at.first, count, at.begin, one, writes)
    if not operands.beta.shape[1]:
        return
    multiply(s.key_start, state, writes, count, operands.key.shape[2], at.columns, MORE)
    for p in range(writes.shape[0]):
        for i in range(count):
            line, rate = writes[p, i], operands.beta[at.head, at.first + i]
            for lane in range(PANEL):
                missing[p, i, lane] = line[lane]
                line[lane] *= rate
        clear(missing, p, count)
        numbers, erase = flat(writes[p]), flat(s.erase)
        for i in range(0, count, LINES):
            block = numbers[i * PANEL : (i + LINES) * PANEL]
            add_product(erase[i * PANEL :], PANEL, NEXT, numbers, block, LINES, i, PANEL, MORE)
            for j in range(i + 1, i + LINES):
                for k in range(i, j):
                    _add_row(erase[j * PANEL + k], writes[p, k], writes[p, j])
        clear(writes, p, count)


@helper
def erase_back(s: Keys, count: int, d_writes: Array) -> None:
    """Solve the transposed system, in place."""
    erase = flat(s.erase)
    for p in range(d_writes.shape[0]):
        clear(d_writes, p, count)
        numbers, end = flat(d_writes[p]), ceil_to(count, LINES)
        for i in range(end - LINES, -1, -LINES):
            block, later = numbers[i * PANEL : (i + LINES) * PANEL], i + LINES
            add_product(erase[later * PANEL + i :], NEXT, PANEL, numbers[later * PANEL :], block, LINES, end - later, PANEL, MORE)
            for j in range(later - 2, i - 1, -1):
                for k in range(j + 1, later):
                    _add_row(erase[k * PANEL + j], d_writes[p, k], d_writes[p, j])
        clear(d_writes, p, count)


@helper
def _add_row(factor: Any, x: Array, y: Array) -> None:
    """``y += factor * x``."""
    for lane in range(PANEL):
        y[lane] += factor * x[lane]


@helper
def advance(operands: Operands, at: Place, s: Keys, writes: Array, state: Array) -> None:
    """The state after the chunk in place of that before it."""
    apart()
    if operands.log_decay.shape[2]:
        decay_rows(s, at.positions, state, operands.key.shape[2])
    multiply_transposed(s.key_end, writes, state, operands.key.shape[2], at.positions, at.columns, MORE)


@helper
def decay_rows(s: Keys, count: int, state: Array, head_dim: int) -> None:
    """A state, or its cotangent, decayed over the whole chunk."""
    for p in range(state.shape[0]):
        for d in range(head_dim):
            gain, row = s.since[d // PANEL, count - 1, d % PANEL], state[p, d]
            for lane in range(PANEL):
                row[lane] *= gain
