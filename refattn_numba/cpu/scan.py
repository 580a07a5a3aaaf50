"""The state of linear attentions on CPU cores, in the dtype of the query: float32 or float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn._core import Array, Grads, Pullback
from refattn.attention.linear.rule import Recalled
from refattn_numba.cpu.call import Record, empty
from refattn_numba.cpu.packing import packed
from refattn_numba.cpu.scan_backward import backward
from refattn_numba.cpu.scan_call import SPAN, ScanCall, memory_of
from refattn_numba.cpu.scan_forward import forward
from refattn_numba.cpu.threads import run_tasks

CHUNK = 32  # positions at most: the state's products cost as much for any number, those inside a chunk grow with it
PART = 64  # columns of the values, where several threads share a head
CHUNK_BY_ROW = 16  # where each row of the state decays on its own, all pairs of a chunk are visited feature by feature
HEADS = 8  # with fewer, columns of the values are given to several threads: on any number of cores, so that results are the same


def scan(
    query: Array,
    key: Array,
    value: Array,
    log_decay: Array | None,
    beta: Array | None,
    state: Array | None,
    *,
    scale: float | None,
) -> tuple[Recalled, Pullback]:
    """`refattn.attention.linear.rule.recurrent`, of which a decay of each row with `beta` is not offered."""
    *batch, kv_heads, length, head_dim = key.shape
    value_dim, heads, dtype = value.shape[-1], query.shape[-3], query.dtype.newbyteorder("=")
    count, group = math.prod(batch) * kv_heads, heads // max(kv_heads, 1)
    _check_shapes(query, key, value, log_decay, beta, state)
    rates = 0 if log_decay is None else log_decay.shape[-1]
    part = PART if count < HEADS and value_dim >= 2 * PART else max(value_dim, 1)
    parts = -(-value_dim // part)
    fields = {"count": count, "group": group, "length": length, "head_dim": head_dim, "value_dim": value_dim, "rates": rates}
    fields |= {"part": part, "parts": parts, "scale": 1 / math.sqrt(head_dim) if scale is None else scale}
    call = Record(fields, layout=ScanCall)
    call.add(**{name: packed(x, dtype) for name, x in (("query", query), ("key", key), ("value", value))})
    call.add(**{name: packed(x, dtype) for name, x in (("log_decay", log_decay), ("beta", beta)) if x is not None})
    call.add(state=np.zeros((count, head_dim, value_dim), dtype) if state is None else packed(state, dtype))
    output = empty((count, group, length, value_dim), dtype)
    end = empty((count, head_dim, value_dim), dtype)
    call.add(output=output, end=end, states=empty((count, -(-length // SPAN), head_dim, value_dim), dtype))
    cost = count * length * head_dim * value_dim * (1 + group + (beta is not None))

    def run(kernel: Any, call: Record, chunk: int, cost: int) -> None:
        sizes = memory_of(head_dim, part, chunk, dtype.itemsize, backward=kernel is backward)
        run_tasks(kernel, call.more(chunk=chunk, **sizes), False, count * parts, cost, dtype)

    chunk = CHUNK_BY_ROW if rates > 1 else CHUNK
    run(forward, call, chunk, cost)
    # one at a time, a number that is not finite cannot reach earlier positions, as a product with 0
    if not np.isfinite(end).all():
        chunk = 1
        run(forward, call, chunk, cost)

    def pullback(d_output: Array, d_state: Array) -> Grads:
        shared = {"query": query.shape, "key": key.shape}
        shared |= {name: x.shape for name, x in (("log_decay", log_decay), ("beta", beta)) if x is not None}
        grads = {name: empty((parts, *shape), dtype) for name, shape in shared.items()}
        grads |= {"value": empty(value.shape, dtype), "state": empty((*batch, kv_heads, head_dim, value_dim), dtype)}
        made = call.more()
        made.add(d_output=packed(d_output, dtype), d_end=packed(d_state, dtype), **{f"d_{name}": g for name, g in grads.items()})
        run(backward, made, chunk, 3 * cost)
        if chunk > 1 and not np.isfinite(grads["state"]).all():
            run(backward, made, 1, 3 * cost)
        return {name: _joined(g) if name in shared else g for name, g in grads.items()}

    recalled = Recalled(output.reshape(*batch, heads, length, value_dim), end.reshape(*batch, kv_heads, head_dim, value_dim))
    return recalled, pullback


def _joined(parts: Array) -> Array:
    """The sum of what each part of the values gives."""
    return parts[0] if len(parts) == 1 else parts.sum(axis=0)


def _check_shapes(query: Array, key: Array, value: Array, log_decay: Array | None, beta: Array | None, state: Array | None) -> None:
    """Refuse what would make a kernel read beyond an array."""
    *batch, heads, length, head_dim = query.shape
    kv_heads, value_dim = key.shape[-3], value.shape[-1]
    lead = (*batch, kv_heads)
    fits = key.shape == (*lead, length, head_dim) and value.shape == (*lead, length, value_dim) and head_dim >= 1
    fits &= kv_heads > 0 or not heads
    fits &= heads % max(kv_heads, 1) == 0
    fits &= log_decay is None or log_decay.shape in {(*lead, length, 1), (*lead, length, head_dim)}
    fits &= beta is None or (beta.shape == (*lead, length) and (log_decay is None or log_decay.shape[-1] == 1))
    fits &= state is None or state.shape == (*lead, head_dim, value_dim)
    if not fits:
        raise ValueError(f"query {query.shape}, key {key.shape} and value {value.shape} do not fit together, or what goes with them")
