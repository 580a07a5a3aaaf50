"""Linear attentions backward: spans from the last to the first, in each the chunks forward from the state that was kept, then back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array
from refattn_numba.cpu.jit import helper, kernel, reordered_helper
from refattn_numba.cpu.scan_chunk import (
    CHUNK,
    Keys,
    Operands,
    Place,
    advance,
    by_row,
    decay_keys,
    decay_rows,
    erase_back,
    keys_scratch,
    load_keys,
    load_queries,
    write,
)
from refattn_numba.cpu.scan_forward import SPAN
from refattn_numba.cpu.scan_panels import (
    LINES,
    MORE,
    NEW,
    NEXT,
    PANEL,
    START,
    apart,
    ceil_to,
    clear,
    clear_all,
    copy,
    least,
    load,
    multiply,
    multiply_transposed,
    panels,
    store,
    transpose,
)


class Gradients(NamedTuple):
    """What the backward pass fills; where the values are in parts, each has its own share of what is summed over them."""

    query: Array
    key: Array
    value: Array
    log_decay: Array
    beta: Array
    state: Array


class Queries(NamedTuple):
    """Of one head and chunk: queries, as the state meets them, their products with the keys; keys on their way; and gradients."""

    query: Array
    query_start: Array
    scores: Array
    moved: Array
    d_output: Array
    d_scores: Array
    d_query: Array
    d_start: Array


class Memory(NamedTuple):
    """States and their cotangents, in rows of head_dim and of value_dim; writes in rows and in columns."""

    state: Array
    across: Array
    d_state: Array
    d_across: Array
    d_before: Array
    writes: Array
    turned: Array
    missing: Array
    d_write: Array


class Summed(NamedTuple):
    """Of one chunk: the keys' gradient, what comes by their decay to the end, and the decays' parts.

    `reads` are terms of decays from before the chunk to a position, `ends` of those from a position to the end, `whole` of that
    over the whole chunk, `pairs` of those between positions, and `inside` the gradient from these, where each row has its own.
    """

    d_key: Array
    d_end: Array
    reads: Array
    ends: Array
    whole: Array
    pairs: Array
    inside: Array


@kernel
def backward(
    operands: Operands, part: int, states: Array, d_output: Array, d_end: Array, gradients: Gradients, share: int, shares: int
) -> None:
    """Fill `gradients`; a task is `part` columns of the values of one head."""
    query, value = operands.query, operands.value
    head_dim, length, one = query.shape[3], value.shape[1], query.dtype.type(1)
    parts, spans = ceil_to(value.shape[2], part) // part, ceil_to(length, SPAN) // SPAN
    s, q = keys_scratch(operands), _queries_scratch(query, operands.chunk, least(part, value.shape[2]))
    total = _summed_scratch(query, operands.chunk)
    for task in range(share, query.shape[0] * parts, shares):
        head, index = task // parts, task % parts
        begin = index * part
        columns = least(part, value.shape[2] - begin)
        m = _memory_scratch(query, operands.chunk, columns)
        chunks = SPAN // operands.chunk
        kept = np.zeros((chunks, *m.state.shape), query.dtype)
        writes = np.zeros((chunks, *m.writes.shape), query.dtype)
        missing = np.zeros((chunks, *m.writes.shape), query.dtype)
        load(d_end[head], START, head_dim, begin, one, m.d_state)
        for span in range(spans - 1, -1, -1):
            start = span * SPAN
            used = ceil_to(least(SPAN, length - start), operands.chunk) // operands.chunk
            load(states[head, span], START, head_dim, begin, one, m.state)
            for c in range(used):
                first = start + c * operands.chunk
                at = Place(head, first, least(operands.chunk, length - first), begin, columns)
                load_keys(operands, at, s)
                write(operands, at, s, m.state, missing[c], writes[c])
                copy(m.state, kept[c])
                if c < used - 1:
                    advance(operands, at, s, writes[c], m.state)
            for c in range(used - 1, -1, -1):
                first = start + c * operands.chunk
                at = Place(head, first, least(operands.chunk, length - first), begin, columns)
                if c < used - 1:
                    load_keys(operands, at, s)
                here = Memory(kept[c], m.across, m.d_state, m.d_across, m.d_before, writes[c], m.turned, missing[c], m.d_write)
                _backward_chunk(operands, at, index, s, q, here, total, d_output, gradients)
        store(m.d_state, gradients.state[head], START, head_dim, begin, one)


@helper
def _queries_scratch(query: Array, chunk: int, columns: int) -> Queries:
    head_dim = query.shape[3]
    return Queries(
        panels(chunk, head_dim, query),
        panels(chunk, head_dim, query),
        panels(chunk, chunk, query),
        panels(chunk, head_dim, query),
        panels(chunk, columns, query),
        panels(chunk, chunk, query),
        panels(chunk, head_dim, query),
        panels(chunk, head_dim, query),
    )


@helper
def _memory_scratch(query: Array, chunk: int, columns: int) -> Memory:
    head_dim, wide = query.shape[3], ceil_to(columns, PANEL)
    return Memory(
        panels(head_dim, columns, query),
        panels(wide, head_dim, query),
        panels(head_dim, columns, query),
        panels(wide, head_dim, query),
        panels(head_dim, columns, query),
        panels(chunk, columns, query),
        panels(wide, chunk, query),
        panels(chunk, columns, query),
        panels(chunk, columns, query),
    )


@helper
def _summed_scratch(query: Array, chunk: int) -> Summed:
    head_dim = query.shape[3]
    return Summed(
        panels(chunk, head_dim, query),
        panels(chunk, head_dim, query),
        panels(chunk, head_dim, query),
        panels(chunk, head_dim, query),
        panels(LINES, head_dim, query),
        panels(chunk, chunk, query),
        panels(chunk, head_dim, query),
    )


@helper
def _backward_chunk(
    operands: Operands, at: Place, part: int, s: Keys, q: Queries, m: Memory, total: Summed, d_output: Array, gradients: Gradients
) -> None:
    """Gradients of one chunk; in `m.d_state`, the cotangent of the state before it in place of that after it."""
    apart()
    one, count, columns, head_dim = operands.key.dtype.type(1), at.positions, at.columns, operands.key.shape[2]
    decayed = operands.log_decay.shape[2] > 0
    transpose(m.state, head_dim, columns, m.across)
    transpose(m.d_state, head_dim, columns, m.d_across)
    transpose(m.writes, count, columns, m.turned)
    multiply(s.key_end, m.d_state, m.d_write, count, head_dim, columns, NEW)
    multiply(m.writes, m.d_across, total.d_end, count, columns, head_dim, NEW)
    copy(m.d_state, m.d_before)
    clear_all(total.whole)
    if decayed:
        decay_rows(s, count, m.d_before, head_dim)
        _whole(m, head_dim, total.whole)
    clear_all(total.reads)
    clear_all(total.pairs)
    clear_all(total.inside)
    clear_all(total.d_key)

    for member in range(operands.query.shape[1]):
        load_queries(operands, member, at, s, q.query, q.query_start, q.scores, q.moved)
        load(d_output[at.head, member], at.first, count, at.begin, one, q.d_output)
        multiply(q.d_output, m.turned, q.d_scores, count, columns, count, NEW)
        multiply_transposed(q.scores, q.d_output, m.d_write, count, count, columns, MORE)
        multiply(q.d_output, m.across, q.d_start, count, columns, head_dim, NEW)
        multiply_transposed(q.query_start, q.d_output, m.d_before, head_dim, count, columns, MORE)
        _through_decay(s.since, q.query_start, q.d_start, q.d_query, total.reads, count)
        if by_row(operands):
            _pairs_by_row(s, q, total, count)
        else:
            _pairs(s, q.scores, q.d_scores, total.pairs, count, NEXT)
            multiply(q.d_scores, s.key, q.d_query, count, count, head_dim, MORE)
            multiply_transposed(q.d_scores, q.query, total.d_key, count, count, head_dim, MORE)
        store(q.d_query, gradients.query[part, at.head, member], at.first, count, START, operands.scale)

    if operands.beta.shape[1]:
        _erased(operands, at, part, s, q, m, total, gradients)
    store(m.d_write, gradients.value[at.head], at.first, count, at.begin, one)
    for p in range(total.d_key.shape[0]):
        for i in range(count):
            for lane in range(PANEL):
                total.ends[p, i, lane] = s.key_end[p, i, lane] * total.d_end[p, i, lane]
                total.d_key[p, i, lane] += s.until[p, i, lane] * total.d_end[p, i, lane]
    store(total.d_key, gradients.key[part, at.head], at.first, count, START, one)
    if decayed:
        _store_decays(total, count, by_row(operands), gradients.log_decay[part, at.head, at.first : at.first + count])
    copy(m.d_before, m.d_state)


@reordered_helper
def _whole(m: Memory, head_dim: int, whole: Array) -> None:
    """Inner products of the rows of the state with those of its decayed cotangent: the decay over the whole chunk."""
    for d in range(head_dim):
        total = whole.dtype.type(0)
        for p in range(m.state.shape[0]):
            row, other = m.state[p, d], m.d_before[p, d]
            for lane in range(PANEL):
                total += row[lane] * other[lane]
        whole[d // PANEL, 0, d % PANEL] = total


@helper
def _through_decay(since: Array, start: Array, d_start: Array, d_rows: Array, reads: Array, count: int) -> None:
    """From what the state meets to the rows themselves, and the terms of the decay."""
    apart()
    for p in range(start.shape[0]):
        for i in range(count):
            for lane in range(PANEL):
                d_rows[p, i, lane] = since[p, i, lane] * d_start[p, i, lane]
                reads[p, i, lane] += start[p, i, lane] * d_start[p, i, lane]
        clear(d_rows, p, count)


@helper
def _pairs(s: Keys, scores: Array, d_scores: Array, pairs: Array, count: int, diagonal: int) -> None:
    """Cotangents of decayed products become those of the products; their terms of the decays are added to `pairs`."""
    apart()
    for i in range(count):
        line, d_line, decays, terms = scores[0, i], d_scores[0, i], s.decays[0, i], pairs[0, i]
        for j in range(CHUNK):
            d = d_line[j] if j < i + diagonal else 0
            terms[j] += line[j] * d
            d_line[j] = d * decays[j]
    clear(d_scores, START, count)


@helper
def _pairs_by_row(s: Keys, q: Queries, total: Summed, count: int) -> None:
    """The same where each row has its own decay, with the keys on their way forward, and then their cotangents on theirs back."""
    apart()
    for i in range(count):
        decay_keys(s, i, q.moved)
        for p in range(q.query.shape[0]):
            row, d_row, sums = q.query[p, i], q.d_query[p, i], q.d_start[p, 0]
            for lane in range(PANEL):
                sums[lane] = 0
            for j in range(i):
                line, after, d = q.moved[p, j], total.inside[p, j + 1], q.d_scores[0, i, j]
                for lane in range(PANEL):
                    term = d * line[lane]
                    d_row[lane] += term
                    sums[lane] += row[lane] * term
                    after[lane] += sums[lane]
            line, d = q.moved[p, i], q.d_scores[0, i, i]
            for lane in range(PANEL):
                d_row[lane] += d * line[lane]
    clear_all(q.moved)
    for i in range(count - 1, -1, -1):
        for p in range(q.query.shape[0]):
            row, gain = q.query[p, i], s.gains[p, i]
            for j in range(i):
                line, d = q.moved[p, j], q.d_scores[0, i, j]
                for lane in range(PANEL):
                    line[lane] = (line[lane] + d * row[lane]) * gain[lane]
            line, d, out = q.moved[p, i], q.d_scores[0, i, i], total.d_key[p, i]
            for lane in range(PANEL):
                out[lane] += line[lane] + d * row[lane]


@helper
def _erased(operands: Operands, at: Place, part: int, s: Keys, q: Queries, m: Memory, total: Summed, gradients: Gradients) -> None:
    """Back through the triangular system of the delta rule: from the cotangent of what is written to that of the values."""
    apart()
    count, columns, head_dim = at.positions, at.columns, operands.key.shape[2]
    beta = operands.beta[at.head, at.first : at.first + count]
    d_beta = gradients.beta[part, at.head, at.first : at.first + count]
    erase_back(s, count, m.d_write)
    # of (1 + beta inner) X = beta Z: here is the cotangent of beta Z
    multiply(m.d_write, m.turned, q.d_scores, count, columns, count, NEW)
    for i in range(count):
        d_line, inner = q.d_scores[0, i], s.inner[0, i]
        d_beta[i] = _inner(m.d_write, m.missing, i)
        for j in range(i):
            d_beta[i] -= d_line[j] * inner[j]
            d_line[j] *= -beta[i]
    _pairs(s, s.inner, q.d_scores, total.pairs, count, START)
    multiply(q.d_scores, s.key, total.d_key, count, count, head_dim, MORE)
    multiply_transposed(q.d_scores, s.key, total.d_key, count, count, head_dim, MORE)
    for p in range(m.d_write.shape[0]):
        for i in range(count):
            line = m.d_write[p, i]
            for lane in range(PANEL):
                line[lane] *= beta[i]
    multiply(m.d_write, m.across, q.d_start, count, columns, head_dim, NEW)
    multiply_transposed(s.key_start, m.d_write, m.d_before, head_dim, count, columns, MORE)
    _through_decay(s.since, s.key_start, q.d_start, q.d_query, total.reads, count)
    for p in range(q.d_query.shape[0]):
        for i in range(count):
            for lane in range(PANEL):
                total.d_key[p, i, lane] -= q.d_query[p, i, lane]


@reordered_helper
def _inner(x: Array, y: Array, i: int) -> Any:
    """The inner product of two rows."""
    total = x.dtype.type(0)
    for p in range(x.shape[0]):
        row, other = x[p, i], y[p, i]
        for lane in range(PANEL):
            total += row[lane] * other[lane]
    return total


@helper
def _store_decays(total: Summed, count: int, rows: bool, d_log_decay: Array) -> None:
    """The factor of a position is in every decay from before it to it or later: no two terms cancel."""
    apart()
    for p in range(total.reads.shape[0]):
        whole = total.whole[p, 0]
        for i in range(count - 2, -1, -1):
            for lane in range(PANEL):
                total.reads[p, i, lane] += total.reads[p, i + 1, lane]
        for i in range(count):
            for lane in range(PANEL):
                total.inside[p, i, lane] += total.reads[p, i, lane] + whole[lane]
                whole[lane] += total.ends[p, i, lane]
    if rows:
        store(total.inside, d_log_decay, START, count, START, total.reads.dtype.type(1))
        return
    pairs = total.pairs[0]
    for t in range(count - 1, -1, -1):
        if t < count - 1:
            for j in range(t + 1):
                pairs[t, j] += pairs[t + 1, j]
        d_log_decay[t, 0] = _sum_of(total.inside, t) + _sum_before(pairs[t], t)


@reordered_helper
def _sum_of(x: Array, i: int) -> Any:
    """The sum of a row."""
    total = x.dtype.type(0)
    for p in range(x.shape[0]):
        row = x[p, i]
        for lane in range(PANEL):
            total += row[lane]
    return total


@reordered_helper
def _sum_before(row: Array, count: int) -> Any:
    """The sum of the first numbers."""
    total = row.dtype.type(0)
    for j in range(count):
        total += row[j]
    return total
