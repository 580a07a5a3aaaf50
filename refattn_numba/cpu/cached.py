"""A few queries of each sequence against all that it has cached: the kernel's tasks, and what becomes of their results."""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, Integers
from refattn_numba.cpu.call import Record, address_of, empty
from refattn_numba.cpu.decode import BLOCK, STEP, Decoding, decode, decode_memory
from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.packing import cap_of, packed
from refattn_numba.cpu.row_products import ROWS
from refattn_numba.cpu.stored_numbers import IN_REGISTERS, KINDS, SAME
from refattn_numba.cpu.threads import run_tasks

SPAN = 512  # positions of one task, at least: fewer cost less than to merge their result
TASKS = 256  # about as many where there are positions enough, on any number of cores, so that results depend on no number of cores
FEW = 8  # queries up to which this is faster than tiles of them
AHEAD = 6144  # bytes of each pool that are on their way: what arrives while one waits for the first of them


class Reach(NamedTuple):
    """Positions that each query of each sequence may attend to: from `first` to before `end`."""

    first: Integers
    end: Integers


class Tasks(NamedTuple):
    """Sequence, key head, first position and end of each task, and where those of each sequence and head begin."""

    sequence: Integers
    head: Integers
    first: Integers
    end: Integers
    bounds: Integers


class Attended(NamedTuple):
    """Output and log-sum-exp of each query; its softmax subtracted `shift` and multiplied by `inverse`."""

    output: Array
    lse: Array
    shift: Array
    inverse: Array


