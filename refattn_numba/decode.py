"""Attention to caches, which are read once, in the types in which they are stored."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided

import refattn
from refattn._core import Array, Integers, Pullback
from refattn._core.mechanism import Mechanism
from refattn.attention.cached.paged import refuse_missing_pages
from refattn.attention.dot_product.scaled_dot_product import AttendedWithLse
from refattn_numba._twin import precision, twin_of
from refattn_numba.cpu import decode as cpu
from refattn_numba.cpu.packing import packed
from refattn_numba.cpu.threads import run

SPAN = 256  # positions of one task, at least: fewer cost less than to merge their result
TASKS = 256  # about as many where there are positions enough, on any number of cores, so that results depend on no number of cores

BITS = {"bfloat16": cpu.BFLOAT16, "float16": cpu.FLOAT16, "float8_e4m3fn": cpu.E4M3FN, "float8_e5m2": cpu.E5M2}
"""Formats whose bits the kernel turns into numbers itself."""

DIRECT = ("float32", "float64", "int8")
"""Types that the compiler knows; an array of any other is copied."""


def decode(
    query: Array,
    key: Array,
    value: Array,
    lengths: Integers,
    sinks: Array | None = None,
    key_scale: Array | float | None = None,
    value_scale: Array | float | None = None,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    masked_rows: Literal["zero", "nan"] = "zero",
) -> tuple[AttendedWithLse, Pullback]:
    """Each sequence's cache is one page of its own."""
    given = {
        "query": query,
        "key": key,
        "value": value,
        "lengths": lengths,
        "sinks": sinks,
        "key_scale": key_scale,
        "value_scale": value_scale,
    }
    options = {"causal": causal, "window": window, "scale": scale, "softcap": softcap, "masked_rows": masked_rows}
    count, key_len = lengths.size, key.shape[-2]
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= key_len:
        raise ValueError(f"lengths runs from {lengths.min()} to {lengths.max()}, but key_len is {key_len}")
    rows, keys, values = (x.reshape(count, *x.shape[-3:]) for x in (query, key, value))
    scales = _one_axis(key_scale, key.shape, count), _one_axis(value_scale, value.shape, count)
    output, lse = _attended(rows, keys, values, np.arange(count)[:, None], lengths.reshape(count), sinks, *scales, **options)
    attended = AttendedWithLse(*(x.reshape(*lengths.shape, *x.shape[1:]) for x in (output, lse)))
    return attended, _pullback_of(refattn.decode_attention_with_lse, {**given, **options}, output.dtype)


def paged(
    query: Array,
    key_pages: Array,
    value_pages: Array,
    block_table: Integers,
    lengths: Integers,
    sinks: Array | None = None,
    key_scale: Array | float | None = None,
    value_scale: Array | float | None = None,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    masked_rows: Literal["zero", "nan"] = "zero",
) -> tuple[AttendedWithLse, Pullback]:
    """Pages are read where they lie."""
    arrays = {"query": query, "key_pages": key_pages, "value_pages": value_pages, "block_table": block_table, "lengths": lengths}
    scales = {"key_scale": key_scale, "value_scale": value_scale}
    options = {"causal": causal, "window": window, "scale": scale, "softcap": softcap, "masked_rows": masked_rows}
    count = lengths.size
    refuse_missing_pages(block_table, lengths, key_pages.shape[-2], query.shape[-2], window)
    rows, table = query.reshape(count, *query.shape[-3:]), block_table.reshape(count, block_table.shape[-1])
    output, lse = _attended(rows, key_pages, value_pages, table, lengths.reshape(count), sinks, key_scale, value_scale, **options)
    attended = AttendedWithLse(*(x.reshape(*lengths.shape, *x.shape[1:]) for x in (output, lse)))
    return attended, _pullback_of(refattn.paged_attention_with_lse, {**arrays, "sinks": sinks, **scales, **options}, output.dtype)


@twin_of(refattn.decode_attention_with_lse, like=decode, stored=True)
def decode_attention_with_lse(*args: Any, **kwargs: Any) -> tuple[AttendedWithLse, Pullback]:
    """The docstring is the reference's."""
    return decode(*args, **kwargs)


