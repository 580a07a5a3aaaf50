"""Softmax attention on CPU cores, in the dtype of the query: float64, float32, float16, or uint16 for the bits of bfloat16."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np

from refattn import masks
from refattn._core import Array, Booleans, unbroadcast
from refattn.primitives.attention_stages import MaskedRows
from refattn_numba.cpu.attention_backward import backward, backward_sizes
from refattn_numba.cpu.attention_bias import backward_bias, bias_memory
from refattn_numba.cpu.attention_forward import forward, forward_memory
from refattn_numba.cpu.cached import FEW, attended_in_place
from refattn_numba.cpu.call import Record, Spans, empty
from refattn_numba.cpu.conversion import in_single, widened
from refattn_numba.cpu.couples import couples_for_sums
from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.packing import cap_of, packed
from refattn_numba.cpu.plain import attention as plain
from refattn_numba.cpu.simd import TILE_BYTES
from refattn_numba.cpu.threads import Repeated, run_tasks

Window: TypeAlias = tuple[int | None, int | None]


class Attended(NamedTuple):
    """The output, and a function that makes the log-sum-exp, which few ask for."""

    output: Array
    lse: Callable[[], Array]


Outcome: TypeAlias = tuple[Attended, Callable[[Array | None, Array | None], dict[str, Array | None]]]

TASKS = 2 * (os.cpu_count() or 1)  # of a backward pass, where it can be cut so far; not the threads, so that they change no bit
MOST_BYTES = 1 << 28  # of the parts of gradients, which are as many as tasks where few heads meet many cores
UNITS = 4  # tiles of queries that a task has at least


def takes_bfloat16(query: Array, value: Array, scale: Any = None, masked_rows: MaskedRows = "zero", **_: Any) -> bool:
    """Whether the kernels read bfloat16 as it is stored, in `couples`; the rest is not worth code of its own."""
    is_even = query.shape[-1] % 2 == value.shape[-1] % 2 == 0
    plain_options = not isinstance(scale, np.ndarray) and masked_rows == "zero"
    return HOST.has_bfloat16_dot and query.dtype == np.uint16 and is_even and plain_options and query.shape[-2] > FEW


@partial(in_single, but_for=takes_bfloat16)
def attend(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    sinks: Array | None = None,
    *,
    mask: Booleans | None = None,
    causal: bool = False,
    align: masks.Align | None = None,
    window: Window | None = None,
    scale: Array | float | None = None,
    softcap: float | None = None,
    keep: Booleans | None = None,
    dropout_rate: float = 0.0,
    masked_rows: MaskedRows = "zero",
) -> Outcome:
    """The output of `refattn.scaled_dot_product_attention_with_lse`, the other where it is called, and the pullback of both.

    A cotangent of None is zero.
    """
    plain.check_shapes(query, key, value, sinks)
    query_len, key_len = query.shape[-2], key.shape[-2]
    pairs = {"mask": mask, "keep": keep}
    of_queries = isinstance(scale, np.ndarray) and scale.shape[-1:] in {(), (1,)}
    if (isinstance(scale, np.ndarray) and not of_queries) or (keep is not None and masked_rows == "uniform"):
        options = {**pairs, "causal": causal, "align": align, "window": window, "scale": scale, "softcap": softcap}
        made, pullback = plain.attend(query, key, value, bias, sinks, **options, dropout_rate=dropout_rate, masked_rows=masked_rows)
        return Attended(made.output, lambda: made.lse), pullback
    before, after = plain.band(query_len, key_len, causal, align, window)
    given = query * scale if isinstance(scale, np.ndarray) else query
    factor = 1.0 if of_queries else 1 / math.sqrt(query.shape[-1]) if scale is None else float(cast("float", scale))
    options = {**pairs, "scale": factor, "softcap": softcap, "dropout_rate": dropout_rate, "masked_rows": masked_rows}
    attended, pullback = attend_within(given, key, value, bias, sinks, before=before, after=after, **options)
    return attended, _with_temperature(query, scale, pullback) if isinstance(scale, np.ndarray) else pullback


def _with_temperature(query: Array, scale: Array, of_scaled: Callable[..., dict[str, Array | None]]) -> Callable[..., Any]:
    """The pullback of queries that were multiplied by the scale, each by its own, from that of the products."""

    def pullback(*cotangents: Array | None) -> dict[str, Array | None]:
        grads = of_scaled(*cotangents)
        d_scaled = cast("Array", grads["query"])
        d_scale = unbroadcast((d_scaled * query).sum(axis=-1, keepdims=True), scale.shape)
        return {**grads, "query": d_scaled * scale, "scale": d_scale}

    return pullback


def attend_within(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    sinks: Array | None,
    *,
    before: int = 0,
    after: int = 0,
    spans: Spans | None = None,
    mask: Booleans | None = None,
    keep: Booleans | None = None,
    scale: float,
    softcap: float | None,
    dropout_rate: float = 0.0,
    masked_rows: MaskedRows = "zero",
) -> Outcome:
    """Attention where query i sees the keys from ``i - before`` to ``i + after``, or so within each of several spans."""
    *lead, query_len, head_dim = query.shape
    kv_heads, key_len, value_dim = value.shape[-3:]
    dtype, count = query.dtype.newbyteorder("="), math.prod(lead)
    wide = _of_sums(dtype)
    output = empty((*lead, query_len, value_dim), dtype)
    shift, inverse = (np.empty((*lead, query_len), wide) for _ in range(2))
    tile, group = TILE_BYTES // wide.itemsize, lead[-1] // max(kv_heads, 1)
    of_pairs = not (bias is mask is keep is None)
    has_options = of_pairs or softcap is not None
    cost = count * (query_len * key_len if spans is None else int(spans.queries @ spans.keys)) * (head_dim + value_dim)

    @cache
    def recorded() -> Record:
        """What kernels are told, made when one asks."""
        call = Record(
            {
                "heads": lead[-1],
                "count": count,
                "group": group,
                "query_len": query_len,
                "query_rows": query_len,
                "key_len": key_len,
                "key_rows": key_len,
                "head_dim": head_dim,
                "value_dim": value_dim,
                "before": before,
                "after": after,
                "scale": scale,
                "softcap": cap_of(softcap, wide),
                "keep_factor": 1 / (1 - dropout_rate),
                "memory_size": forward_memory(head_dim, value_dim, tile),
            }
        )
        call.add(output=output, shift=shift, inverse=inverse)
        for name, x in (("query", query), ("key", key), ("value", value)):
            call.add_strided(name, x, x.shape, dtype)
        if dtype == np.uint16:
            call.add(value_couples=couples_for_sums(value))
        pairs, copied = (*lead, query_len, key_len), bias.copy() if bias is not None and 0 in bias.strides else bias
        for name, x, kind in (("bias", copied, wide), ("mask", mask, np.bool_), ("keep", keep, np.bool_)):
            if x is not None:
                call.add_strided(name, x, pairs, kind)  # of a bias, a stride of 0 says that the gradient is shared
        if sinks is not None:
            call.add(sinks=packed(sinks, wide))
        return call

    if spans is None and not of_pairs and 1 <= query_len <= FEW and kv_heads:
        few = attended_in_place(query, key, value, before, after, scale=scale, softcap=softcap, sinks=sinks)
        for x, result in ((output, few.output), (shift, few.shift), (inverse, few.inverse)):
            x[...] = result.reshape(x.shape)
    else:
        tasks = count * -(-(query_len if spans is None else spans.queries) // tile)
        told: Record | Repeated
        if spans is sinks is None and not of_pairs and dtype == wide:
            told = Repeated(recorded, (query, key, value, output, shift, inverse), (before, after, scale, softcap))
        else:
            told = recorded()
        run_tasks(forward, told, has_options, tasks, cost, dtype, spans)

    def lse() -> Array:
        return np.where(inverse == 0, -np.inf, shift - np.log(inverse))

    # the policy is that of weights, of which there are none without keys
    nowhere = (inverse == 0)[..., None] if masked_rows != "zero" and key_len else None
    if nowhere is not None and nowhere.any():
        np.copyto(
            output, np.nan if masked_rows == "nan" else _of_group(value.sum(axis=-2, keepdims=True), group) / max(key_len, 1), where=nowhere
        )

    def pullback(d_output: Array | None, d_lse: Array | None) -> dict[str, Array | None]:
        made, d = recorded().more(), np.zeros_like(output) if d_output is None else d_output
        made.add_strided("d_output", d, output.shape, dtype)
        if d_lse is not None:
            made.add(d_lse=packed(d_lse, wide))
        grads = _gradients(made, query, key, value, d, bias, spans, has_options=has_options, cost=2 * cost)
        centre = grads.pop("centre")
        if nowhere is not None and masked_rows == "uniform":
            d_mean = np.where(nowhere, d, 0).sum(axis=-2, keepdims=True) / max(key_len, 1)
            grads["value"] += d_mean.reshape(*lead[:-1], kv_heads, group, 1, value_dim).sum(axis=-3)
        return {**grads, "sinks": None if sinks is None else plain.d_sinks(sinks, shift, inverse, centre)}

    return Attended(output, lse), pullback


def _of_sums(stored: np.dtype[Any]) -> np.dtype[Any]:
    """What sums of numbers in a type are made in."""
    return np.dtype(np.float32) if stored == np.uint16 else stored


def _of_group(x: Array, group: int) -> Array:
    """What heads of keys have, for each head of queries."""
    return x if group == 1 else x.repeat(group, axis=-3)


def _gradients(
    call: Record,
    query: Array,
    key: Array,
    value: Array,
    d_output: Array,
    bias: Array | None,
    spans: Spans | None,
    *,
    has_options: bool,
    cost: int,
) -> dict[str, Array]:
    """Gradients, and the centre of each row."""
    *lead, query_len, head_dim = query.shape
    kv_heads, key_len, value_dim = value.shape[-3:]
    dtype, count, kv = query.dtype.newbyteorder("="), math.prod(lead), math.prod(value.shape[:-2])
    wide = _of_sums(dtype)
    tile, lanes, group = TILE_BYTES // wide.itemsize, HOST.register_bytes // wide.itemsize, lead[-1] // max(kv_heads, 1)
    parts = kv * (1 if spans is None else spans.query.size)
    room = MOST_BYTES // max(kv * key_len * (head_dim + value_dim) * wide.itemsize, 1)
    chunks = max(1, min(-(-TASKS // max(parts, 1)), group * -(-query_len // tile) // UNITS, room))
    panel, size = backward_sizes(head_dim, value_dim, key_len, tile, lanes, wide.itemsize)
    d_query, centre = empty(query.shape, wide), np.empty((*lead, query_len), wide)
    d_key, d_value = (empty((kv, chunks, key_len, n), wide) for n in (head_dim, value_dim))
    made = call.more(memory_size=size, panel=panel, chunks=chunks)
    made.add(d_query=d_query, d_key=d_key, d_value=d_value, centre=centre)
    if dtype == np.uint16:
        made.add(key_couples=couples_for_sums(key))
    tasks = kv * chunks if spans is None else np.full(spans.query.size, kv * chunks)
    run_tasks(backward, made, has_options, tasks, cost, dtype, spans)
    grads = {
        "query": d_query,
        "key": (d_key.sum(axis=1) if chunks > 1 else d_key).reshape(key.shape),
        "value": (d_value.sum(axis=1) if chunks > 1 else d_value).reshape(value.shape),
        "centre": centre,
    }
    if bias is None:
        return grads
    if not bias.size:
        return {**grads, "bias": np.zeros(bias.shape, wide)}
    sizes = zip((count // max(lead[-1], 1), lead[-1], query_len, key_len), ("batch", "head", "row", "column"), strict=True)
    own = [size if call.fields[f"bias_{axis}"] else 1 for size, axis in sizes]  # axes along which it is not broadcast
    d_bias = np.zeros(own, wide)
    made = made.more(memory_size=bias_memory(head_dim, value_dim, tile))
    made.add(d_bias=d_bias)
    if dtype == np.uint16:  # a kernel of its own is not worth its compilation
        for name, x in {"query": query, "key": key, "value": value, "d_output": d_output}.items():
            made.add_strided(name, widened(x), x.shape, wide)
    run_tasks(backward_bias, made, has_options, math.prod(own[:2]) * (-(-own[2] // tile)), cost, wide)
    if d_bias.size != bias.size:  # some of several leading axes were broadcast
        whole = lead[:-1] if own[0] > 1 else [1] * len(lead[:-1])
        d_bias = unbroadcast(d_bias.reshape(*whole, *own[1:]), bias.shape)
    return {**grads, "bias": d_bias.reshape(bias.shape)}