def attended(
    query: Array,
    key_pages: Array,
    value_pages: Array,
    table: Integers,
    reach: Reach,
    dtype: np.dtype[Any],
    *,
    tasks: Tasks | None = None,
    factor: float,
    softcap: float | None = None,
    sinks: Array | None = None,
    key_scale: Array | float | None = None,
    value_scale: Array | float | None = None,
) -> Attended:
    """Attention of queries (sequence, head, query, feature); `factor` multiplies them."""
    count, heads, queries, head_dim = query.shape
    kv_heads, page_size, value_dim = value_pages.shape[1:]
    group, lanes = heads // max(kv_heads, 1), HOST.register_bytes // dtype.itemsize
    rows = queries * group
    padded = rows if rows == 1 else -(-rows // ROWS) * ROWS
    key_width, value_width = (-(-n // lanes) * lanes for n in (head_dim, value_dim))
    scaled = np.zeros((count, kv_heads, padded, key_width), dtype)
    # a row is one query of one head of the group: all heads of the first query, then of the second
    by_head = query.reshape(count, kv_heads, group, queries, head_dim).swapaxes(2, 3)
    inner = scaled[:, :, :rows].reshape(count, kv_heads, queries, group, key_width)[..., :head_dim]
    np.multiply(by_head, dtype.type(factor), out=inner, dtype=dtype)
    tasks = _tasks(reach, kv_heads) if tasks is None else tasks
    parts = tasks.sequence.size
    sums, largest, total = (empty((parts, padded, *size), dtype) for size in ((value_width,), (), ()))
    call = Record(
        {
            "softcap": cap_of(softcap, dtype),
            "memory_size": decode_memory(padded, key_width, value_width, lanes),
            "tasks": parts,
            "rows": padded,
            "queries": queries,
            "group": group,
            "heads": kv_heads,
            "page_size": max(page_size, 1),
            "pages": table.shape[-1],
        },
        layout=Decoding,
    )
    kinds = [_add_stored(call, *given, dtype, lanes) for given in (("key", key_pages, key_scale), ("value", value_pages, value_scale))]
    call.add(query=scaled, table=packed(table, np.int64), reach_first=packed(reach.first, np.int64), reach_end=packed(reach.end, np.int64))
    call.add(task_sequence=tasks.sequence, task_head=tasks.head, task_first=tasks.first, task_end=tasks.end)
    call.add(sums=sums, largest=largest, total=total)
    cost = int((tasks.end - tasks.first).sum()) * rows * (head_dim + value_dim)
    if rows:
        run_tasks(decode, call, kinds != [SAME, SAME], parts, cost, dtype)
    if sinks is not None:
        sinks = np.tile(sinks.astype(dtype).reshape(kv_heads, 1, group), (count, queries, 1)).reshape(count * kv_heads, rows)
    with np.errstate(invalid="ignore"):  # infinite scores make rows that are no numbers, as in the reference
        results = _merged(sums[:, :rows, :value_dim], largest[:, :rows], total[:, :rows], tasks.bounds, sinks)

    def in_order(x: Array) -> Array:
        """Heads before queries again."""
        rest = x.shape[2:]
        return x.reshape(count, kv_heads, queries, group, *rest).swapaxes(2, 3).reshape(count, heads, queries, *rest)

    made = Attended(*map(in_order, results))
    if sinks is not None:  # which may be no number, and yet gives nothing
        np.copyto(made.output, 0, where=(reach.first == reach.end)[:, None, :, None])
    return made


def attended_in_place(
    query: Array, key: Array, value: Array, before: int, after: int, *, scale: float, softcap: float | None, sinks: Array | None
) -> Attended:
    """Attention where query i sees the keys from ``i - before`` to ``i + after``: what a sequence has is one page of its own."""
    rows, keys, values = (x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:]) for x in (query, key, value))
    reach, table, tasks = _within(len(rows), query.shape[-2], key.shape[-2], before, after, value.shape[-3])
    options = {"factor": scale, "softcap": softcap, "sinks": sinks}
    return attended(rows, keys, values, table, reach, query.dtype.newbyteorder("="), tasks=tasks, **options)


@lru_cache(maxsize=64)
def _within(count: int, queries: int, key_len: int, before: int, after: int, kv_heads: int) -> tuple[Reach, Integers, Tasks]:
    """What follows from sizes alone: how far queries reach, pages and tasks."""
    at = np.arange(queries)
    first, end = (packed(np.broadcast_to(np.clip(x, 0, key_len), (count, queries)), np.int64) for x in (at - before, at + after + 1))
    reach = Reach(first, packed(np.maximum(first, end), np.int64))
    return reach, packed(np.arange(count)[:, None], np.int64), Tasks(*(packed(x, np.int64) for x in _tasks(reach, kv_heads)))


def _tasks(reach: Reach, kv_heads: int) -> Tasks:
    """Of nearly the same size."""
    low, high = reach.first.min(axis=1, initial=2**62), reach.end.max(axis=1, initial=0)
    low = np.minimum(low, high)
    size = max(SPAN, -(-int((high - low).sum()) * kv_heads // TASKS))
    size = -(-size // SPAN) * SPAN
    of_head = np.repeat(np.maximum(1, -(-(high - low) // size)), kv_heads)
    bounds = np.cumsum(of_head) - of_head
    pair = np.repeat(np.arange(of_head.size), of_head)
    sequence, part = pair // max(kv_heads, 1), np.arange(pair.size) - bounds[pair]
    first = low[sequence] + part * size
    end = np.minimum(high[sequence], first + size)
    return Tasks(sequence, pair % max(kv_heads, 1), first, end, bounds)


@cache
def _kind_of(dtype: np.dtype[Any]) -> int | None:
    """What bits of a type mean to the kernel, where it reads it; names are slow to make."""
    return KINDS.get(dtype.name) if dtype.isnative else None


@cache
def _one(dtype: np.dtype[Any]) -> Array:
    """The factor of what has none."""
    return packed(np.ones(1), dtype)


def _add_stored(call: Record, name: str, pages: Any, scale: Array | float | None, dtype: np.dtype[Any], lanes: int) -> int:
    """Describe a pool as it lies in memory, where the kernel can read it there, else a copy; its kind."""
    kind = _kind_of(pages.dtype)
    if kind is None or pages.dtype == dtype:
        pages, kind = pages.astype(dtype, copy=False), SAME
    item, size = pages.itemsize, pages.shape[-1]
    if pages.size and ((size > 1 and pages.strides[-1] != item) or any(s % item for s in pages.strides) or not pages.flags.aligned):
        pages = np.ascontiguousarray(pages)
    direct = kind == SAME and size % lanes == 0 and scale is None
    factors, steps = _one(dtype), (0, 0, 0, 0)
    if scale is not None and pages.size:
        factors = packed(scale, dtype)
        steps = np.broadcast_to(factors, pages.shape).strides
    call.arrays += [pages, factors]
    width = -(-size // lanes) * lanes
    in_registers = kind in IN_REGISTERS and size % lanes == 0 and not steps[3]
    step, ahead = BLOCK if direct or in_registers else STEP, max(1, min(AHEAD // max(size * item, 1), BLOCK))
    described = address_of(pages), kind, direct, in_registers, size, item, width, *pages.strides[:3]
    call.fields[name] = *described, address_of(factors), *steps, factors.itemsize, step, ahead
    return kind


def _merged(sums: Array, largest: Array, total: Array, bounds: Integers, sinks: Array | None) -> tuple[Array, Array, Array, Array]:
    """The softmax over the parts of each sequence and key head, and a sink; rows of (pair, row)."""
    if not bounds.size:
        return sums, largest, largest, total
    if sinks is None and bounds.size == len(total):  # one part of each
        if total.all():
            inverse = 1 / total
            return sums * inverse[..., None], largest + np.log(total), largest, inverse
        shift, whole = np.where(np.isneginf(largest), 0, largest), total
    else:
        most = np.maximum.reduceat(largest, bounds, axis=0)
        if sinks is not None:
            most = np.maximum(most, sinks)
        shift = np.where(np.isneginf(most), 0, most)
        weights = np.exp(largest - np.repeat(shift, np.diff(bounds, append=len(total)), axis=0))
        whole = np.add.reduceat(weights * total, bounds, axis=0)
        if sinks is not None:
            whole = whole + np.exp(sinks - shift)
        sums = np.add.reduceat(weights[..., None] * sums, bounds, axis=0)
    empty = whole == 0
    divisor = np.where(empty, 1, whole)
    inverse = np.where(empty, 0, 1 / divisor)
    return sums * inverse[..., None], np.where(empty, -np.inf, shift + np.log(divisor)), shift, inverse