@twin_of(refattn.decode_attention, like=decode, stored=True)
def decode_attention(*args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
    """The docstring is the reference's."""
    attended, pullback = decode(*args, **kwargs)
    return attended.output, lambda d_output: pullback(d_output, None)


@twin_of(refattn.paged_attention_with_lse, like=paged, stored=True)
def paged_attention_with_lse(*args: Any, **kwargs: Any) -> tuple[AttendedWithLse, Pullback]:
    """The docstring is the reference's."""
    return paged(*args, **kwargs)


@twin_of(refattn.paged_attention, like=paged, stored=True)
def paged_attention(*args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
    """The docstring is the reference's."""
    attended, pullback = paged(*args, **kwargs)
    return attended.output, lambda d_output: pullback(d_output, None)


def _one_axis(scale: Any, shape: tuple[int, ...], count: int) -> Any:
    """A scale with the axes before the heads as one, where it has any."""
    return np.broadcast_to(scale, shape).reshape(count, *shape[-3:]) if np.ndim(scale) > 3 else scale


def _pullback_of(reference: Mechanism[..., Any], given: dict[str, Any], dtype: np.dtype[Any]) -> Pullback:
    """The reference's pullback, in float64: who decodes needs none, but a test may ask."""

    def pullback(*cotangents: Array | None) -> dict[str, Any]:
        exact = {path: x.astype(np.float64) for path, leaf, x in reference.spec.facts.leaves(given) if leaf.is_real and np.ndim(x)}
        grads = reference.vjp(**{**given, **exact})[1](*(None if d is None else d.astype(np.float64) for d in cotangents))
        return {name: g.astype(dtype) for name, g in grads.items()}

    return pullback


def _attended(
    query: Array,
    key_pages: Array,
    value_pages: Array,
    table: Integers,
    lengths: Integers,
    sinks: Array | None,
    key_scale: Array | float | None,
    value_scale: Array | float | None,
    *,
    causal: bool,
    window: tuple[int | None, int | None] | None,
    scale: float | None,
    softcap: float | None,
    masked_rows: str,
) -> tuple[Array, Array]:
    """Output and log-sum-exp of queries (sequence, head, query, feature)."""
    real = [x for x in (query, key_pages, value_pages, sinks, key_scale, value_scale) if isinstance(x, np.ndarray)]
    dtype = precision(*(x.dtype for x in real))
    count, heads, queries, head_dim = query.shape
    kv_heads, page_size, value_dim = value_pages.shape[1:]
    group = heads // max(kv_heads, 1)
    factor = dtype.type(1 / math.sqrt(head_dim) if scale is None else scale)
    # a row is one query of one head of the group: all heads of the first query, then of the second
    rows = query.reshape(count, kv_heads, group, queries, head_dim).swapaxes(2, 3).reshape(count, kv_heads, queries * group, head_dim)
    reach = _reach(lengths, queries, causal, window)
    spans, bounds = _spans(reach, kv_heads)
    tasks = spans.head.size
    parts = cpu.Parts(np.empty((tasks, queries * group, value_dim), dtype), *np.empty((2, tasks, queries * group), dtype))
    run(
        cpu.decode,
        packed(rows.astype(dtype) * factor, dtype),
        _stored(key_pages, key_scale, dtype),
        _stored(value_pages, value_scale, dtype),
        packed(table, np.int64),
        max(page_size, 1),
        spans,
        reach,
        dtype.type(softcap or 0),
        parts,
        tasks=tasks,
        cost=int(lengths.sum()) * heads * queries * (head_dim + value_dim),
    )
    output, lse = _merged(
        parts, bounds, None if sinks is None else np.tile(sinks.astype(dtype).reshape(kv_heads, 1, group), (count, queries, 1))
    )
    if masked_rows == "nan":
        output[np.isneginf(lse)] = np.nan

    def in_order(x: Array) -> Array:
        """Heads before queries again."""
        rest = x.shape[2:]
        return x.reshape(count, kv_heads, queries, group, *rest).swapaxes(2, 3).reshape(count, heads, queries, *rest)

    return in_order(output), in_order(lse)


def _reach(lengths: Integers, queries: int, causal: bool, window: tuple[int | None, int | None] | None) -> cpu.Reach:
    """The positions that each query may attend to, as `causal` and `window` say: none where it ends before it begins."""
    left, right = window or (None, None)
    position = lengths[:, None] - queries + np.arange(queries)
    first = np.maximum(0, 0 * position if left is None else position - left)
    end = np.broadcast_to(lengths[:, None], position.shape)
    for after in ([0] if causal else []) + ([] if right is None else [right]):
        end = np.minimum(end, position + after + 1)
    return cpu.Reach(packed(first, np.int64), packed(np.maximum(first, end), np.int64))


def _spans(reach: cpu.Reach, kv_heads: int) -> tuple[cpu.Spans, Integers]:
    """Tasks of nearly the same size, and where those of each sequence and key head begin; each has one at least."""
    low, high = reach.first.min(axis=1, initial=2**62), reach.end.max(axis=1, initial=0)
    low = np.minimum(low, high)
    size = max(SPAN, -(-int((high - low).sum()) * kv_heads // TASKS))
    size = -(-size // cpu.BLOCK) * cpu.BLOCK
    count = np.maximum(1, -(-(high - low) // size))
    of_head = np.repeat(count, kv_heads)
    bounds = np.cumsum(of_head) - of_head
    pair = np.repeat(np.arange(of_head.size), of_head)
    sequence, part = pair // max(kv_heads, 1), np.arange(pair.size) - bounds[pair]
    first = low[sequence] + part * size
    end = np.minimum(high[sequence], first + size)
    return cpu.Spans(*(packed(x, np.int64) for x in (sequence, pair % max(kv_heads, 1), first, end))), bounds


def _stored(pages: Any, scale: Array | float | None, dtype: np.dtype[Any]) -> cpu.Stored:
    """A pool as it lies in memory, where the kernel can read it there; else a copy."""
    name = pages.dtype.name
    if name in BITS:
        pages = pages.view(np.uint16 if pages.dtype.itemsize == 2 else np.uint8)
    elif name not in DIRECT or not pages.dtype.isnative:
        pages = pages.astype(dtype)
    item = pages.itemsize
    if pages.size and (
        pages.strides[-1] != item or min(pages.strides) < 0 or any(s % item for s in pages.strides) or not pages.flags.aligned
    ):
        pages = np.ascontiguousarray(pages)
    page_step, head_step, row_step = (s // item for s in pages.strides[:3])
    extent = 1 + sum((n - 1) * s // item for n, s in zip(pages.shape, pages.strides, strict=True)) if pages.size else 0
    codes = as_strided(pages, (extent,), (item,), writeable=False)
    factors = packed(np.ones(1) if scale is None else scale, dtype)
    by_page, by_head, by_row, by_feature = (s // dtype.itemsize for s in np.broadcast_to(factors, pages.shape).strides)
    kind = BITS.get(name, cpu.NUMBER)
    return cpu.Stored(codes, kind, page_step, head_step, row_step, factors.reshape(-1), by_page, by_head, by_row, by_feature)


def _merged(parts: cpu.Parts, bounds: Integers, sinks: Array | None) -> tuple[Array, Array]:
    """The softmax over the parts of each sequence and key head, and a sink; rows of (pair, row)."""
    if not bounds.size:
        return parts.sums, parts.largest
    largest = np.maximum.reduceat(parts.largest, bounds, axis=0)
    if sinks is not None:
        sinks = sinks.reshape(largest.shape)
        largest = np.maximum(largest, sinks)
    shift = np.where(np.isneginf(largest), 0, largest)
    pair = np.repeat(np.arange(bounds.size), np.diff(bounds, append=len(parts.total)))
    weights = np.exp(parts.largest - shift[pair])
    total = np.add.reduceat(weights * parts.total, bounds, axis=0)
    sums = np.add.reduceat(weights[..., None] * parts.sums, bounds, axis=0)
    if sinks is not None:
        total = total + np.exp(sinks - shift)
    empty = total == 0
    divisor = np.where(empty, 1, total)
    return sums / divisor[..., None], np.where(empty, -np.inf, shift + np.log(divisor))
