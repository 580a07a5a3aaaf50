"""The state of linear attentions on CPU cores, in the dtype of the query: float32 or float64."""

from __future__ import annotations

import math

import numpy as np

from refattn._core import Array, Grads, Pullback
from refattn.attention.linear.rule import Recalled
from refattn_numba.cpu.packing import packed
from refattn_numba.cpu.scan_backward import Gradients, backward
from refattn_numba.cpu.scan_chunk import CHUNK, Operands
from refattn_numba.cpu.scan_forward import SPAN, forward
from refattn_numba.cpu.scan_panels import PANEL
from refattn_numba.cpu.threads import run

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
    given = Operands(
        packed(query, dtype).reshape(count, group, length, head_dim),
        packed(key, dtype).reshape(count, length, head_dim),
        packed(value, dtype).reshape(count, length, value_dim),
        packed(np.empty((count, length, 0)) if log_decay is None else log_decay, dtype).reshape(count, length, rates),
        packed(np.empty((count, 0)) if beta is None else beta, dtype).reshape(count, 0 if beta is None else length),
        packed(np.zeros((count, head_dim, value_dim)) if state is None else state, dtype).reshape(count, head_dim, value_dim),
        dtype.type(1 / math.sqrt(head_dim) if scale is None else scale),
        CHUNK_BY_ROW if rates > 1 else int(CHUNK),
    )
    # one at a time, a number that is not finite cannot reach earlier positions, as a product with 0
    singly = given._replace(chunk=1)
    part = int(PANEL if count < HEADS and value_dim >= 2 * PANEL else max(-(-value_dim // PANEL), 1) * PANEL)
    parts = -(-value_dim // part)
    cost = count * length * head_dim * value_dim * (1 + group + (beta is not None))
    output = np.empty((count, group, length, value_dim), dtype)
    states = np.empty((count, int(-(-length // SPAN)), head_dim, value_dim), dtype)
    end = np.empty((count, head_dim, value_dim), dtype)
    run(forward, given, part, output, states, end, tasks=count * parts, cost=cost)
    if not np.isfinite(end).all():
        given = singly
        run(forward, given, part, output, states, end, tasks=count * parts, cost=cost)

    def pullback(d_output: Array, d_state: Array) -> Grads:
        d_outputs = packed(d_output, dtype).reshape(output.shape)
        d_end = packed(d_state, dtype).reshape(end.shape)
        gradients = Gradients(
            np.empty((parts, *given.query.shape), dtype),
            np.empty((parts, *given.key.shape), dtype),
            np.empty(given.value.shape, dtype),
            np.empty((parts, *given.log_decay.shape), dtype),
            np.empty((parts, *given.beta.shape), dtype),
            np.empty(end.shape, dtype),
        )
        run(backward, given, part, states, d_outputs, d_end, gradients, tasks=count * parts, cost=3 * cost)
        if given.chunk > 1 and not np.isfinite(gradients.state).all():
            run(backward, singly, part, states, d_outputs, d_end, gradients, tasks=count * parts, cost=3 * cost)
        query_, key_, value_, log_decay_, beta_, state_ = gradients
        return {
            "query": _joined(query_).reshape(query.shape),
            "key": _joined(key_).reshape(key.shape),
            "value": value_.reshape(value.shape),
            "log_decay": None if log_decay is None else _joined(log_decay_).reshape(log_decay.shape),
            "beta": None if beta is None else _joined(beta_).reshape(beta.shape),
            "state": state_.reshape(*batch, kv_heads, head_dim, value_dim),
        }

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
