"""One chunk of a linear attention: what its positions write, and what its queries read, given the state before it.

With E the decay from position j to i, S the state, and X what is written (the values, or for the delta rule their difference
from what the state holds for the key):

    Z = V - (E_i0 K) S      X_i = beta_i (Z_i - sum_{j < i} E_ij (k_i . k_j) X_j)      O = (E_i0 Q) S + (E Q K^T) X

Decays are products of factors, never differences of running sums: a factor of 0 forgets, and nothing cancels. The matrices
are those of `scan_call`, in one thread's `memory`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn_numba.cpu.exponential import exp
from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.products import SPARE
from refattn_numba.cpu.scan_call import Place
from refattn_numba.cpu.scan_matrices import NEXT, add_multiplied, copy, inner, multiply, scale_rows, turn
from refattn_numba.cpu.simd import between, filled, lanes_of, largest_of, load, multiply_add, pointer_to, select, store
from refattn_numba.cpu.sizes import ceil_to, smaller
from refattn_numba.cpu.tiles import fill, load_rows

LARGEST = 80.0  # the polynomial exponential holds up to here


@compiled
def load_keys(call: Any, memory: Any, at: Place) -> None:
    """What no query enters: keys, decays, and products of the keys."""
    step, count, lanes = call.head_step, at.positions, lanes_of(memory)
    keys, gains = memory + call.at_keys, memory + call.at_gains
    source = pointer_to(call.key, memory) + (at.head * call.length + at.first) * call.head_dim
    load_rows(source, call.head_dim, count, call.head_dim, memory + call.at_ones, keys, step)
    _load_gains(call, memory, at)
    since, until = memory + call.at_since, memory + call.at_until
    start, end = memory + call.at_keys_start, memory + call.at_keys_end
    for d in range(0, step, lanes):
        factor = filled(memory, 1.0)
        for i in range(d, d + count * step, step):
            factor = factor * load(gains, i)
            store(since, i, factor)
            store(start, i, filled(memory, 0.0) - load(keys, i) * factor)
        factor = filled(memory, 1.0)
        for i in range(d + (count - 1) * step, -1, -step):
            store(until, i, factor)
            store(end, i, load(keys, i) * factor)
            factor = factor * load(gains, i)
    if call.rates > 1:
        return
    turn(keys, step, count, call.head_dim, memory + call.at_transposed, call.chunk_step)
    decays = memory + call.at_decays
    for i in range(count):
        line, gain = i * call.chunk_step, filled(memory, gains[i * step])
        for j in range(0, call.chunk_step, lanes):
            if i > 0:
                factor = load(decays, line - call.chunk_step + j) * gain
                store(decays, line + j, select(between(factor, 0, i - 1 - j), factor, filled(memory, 0.0)))
            else:
                store(decays, line + j, filled(memory, 0.0))
        decays[line + i] = 1
    if call.beta:
        _multiply_keys(call, memory, at)


@compiled
def _load_gains(call: Any, memory: Any, at: Place) -> None:
    """Exponentials of the log decays; ones where there are none."""
    gains, step, lanes = memory + call.at_gains, call.head_step, lanes_of(memory)
    log_decay = pointer_to(call.log_decay, memory) + (at.head * call.length + at.first) * call.rates
    if call.rates == 0:
        fill(gains, at.positions * step, 1.0)
        return
    if call.rates > 1:
        load_rows(log_decay, call.rates, at.positions, call.rates, memory + call.at_ones, gains, step)
    else:
        for i in range(at.positions):
            fill(gains + i * step, step, log_decay[i])
    for i in range(0, at.positions * step, lanes):
        if largest_of(load(gains, i)) > LARGEST:
            for lane in range(i, i + lanes):
                gains[lane] = np.exp(gains[lane])
        else:
            store(gains, i, exp(load(gains, i)))


@compiled
def _multiply_keys(call: Any, memory: Any, at: Place) -> None:
    """Products of the keys, each with those before it."""
    step, lanes = call.chunk_step, lanes_of(memory)
    products, decays, erase = memory + call.at_inner, memory + call.at_decays, memory + call.at_erase
    beta, zero = pointer_to(call.beta, memory) + (at.head * call.length + at.first), filled(memory, 0.0)
    multiply(memory + call.at_keys, call.head_step, memory + call.at_transposed, at.positions, call.head_dim, products, step)
    for i in range(at.positions):
        rate = filled(memory, beta[i])
        for j in range(0, step, lanes):
            decayed = load(products, i * step + j) * load(decays, i * step + j)
            decayed = select(between(decayed, 0, i - 1 - j), decayed, zero)
            store(products, i * step + j, decayed)
            store(erase, i * step + j, zero - rate * decayed)


@compiled
def load_queries(call: Any, memory: Any, at: Place, member: int) -> None:
    """Queries of one head, scaled; as the state before the chunk meets them; and their decayed products with the keys."""
    step, count, lanes = call.head_step, at.positions, lanes_of(memory)
    queries, start, since = memory + call.at_queries, memory + call.at_queries_start, memory + call.at_since
    scores, decays, zero = memory + call.at_scores, memory + call.at_decays, filled(memory, 0.0)
    row = (at.head * call.group + member) * call.length + at.first
    source = pointer_to(call.query, memory) + row * call.head_dim
    load_rows(source, call.head_dim, count, call.head_dim, memory + call.at_scales, queries, step)
    for i in range(0, count * step, lanes):
        store(start, i, load(queries, i) * load(since, i))
    if call.rates > 1:
        fill(scores, count * call.chunk_step, 0.0)
        for i in range(count):
            decay_keys(call, memory, i)
            for j in range(i + 1):
                scores[i * call.chunk_step + j] = inner(queries + i * step, memory + call.at_moved + j * step, step)
        return
    multiply(queries, step, memory + call.at_transposed, count, call.head_dim, scores, call.chunk_step)
    for i in range(count):
        for j in range(0, call.chunk_step, lanes):
            line = i * call.chunk_step + j
            decayed = load(scores, line) * load(decays, line)
            store(scores, line, select(between(decayed, 0, i - j), decayed, zero))


@compiled
def decay_keys(call: Any, memory: Any, i: int) -> None:
    """From the keys decayed to position i - 1, those decayed to i."""
    step, moved, gains = call.head_step, memory + call.at_moved, memory + call.at_gains + i * call.head_step
    for d in range(0, step, lanes_of(memory)):
        gain = load(gains, d)
        for j in range(d, d + i * step, step):
            store(moved, j, load(moved, j) * gain)
    copy(memory + call.at_keys + i * step, moved + i * step, step)


@compiled
def write(call: Any, memory: Any, at: Place, state: Any, missing: Any, writes: Any) -> None:
    """Fill `writes`, and for the delta rule what is missing for each key in the state before the chunk."""
    step, count, erase = call.part_step, at.positions, memory + call.at_erase
    source = pointer_to(call.value, memory) + (at.head * call.length + at.first) * call.value_dim + at.begin
    load_rows(source, call.value_dim, count, at.columns, memory + call.at_ones, writes, step)
    if not call.beta:
        return
    add_multiplied(memory + call.at_keys_start, call.head_step, NEXT, state, count, call.head_dim, writes, step)
    copy(writes, missing, count * step)
    scale_rows(writes, step, count, pointer_to(call.beta, memory) + (at.head * call.length + at.first))
    for i in range(0, count, SPARE):
        end = smaller(i + SPARE, count)
        if i > 0:
            add_multiplied(erase + i * call.chunk_step, call.chunk_step, NEXT, writes, end - i, i, writes + i * step, step)
        for d in range(0, step, lanes_of(memory)):
            for j in range(i + 1, end):
                line = load(writes, j * step + d)
                for k in range(i, j):
                    line = multiply_add(filled(memory, erase[j * call.chunk_step + k]), load(writes, k * step + d), line)
                store(writes, j * step + d, line)


@compiled
def erase_back(call: Any, memory: Any, count: int, d_writes: Any) -> None:
    """Solve the transposed system, in place."""
    step, erase = call.part_step, memory + call.at_erase
    for i in range(ceil_to(count, SPARE) - SPARE, -1, -SPARE):
        end = smaller(i + SPARE, count)
        if end < count:
            later, factors = d_writes + end * step, erase + (end * call.chunk_step + i)
            add_multiplied(factors, NEXT, call.chunk_step, later, end - i, count - end, d_writes + i * step, step)
        for d in range(0, step, lanes_of(memory)):
            for j in range(end - 2, i - 1, -1):
                line = load(d_writes, j * step + d)
                for k in range(j + 1, end):
                    line = multiply_add(filled(memory, erase[k * call.chunk_step + j]), load(d_writes, k * step + d), line)
                store(d_writes, j * step + d, line)


@compiled
def advance(call: Any, memory: Any, count: int, writes: Any, state: Any) -> None:
    """The state after the chunk in place of that before it."""
    if call.rates > 0:
        scale_rows(state, call.part_step, call.head_dim, memory + call.at_since + (count - 1) * call.head_step)
    add_multiplied(memory + call.at_keys_end, NEXT, call.head_step, writes, call.head_dim, count, state, call.part_step)
