"""Attention to caches, which are read once, in the types in which they are stored."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

import refattn
from refattn._core import Array, Integers, Pullback
from refattn._core.mechanism import Mechanism
from refattn.attention.cached.paged import refuse_missing_pages
from refattn.attention.dot_product.scaled_dot_product import AttendedWithLse
from refattn_numba._twin import precision, twin_of
from refattn_numba.cpu.cached import Reach, attended
from refattn_numba.cpu.packing import packed
from refattn_numba.cuda.faces import decoding_on_device


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


@twin_of(refattn.decode_attention_with_lse, like=decode, stored=True, finished=decoding_on_device)
def decode_attention_with_lse(*args: Any, **kwargs: Any) -> tuple[AttendedWithLse, Pullback]:
    """The docstring is the reference's."""
    return decode(*args, **kwargs)


@twin_of(refattn.decode_attention, like=decode, stored=True, finished=decoding_on_device)
def decode_attention(*args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
    """The docstring is the reference's."""
    attended, pullback = decode(*args, **kwargs)
    return attended.output, lambda d_output: pullback(d_output, None)


@twin_of(refattn.paged_attention_with_lse, like=paged, stored=True, finished=decoding_on_device)
def paged_attention_with_lse(*args: Any, **kwargs: Any) -> tuple[AttendedWithLse, Pullback]:
    """The docstring is the reference's."""
    return paged(*args, **kwargs)


@twin_of(refattn.paged_attention, like=paged, stored=True, finished=decoding_on_device)
def paged_attention(*args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
    """The docstring is the reference's."""
    attended, pullback = paged(*args, **kwargs)
    return attended.output, lambda d_output: pullback(d_output, None)


def _one_axis(scale: Any, shape: tuple[int, ...], count: int) -> Any:
    """A scale with the axes before the heads as one, where it has any."""
    own = np.shape(scale)[-3:]
    return np.broadcast_to(scale, (*shape[:-3], *own)).reshape(count, *own) if np.ndim(scale) > 3 else scale


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
    results = attended(
        query,
        key_pages,
        value_pages,
        table,
        _reach(lengths, query.shape[-2], causal, window),
        dtype,
        factor=dtype.type(1 / math.sqrt(query.shape[-1]) if scale is None else scale),
        softcap=softcap,
        sinks=sinks,
        key_scale=key_scale,
        value_scale=value_scale,
    )
    if masked_rows == "nan":
        results.output[np.isneginf(results.lse)] = np.nan
    return results.output, results.lse


def _reach(lengths: Integers, queries: int, causal: bool, window: tuple[int | None, int | None] | None) -> Reach:
    """The positions that each query may attend to, as `causal` and `window` say: none where it ends before it begins."""
    left, right = window or (None, None)
    position = lengths[:, None] - queries + np.arange(queries)
    first = np.maximum(0, 0 * position if left is None else position - left)
    end = np.broadcast_to(lengths[:, None], position.shape)
    for after in ([0] if causal else []) + ([] if right is None else [right]):
        end = np.minimum(end, position + after + 1)
    return Reach(packed(first, np.int64), packed(np.maximum(first, end), np.int64))
