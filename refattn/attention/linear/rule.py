"""The state that all linear attentions share: how it is written, decays and is read, step by step and chunk by chunk.

At each position the state S, a matrix from keys to values, decays; u is written at the key; then the query reads:

    D = exp(g) * S      u = beta * (v - D^T k), or v where nothing is erased      S = D + k u^T      o = scale * S^T q

Here queries have the shape (..., kv_heads * group, length, head_dim), and log decays (..., kv_heads, length, head_dim or 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, Booleans, Grads, Pullback, like, unbroadcast
from refattn.primitives.arithmetic import multiply
from refattn.primitives.attention_stages import masked_matmul
from refattn.primitives.cumsum import cumsum
from refattn.primitives.triangular_solve import triangular_solve


class Recalled(NamedTuple):
    """What the queries read, and the state after the last position."""

    output: Array
    state: Array


def grouped(query: Array, key: Array) -> Array:
    """Query heads beside the key head that they share: (..., kv_heads, group, length, head_dim)."""
    kv_heads = key.shape[-3]
    return query.reshape(*query.shape[:-3], kv_heads, query.shape[-3] // max(kv_heads, 1), *query.shape[-2:])


def flat(x: Array) -> Array:
    """Undo `grouped`."""
    return x.reshape(*x.shape[:-4], x.shape[-4] * x.shape[-3], *x.shape[-2:])


def filled(
    query: Array, key: Array, value: Array, log_decay: Array | None, state: Array | None, scale: float | None
) -> tuple[Array, Array, Any]:
    """No decay, an empty state and 1 / sqrt(head_dim) in place of what is None."""
    return (
        np.zeros_like(key[..., :1]) if log_decay is None else log_decay,
        np.zeros_like(key, shape=(*key.shape[:-2], key.shape[-1], value.shape[-1])) if state is None else state,
        1 / np.sqrt(like(query, query.shape[-1])) if scale is None else scale,
    )


def recurrent(
    query: Array,
    key: Array,
    value: Array,
    log_decay: Array | None,
    beta: Array | None,
    state: Array | None,
    *,
    scale: float | None,
) -> tuple[Recalled, Pullback]:
    """One position after another; where `beta` is None, nothing is erased. The pullback goes back through time."""
    logs, before, factor = filled(query, key, value, log_decay, state, scale)
    queries = grouped(factor * query, key)
    decay = np.exp(logs)
    length = key.shape[-2]

    states, writes = [before], []
    for t in range(length):
        decayed = decay[..., t, :, None] * states[t]
        k, v = key[..., t, :, None], value[..., t, :]
        writes.append(v if beta is None else beta[..., t, None] * (v - (k * decayed).sum(axis=-2)))
        states.append(decayed + k * writes[t][..., None, :])
    after = np.stack(states[1:], axis=-3) if length else np.zeros_like(before, shape=(*before.shape[:-2], 0, *before.shape[-2:]))
    output = np.einsum("...gtk,...tkv->...gtv", queries, after)

    def pullback(d_output: Array, d_state: Array) -> Grads:
        d_outputs = grouped(d_output, key)
        d_read = np.einsum("...gtk,...gtv->...tkv", queries, d_outputs)
        d_key, d_value, d_beta, d_log_decay = [], [], [], []
        d_after = d_state
        for t in reversed(range(length)):
            d_after = d_after + d_read[..., t, :, :]
            decayed = decay[..., t, :, None] * states[t]
            k = key[..., t, :, None]
            d_k, d_write, d_decayed = (d_after * writes[t][..., None, :]).sum(axis=-1), (k * d_after).sum(axis=-2), d_after
            d_v = d_write if beta is None else beta[..., t, None] * d_write
            if beta is not None:  # what was erased is -beta D^T k
                d_beta.append((d_write * (value[..., t, :] - (k * decayed).sum(axis=-2))).sum(axis=-1))
                d_k = d_k - (decayed * d_v[..., None, :]).sum(axis=-1)
                d_decayed = d_after - k * d_v[..., None, :]
            d_key.append(d_k)
            d_value.append(d_v)
            d_log_decay.append((d_decayed * decayed).sum(axis=-1))
            d_after = decay[..., t, :, None] * d_decayed
        d_queries = np.einsum("...gtv,...tkv->...gtk", d_outputs, after)
        return {
            "query": factor * flat(d_queries),
            "key": in_order(d_key, key),
            "value": in_order(d_value, value),
            "log_decay": unbroadcast(in_order(d_log_decay, key), logs.shape),
            "beta": None if beta is None else in_order([d[..., None] for d in d_beta], beta[..., None])[..., 0],
            "state": d_after,
        }

    return Recalled(flat(output), states[-1]), pullback


def in_order(backward: list[Array], like: Array) -> Array:
    """Gradients of the positions, from the last to the first, as one array."""
    return np.stack(backward[::-1], axis=-2) if backward else np.zeros_like(like)


def chunked(
    query: Array,
    key: Array,
    value: Array,
    log_decay: Array | None,
    beta: Array | None,
    state: Array | None,
    *,
    scale: float | None,
    chunk_size: int,
) -> tuple[Recalled, Pullback]:
    """The same, chunk by chunk: inside a chunk all positions at once, and from one chunk to the next the state."""
    logs, before, factor = filled(query, key, value, log_decay, state, scale)
    queries = grouped(factor * query, key)
    parts = [slice(i, i + chunk_size) for i in range(0, max(key.shape[-2], 1), chunk_size)]  # of nothing, one empty chunk

    outputs, pullbacks, last = [], [], before
    for at in parts:
        rate = None if beta is None else beta[..., at]
        (read, last), chunk_pullback = chunk(queries[..., at, :], key[..., at, :], value[..., at, :], logs[..., at, :], rate, last)
        outputs.append(read)
        pullbacks.append(chunk_pullback)

    def pullback(d_output: Array, d_state: Array) -> Grads:
        d_outputs, d_last, grads = grouped(d_output, key), d_state, []
        for at, chunk_pullback in zip(parts[::-1], pullbacks[::-1], strict=True):
            d = chunk_pullback(d_outputs[..., at, :], d_last)
            d_last = d["state"]
            grads.insert(0, d)
        joined = {name: np.concatenate([d[name] for d in grads], axis=-2) for name in ("query", "key", "value", "log_decay")}
        d_beta = None if beta is None else np.concatenate([d["beta"] for d in grads], axis=-1)
        return {**joined, "query": factor * flat(joined["query"]), "beta": d_beta, "state": d_last}

    return Recalled(flat(np.concatenate(outputs, axis=-2)), last), pullback


def chunk(
    query: Array, key: Array, value: Array, log_decay: Array, beta: Array | None, state: Array
) -> tuple[tuple[Array, Array], Pullback]:
    r"""One chunk, with queries of the shape (..., kv_heads, group, length, head_dim).

    With :math:`E_{ij}` the decay from position j to i, and index 0 for the place of the state S, position i leaves the state
    :math:`E_{i0} S + \sum_{j \le i} E_{ij} k_j u_j^\top`: queries read the decayed S and, through decayed scores, the writes u.
    """
    decays, decays_pullback = decays_between(log_decay)
    inner = decays[..., 1:, 1:, :]
    query_state, query_pullback = multiply.vjp(query, decays[..., None, 1:, 0, :])
    key_state, key_pullback = multiply.vjp(key, decays[..., 1:, 0, :])
    key_end, end_pullback = multiply.vjp(key, decays[..., -1, 1:, :])
    kept, kept_pullback = multiply.vjp(decays[..., -1, 0, :, None], state)
    scores, scores_pullback = decayed_scores(query, key[..., None, :, :], inner[..., None, :, :, :])
    writes, writes_pullback = write(key, key_state, value, inner, beta, state)

    seen = causal(key.shape[-2])
    shared = writes[..., None, :, :]
    output = query_state @ state[..., None, :, :] + masked_matmul(scores, shared, seen)
    end = kept + key_end.swapaxes(-1, -2) @ writes

    def pullback(d_output: Array, d_end: Array) -> Grads:
        d_shared = masked_matmul(scores.swapaxes(-1, -2), d_output, seen.swapaxes(-1, -2))
        d_write = writes_pullback(d_shared.sum(axis=-3) + key_end @ d_end)
        d_scores = scores_pullback(d_output @ shared.swapaxes(-1, -2))
        d_query = query_pullback(d_output @ state[..., None, :, :].swapaxes(-1, -2))
        d_key, d_key_end = key_pullback(d_write["key_state"]), end_pullback(writes @ d_end.swapaxes(-1, -2))
        d_kept = kept_pullback(d_end)
        d_inner = d_write["inner"] + d_scores["decays"][..., 0, :, :, :]
        d_since = d_query["b"][..., 0, :, :] + d_key["b"]
        d_decays = np.zeros_like(decays)
        d_decays[..., 1:, 0, :], d_decays[..., 1:, 1:, :] = d_since, d_inner
        d_decays[..., -1, 0, :] += d_kept["a"][..., 0]
        d_decays[..., -1, 1:, :] += d_key_end["b"]
        d_read = query_state.swapaxes(-1, -2) @ d_output
        return {
            "query": d_query["a"] + d_scores["x"],
            "key": d_key["a"] + d_key_end["a"] + d_write["key"] + d_scores["y"][..., 0, :, :],
            "value": d_write["value"],
            "log_decay": decays_pullback(d_decays),
            "beta": d_write["beta"],
            "state": d_kept["b"] + d_write["state"] + d_read.sum(axis=-3),
        }

    return (output, end), pullback


def causal(length: int) -> Booleans:
    """Where position i (rows) is position j or later."""
    return np.tri(length, dtype=bool)


def decays_between(log_decay: Array) -> tuple[Array, Callable[[Array], Array]]:
    """The exponential of the sum of the log decays after position j up to position i, 0 where i < j; position 0 comes before the first.

    The sums are formed each on its own. As differences of running sums they would cancel, and a decay to nothing, of which the
    logarithm is minus infinity, would give NaN.
    """
    size = log_decay.shape[-2] + 1
    steps = np.concatenate([np.zeros_like(log_decay, shape=(*log_decay.shape[:-2], 1, log_decay.shape[-1])), log_decay], axis=-2)
    later, reached = np.tri(size, k=-1, dtype=bool)[..., None], causal(size)[..., None]
    sums, sums_pullback = cumsum.vjp(np.where(later, steps[..., :, None, :], 0), axis=-3)
    decays = np.where(reached, np.exp(sums), 0)

    def pullback(d_decays: Array) -> Array:
        d_steps = np.where(later, sums_pullback(d_decays * decays)["x"], 0).sum(axis=-2)
        return d_steps[..., 1:, :]

    return decays, pullback


def decayed_scores(x: Array, y: Array, decays: Array) -> tuple[Array, Pullback]:
    """Inner products of the rows of `x` with those of `y` at the same position or earlier, decayed feature by feature."""
    seen = causal(y.shape[-2])
    left, right = np.where(seen[..., None], x[..., :, None, :], 0), np.where(seen[..., None], y[..., None, :, :], 0)

    def pullback(d_scores: Array) -> Grads:
        d_terms = np.where(seen, d_scores, 0)[..., None]
        return {
            "x": unbroadcast((d_terms * right * decays).sum(axis=-2), x.shape),
            "y": unbroadcast((d_terms * left * decays).sum(axis=-3), y.shape),
            "decays": unbroadcast(d_terms * left * right, decays.shape),
        }

    return (left * right * decays).sum(axis=-1), pullback


def write(key: Array, key_state: Array, value: Array, decays: Array, beta: Array | None, state: Array) -> tuple[Array, Pullback]:
    r"""What each position of a chunk writes, all at once, in the WY representation.

    A write depends on those before it: :math:`u_i = \beta_i (v_i - S^\top \tilde k_i - \sum_{j < i} A_{ij} u_j)`, with A the
    decayed scores of the keys and :math:`\tilde k` the keys decayed from the state. This is a triangular system, whose solution
    is :math:`U - W S` with U and W solutions for the values and the keys, which no state enters.
    """
    if beta is None:
        others = {"key": np.zeros_like(key), "key_state": np.zeros_like(key), "inner": np.zeros_like(decays), "state": np.zeros_like(state)}
        return value, lambda d_writes: {**others, "value": d_writes, "beta": None}
    rate = beta[..., None]
    scores, scores_pullback = decayed_scores(key, key, decays)
    lower, lower_pullback = multiply.vjp(rate, scores)
    for_keys, keys_pullback = multiply.vjp(rate, key_state)
    for_values, values_pullback = multiply.vjp(rate, value)
    W, w_pullback = triangular_solve.vjp(lower, for_keys)
    U, u_pullback = triangular_solve.vjp(lower, for_values)

    def pullback(d_writes: Array) -> Grads:
        d_w, d_u = w_pullback(-d_writes @ state.swapaxes(-1, -2)), u_pullback(d_writes)
        d_keys, d_values, d_lower = keys_pullback(d_w["b"]), values_pullback(d_u["b"]), lower_pullback(d_w["lower"] + d_u["lower"])
        d_scores = scores_pullback(d_lower["b"])
        return {
            "key": d_scores["x"] + d_scores["y"],
            "key_state": d_keys["b"],
            "value": d_values["b"],
            "inner": d_scores["decays"],
            "beta": (d_lower["a"] + d_keys["a"] + d_values["a"])[..., 0],
            "state": -W.swapaxes(-1, -2) @ d_writes,
        }

    return U - W @ state, pullback
