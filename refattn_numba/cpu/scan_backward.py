"""Linear attentions backward: spans from the last to the first, in each the chunks forward from the state that was kept, then back."""

from __future__ import annotations

from typing import Any

from refattn._core import Array, Integers
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.scan_call import SPAN, Place
from refattn_numba.cpu.scan_chunk import advance, decay_keys, erase_back, load_keys, load_queries, write
from refattn_numba.cpu.scan_forward import fill_factors, load_state
from refattn_numba.cpu.scan_matrices import HERE, NEXT, add_multiplied, copy, inner, multiply, scale_rows, turn
from refattn_numba.cpu.simd import between, filled, lanes_of, load, multiply_add, next_of, pointer_to, select, store, total_of
from refattn_numba.cpu.sizes import ceil_to, smaller
from refattn_numba.cpu.tiles import fill, load_rows, store_rows


@kernel
def backward(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """Fill the gradients; a task is some columns of the values of one head."""
    call = calls[0]
    memory = pointer_to(shared.ctypes.data, shared) + next_of(counters, 1) * call.memory_size
    fill_factors(call, memory)
    kept, writes, missing = memory + call.at_kept, memory + call.at_writes, memory + call.at_missing
    d_state, size, spans = memory + call.at_d_states, call.head_dim * call.value_dim, ceil_to(call.length, SPAN) // SPAN
    while True:
        task = next_of(counters, 0)
        if task >= call.count * call.parts:
            return
        head, part = task // call.parts, task % call.parts
        begin = part * call.part
        columns = smaller(call.part, call.value_dim - begin)
        load_state(call, memory, pointer_to(call.d_end, memory) + (head * size + begin), columns, d_state)
        for span in range(spans - 1, -1, -1):
            start = span * SPAN
            used = ceil_to(smaller(SPAN, call.length - start), call.chunk) // call.chunk
            load_state(call, memory, pointer_to(call.states, memory) + ((head * spans + span) * size + begin), columns, kept)
            for turned in range(2 * used):  # the chunks forward, then back
                c = turned if turned < used else 2 * used - 1 - turned
                first = start + c * call.chunk
                at = Place(head, first, smaller(call.chunk, call.length - first), begin, columns, part)
                state, made, lacked = kept + c * call.state_size, writes + c * call.writes_size, missing + c * call.writes_size
                if turned != used:
                    load_keys(call, memory, at)
                if turned >= used:
                    _backward_chunk(call, memory, at, state, made, lacked)
                    continue
                write(call, memory, at, state, lacked, made)
                if c < used - 1:
                    copy(state, state + call.state_size, call.state_size)
                    advance(call, memory, at.positions, made, state + call.state_size)
        out = pointer_to(call.d_state, memory) + (head * size + begin)
        store_rows(d_state, call.part_step, call.head_dim, columns, 1.0, out, call.value_dim)


@compiled
def _backward_chunk(call: Any, memory: Any, at: Place, state: Any, writes: Any, missing: Any) -> None:
    """Gradients of one chunk; the cotangent of the state before it in place of that after it."""
    count, head_dim, head_step, chunk_step, part_step = at.positions, call.head_dim, call.head_step, call.chunk_step, call.part_step
    keys, queries, d_state, d_writes = memory + call.at_keys, memory + call.at_queries, memory + call.at_d_states, memory + call.at_d_writes
    d_queries, d_start, d_keys = memory + call.at_d_queries, memory + call.at_d_start, memory + call.at_d_keys
    d_outputs, d_scores, across = memory + call.at_d_outputs, memory + call.at_d_scores, memory + call.at_across
    turn(state, part_step, head_dim, at.columns, across, head_step)
    turn(d_state, part_step, head_dim, at.columns, memory + call.at_d_across, head_step)
    turn(writes, part_step, count, at.columns, memory + call.at_turned, chunk_step)
    multiply(memory + call.at_keys_end, head_step, d_state, count, head_dim, d_writes, part_step)
    multiply(writes, part_step, memory + call.at_d_across, count, at.columns, memory + call.at_d_keys_end, head_step)
    fill(memory + call.at_whole, head_dim, 0.0)
    if call.rates > 0:
        scale_rows(d_state, part_step, head_dim, memory + call.at_since + (count - 1) * head_step)
        for d in range(head_dim):  # the decay over the whole chunk
            memory[call.at_whole + d] = inner(state + d * part_step, d_state + d * part_step, part_step)
    fill(memory + call.at_reads, count * head_step, 0.0)
    fill(memory + call.at_inside, count * head_step, 0.0)
    fill(memory + call.at_pairs, count * chunk_step, 0.0)
    fill(d_keys, count * head_step, 0.0)

    for member in range(call.group):
        row = (at.head * call.group + member) * call.length + at.first
        load_queries(call, memory, at, member)
        source = pointer_to(call.d_output, memory) + (row * call.value_dim + at.begin)
        load_rows(source, call.value_dim, count, at.columns, memory + call.at_ones, d_outputs, part_step)
        multiply(d_outputs, part_step, memory + call.at_turned, count, at.columns, d_scores, chunk_step)
        add_multiplied(memory + call.at_scores, NEXT, chunk_step, d_outputs, count, count, d_writes, part_step)
        multiply(d_outputs, part_step, across, count, at.columns, d_start, head_step)
        add_multiplied(memory + call.at_queries_start, NEXT, head_step, d_outputs, head_dim, count, d_state, part_step)
        _through_decay(call, memory, memory + call.at_queries_start, count)
        if call.rates > 1:
            _pairs_by_row(call, memory, count)
        else:
            _pairs(call, memory, memory + call.at_scores, count, HERE)
            add_multiplied(d_scores, chunk_step, NEXT, keys, count, count, d_queries, head_step)
            add_multiplied(d_scores, NEXT, chunk_step, queries, count, count, d_keys, head_step)
        out = pointer_to(call.d_query, memory) + (at.part * call.count * call.group * call.length + row) * head_dim
        store_rows(d_queries, head_step, count, head_dim, call.scale, out, head_dim)

    if call.beta:
        _erased(call, memory, at, missing)
    row = at.head * call.length + at.first
    store_rows(
        d_writes,
        part_step,
        count,
        at.columns,
        1.0,
        pointer_to(call.d_value, memory) + (row * call.value_dim + at.begin),
        call.value_dim,
    )
    until, d_keys_end = memory + call.at_until, memory + call.at_d_keys_end
    for i in range(0, count * head_step, lanes_of(memory)):
        store(d_keys, i, multiply_add(load(until, i), load(d_keys_end, i), load(d_keys, i)))
    row += at.part * call.count * call.length
    store_rows(d_keys, head_step, count, head_dim, 1.0, pointer_to(call.d_key, memory) + row * head_dim, head_dim)
    if call.rates > 0:
        _store_decays(call, memory, count, pointer_to(call.d_log_decay, memory) + row * call.rates)


@compiled
def _through_decay(call: Any, memory: Any, start: Any, count: int) -> None:
    """From what the state meets to the rows themselves, and the terms of the decay."""
    since, d_start = memory + call.at_since, memory + call.at_d_start
    d_rows, reads = memory + call.at_d_queries, memory + call.at_reads
    for i in range(0, count * call.head_step, lanes_of(memory)):
        store(d_rows, i, load(since, i) * load(d_start, i))
        store(reads, i, multiply_add(load(start, i), load(d_start, i), load(reads, i)))


@compiled
def _pairs(call: Any, memory: Any, scores: Any, count: int, before: int) -> None:
    """Cotangents of decayed products, up to `before` the diagonal, become those of the products; their terms are added to `pairs`."""
    d_scores, decays, pairs = memory + call.at_d_scores, memory + call.at_decays, memory + call.at_pairs
    for i in range(count):
        for j in range(0, call.chunk_step, lanes_of(memory)):
            line = i * call.chunk_step + j
            d = load(d_scores, line)
            d = select(between(d, 0, i - before - j), d, filled(memory, 0.0))
            store(pairs, line, multiply_add(load(scores, line), d, load(pairs, line)))
            store(d_scores, line, d * load(decays, line))


@compiled
def _pairs_by_row(call: Any, memory: Any, count: int) -> None:
    """The same where each row has its own decay, with the keys on their way forward, and then their cotangents on theirs back."""
    step, d_scores, lanes = call.head_step, memory + call.at_d_scores, lanes_of(memory)
    queries, d_queries, d_keys = memory + call.at_queries, memory + call.at_d_queries, memory + call.at_d_keys
    moved, inside, gains = memory + call.at_moved, memory + call.at_inside, memory + call.at_gains
    for i in range(count):
        decay_keys(call, memory, i)
        line = d_scores + i * call.chunk_step
        for d in range(0, step, lanes):
            query, d_query, sums = load(queries, i * step + d), load(d_queries, i * step + d), filled(memory, 0.0)
            for j in range(i):
                term = filled(memory, line[j]) * load(moved, j * step + d)
                d_query = d_query + term
                sums = multiply_add(query, term, sums)
                after = (j + 1) * step + d
                store(inside, after, load(inside, after) + sums)
            store(d_queries, i * step + d, multiply_add(filled(memory, line[i]), load(moved, i * step + d), d_query))
    fill(moved, count * step, 0.0)
    for i in range(count - 1, -1, -1):
        line = d_scores + i * call.chunk_step
        for d in range(0, step, lanes):
            query, gain = load(queries, i * step + d), load(gains, i * step + d)
            for j in range(i):
                way = multiply_add(filled(memory, line[j]), query, load(moved, j * step + d))
                store(moved, j * step + d, way * gain)
            own = multiply_add(filled(memory, line[i]), query, load(moved, i * step + d))
            store(d_keys, i * step + d, load(d_keys, i * step + d) + own)


@compiled
def _erased(call: Any, memory: Any, at: Place, missing: Any) -> None:
    """Back through the triangular system of the delta rule: from the cotangent of what is written to that of the values."""
    count, head_step, chunk_step, part_step, lanes = at.positions, call.head_step, call.chunk_step, call.part_step, lanes_of(memory)
    keys, d_keys, d_rows, d_start = memory + call.at_keys, memory + call.at_d_keys, memory + call.at_d_queries, memory + call.at_d_start
    d_writes, d_scores, products = memory + call.at_d_writes, memory + call.at_d_scores, memory + call.at_inner
    row = at.head * call.length + at.first
    beta = pointer_to(call.beta, memory) + row
    d_beta = pointer_to(call.d_beta, memory) + (at.part * call.count * call.length + row)
    erase_back(call, memory, count, d_writes)
    # of (1 + beta inner) X = beta Z: here is the cotangent of beta Z
    multiply(d_writes, part_step, memory + call.at_turned, count, at.columns, d_scores, chunk_step)
    for i in range(count):
        taken, by = filled(memory, 0.0), filled(memory, -beta[i])
        for j in range(i * chunk_step, (i + 1) * chunk_step, lanes):
            d = load(d_scores, j)
            taken = multiply_add(select(between(d, 0, i * (chunk_step + 1) - 1 - j), d, filled(memory, 0.0)), load(products, j), taken)
            store(d_scores, j, d * by)
        d_beta[i] = inner(d_writes + i * part_step, missing + i * part_step, part_step) - total_of(taken)
    _pairs(call, memory, products, count, NEXT)
    add_multiplied(d_scores, chunk_step, NEXT, keys, count, count, d_keys, head_step)
    add_multiplied(d_scores, NEXT, chunk_step, keys, count, count, d_keys, head_step)
    scale_rows(d_writes, part_step, count, beta)
    multiply(d_writes, part_step, memory + call.at_across, count, at.columns, d_start, head_step)
    add_multiplied(memory + call.at_keys_start, NEXT, head_step, d_writes, call.head_dim, count, memory + call.at_d_states, part_step)
    _through_decay(call, memory, memory + call.at_keys_start, count)
    for i in range(0, count * head_step, lanes):
        store(d_keys, i, load(d_keys, i) - load(d_rows, i))


@compiled
def _store_decays(call: Any, memory: Any, count: int, d_log_decay: Any) -> None:
    """The factor of a position is in every decay from before it to it or later: no two terms cancel."""
    step, lanes, reads, inside = call.head_step, lanes_of(memory), memory + call.at_reads, memory + call.at_inside
    keys_end, d_keys_end = memory + call.at_keys_end, memory + call.at_d_keys_end
    for d in range(0, step, lanes):
        later = filled(memory, 0.0)
        for i in range(d + (count - 1) * step, -1, -step):
            later = later + load(reads, i)
            store(inside, i, load(inside, i) + later)
        whole = load(memory, call.at_whole + d)
        for i in range(d, d + count * step, step):
            store(inside, i, load(inside, i) + whole)
            whole = multiply_add(load(keys_end, i), load(d_keys_end, i), whole)
    if call.rates > 1:
        store_rows(inside, step, count, call.head_dim, 1.0, d_log_decay, call.head_dim)
        return
    pairs = memory + call.at_pairs
    for t in range(count - 1, -1, -1):
        total = filled(memory, 0.0)
        for j in range(0, call.chunk_step, lanes):
            line = t * call.chunk_step + j
            if t < count - 1:
                store(pairs, line, load(pairs, line) + load(pairs, line + call.chunk_step))
            terms = load(pairs, line)
            total = total + select(between(terms, 0, t - 1 - j), terms, filled(memory, 0.0))
        for d in range(t * step, (t + 1) * step, lanes):
            total = total + load(inside, d)
        d_log_decay[t] = total_of(total)
