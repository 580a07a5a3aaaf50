"""Softmax attention on CPU cores, in the dtype of the query: float32 or float64."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np

from refattn import masks
from refattn._core import Array, Booleans, unbroadcast
from refattn.attention.dot_product.scaled_dot_product import AttendedWithLse
from refattn.primitives.attention_stages import MaskedRows
from refattn_numba.cpu.attention_backward import backward, backward_sizes
from refattn_numba.cpu.attention_bias import backward_bias, bias_memory
from refattn_numba.cpu.attention_forward import forward, forward_memory
from refattn_numba.cpu.cached import FEW, Reach, attended
from refattn_numba.cpu.call import Record
from refattn_numba.cpu.decode import Decoding, decode
from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.jit import compile_once
from refattn_numba.cpu.packing import packed
from refattn_numba.cpu.plain import attention as plain
from refattn_numba.cpu.simd import TILE_BYTES
from refattn_numba.cpu.threads import kernel_types, run_tasks

Window: TypeAlias = tuple[int | None, int | None]
Outcome: TypeAlias = tuple[AttendedWithLse, Callable[[Array | None, Array | None], dict[str, Array | None]]]

TASKS = 2 * (os.cpu_count() or 1)  # of a backward pass, where it can be cut so far; not the threads, so that they change no bit
UNITS = 4  # tiles of queries that a task has at least


def warm_up(*, dtypes: Iterable[str] = ("float32",), options: bool = False) -> None:
    """Compile the kernels now, so that no later call has to wait; what is on disk already is only read.

    There are seven for each precision: forward and backward, and a few queries, without options and with them, and a bias's gradient.

    Parameters
    ----------
    dtypes : iterable of str, optional
        "float32", which serves float16 and bfloat16 too, and "float64".
    options : bool, optional
        Whether bias, mask, dropout and softcap are wanted, and caches of smaller types; all else is in the kernels without options.
    """
    for dtype in dtypes:
        for has_options in (False, True)[: 1 + options]:
            for kernel in (forward, backward, *[backward_bias] * has_options):
                compile_once(kernel, *kernel_types(np.dtype(dtype), has_options=has_options))
            compile_once(decode, *kernel_types(np.dtype(dtype), has_options=has_options, of=Decoding))


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
    """`refattn.scaled_dot_product_attention_with_lse` and its pullback, where a cotangent of None is zero."""
    options = {"bias": bias, "sinks": sinks, "mask": mask, "causal": causal, "align": align, "window": window, "scale": scale}
    options |= {"softcap": softcap, "keep": keep, "dropout_rate": dropout_rate, "masked_rows": masked_rows}
    plain.check_shapes(query, key, value, sinks)
    *lead, query_len, head_dim = query.shape
    kv_heads, key_len, value_dim = value.shape[-3:]
    dtype, count = query.dtype.newbyteorder("="), math.prod(lead)
    before, after = plain.band(query_len, key_len, causal, align, window)
    factor = np.asarray(1 / math.sqrt(head_dim) if scale is None else scale, dtype)
    if factor.shape[-1:] not in {(), (1,)}:
        return plain.attend(query, key, value, **options)
    output, *rows = (np.empty((*lead, query_len, *size), dtype) for size in ((value_dim,), (), (), ()))
    lse, shift, inverse = rows
    tile, group, pairs = TILE_BYTES // dtype.itemsize, lead[-1] // max(kv_heads, 1), (*lead, query_len, key_len)
    call = Record(
        {
            "heads": lead[-1],
            "count": count,
            "group": group,
            "query_len": query_len,
            "key_len": key_len,
            "head_dim": head_dim,
            "value_dim": value_dim,
            "before": before,
            "after": after,
            "softcap": softcap or 0.0,
            "fill": masked_rows != "zero",
            "keep_factor": 1 / (1 - dropout_rate),
            "memory_size": forward_memory(head_dim, value_dim, tile),
        }
    )
    call.add(output=output, lse=lse, shift=shift, inverse=inverse)
    for name, x in (("query", query), ("key", key), ("value", value)):
        call.add_strided(name, x, x.shape, dtype)
    call.add_strided("scale", factor, (*lead, query_len, 1), dtype)
    if bias is not None and 0 in bias.strides:
        bias = bias.copy()  # a stride of 0 says that the gradient is shared
    for name, x, kind in (("bias", bias, dtype), ("mask", mask, np.bool_), ("keep", keep, np.bool_)):
        if x is not None:
            call.add_strided(name, x, pairs, kind)
    if sinks is not None:
        call.add(sinks=packed(sinks, dtype))
    has_options = any(x is not None for x in (softcap, bias, mask, keep))
    cost = count * query_len * key_len * (head_dim + value_dim)
    of_pairs = any(x is not None for x in (bias, mask, keep))
    if not of_pairs and 1 <= query_len <= FEW and kv_heads and call.fields["fill"] == 0:
        rows, keys, values = (x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:]) for x in (query, key, value))
        at = np.arange(query_len)
        first, end = (np.broadcast_to(np.clip(x, 0, key_len), (len(rows), query_len)) for x in (at - before, at + after + 1))
        factors = factor if factor.ndim < 2 else np.broadcast_to(factor, (*lead, query_len, 1)).reshape(*rows.shape[:-1], 1)
        sequences = np.arange(len(rows))[:, None]
        reach = Reach(first, np.maximum(first, end))
        results = attended(rows, keys, values, sequences, reach, dtype, factor=factors, softcap=softcap, sinks=sinks)
        for x, result in zip((output, lse, shift, inverse), results, strict=True):
            x[...] = result.reshape(x.shape)
    elif run_tasks(forward, call, has_options, count * -(-query_len // tile), cost, dtype):
        return plain.attend(query, key, value, **options)

    def pullback(d_output: Array | None, d_lse: Array | None) -> dict[str, Array | None]:
        grads = None
        if not isinstance(scale, np.ndarray):
            made = call.more()
            made.add_strided("d_output", np.zeros_like(output) if d_output is None else d_output, output.shape, dtype)
            if d_lse is not None:
                made.add(d_lse=packed(d_lse, dtype))
            grads = _gradients(made, query, key, value, bias, has_options=has_options, cost=2 * cost)
        if grads is None:
            return plain.attend(query, key, value, **options)[1](d_output, d_lse)
        centre = grads.pop("centre")
        return {**grads, "sinks": None if sinks is None else plain.d_sinks(sinks, shift, inverse, centre)}

    return AttendedWithLse(output, lse), pullback


def _gradients(
    call: Record, query: Array, key: Array, value: Array, bias: Array | None, *, has_options: bool, cost: int
) -> dict[str, Array] | None:
    """Gradients, and the centre of each row; None where the kernel gave up."""
    *lead, query_len, head_dim = query.shape
    kv_heads, key_len, value_dim = value.shape[-3:]
    dtype, count, kv = query.dtype.newbyteorder("="), math.prod(lead), math.prod(value.shape[:-2])
    tile, lanes, group = TILE_BYTES // dtype.itemsize, HOST.register_bytes // dtype.itemsize, lead[-1] // max(kv_heads, 1)
    chunks = max(1, min(-(-TASKS // max(kv, 1)), group * -(-query_len // tile) // UNITS))
    panel, size = backward_sizes(head_dim, value_dim, key_len, tile, lanes, dtype.itemsize)
    d_query, centre = np.empty(query.shape, dtype), np.empty((*lead, query_len), dtype)
    d_key, d_value = (np.empty((kv, chunks, key_len, n), dtype) for n in (head_dim, value_dim))
    made = call.more(memory_size=size, panel=panel, chunks=chunks)
    made.add(d_query=d_query, d_key=d_key, d_value=d_value, centre=centre)
    if run_tasks(backward, made, has_options, kv * chunks, cost, dtype):
        return None
    grads = {
        "query": d_query,
        "key": (d_key.sum(axis=1) if chunks > 1 else d_key).reshape(key.shape),
        "value": (d_value.sum(axis=1) if chunks > 1 else d_value).reshape(value.shape),
        "centre": centre,
    }
    if bias is None:
        return grads
    sizes = zip((count // max(lead[-1], 1), lead[-1], query_len, key_len), ("batch", "head", "row", "column"), strict=True)
    own = [size if call.fields[f"bias_{axis}"] else 1 for size, axis in sizes]  # axes along which it is not broadcast
    d_bias = np.zeros(own, dtype)
    made = made.more(memory_size=bias_memory(head_dim, value_dim, tile))
    made.add(d_bias=d_bias)
    if run_tasks(backward_bias, made, has_options, math.prod(own[:2]) * (-(-own[2] // tile)), cost, dtype):
        return None
    if d_bias.size != bias.size:  # some of several leading axes were broadcast
        whole = lead[:-1] if own[0] > 1 else [1] * len(lead[:-1])
        d_bias = unbroadcast(d_bias.reshape(*whole, *own[1:]), bias.shape)
    return {**grads, "bias": d_bias.reshape(bias.shape)}
