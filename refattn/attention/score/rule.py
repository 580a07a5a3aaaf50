"""What the attentions of this family share: from scores to averaged values, and the network that compares."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, Booleans, Grads, Mechanism, Pullback
from refattn.primitives.activation import tanh
from refattn.primitives.arithmetic import add
from refattn.primitives.attention_stages import MaskedRows, masked_matmul, masked_softmax, zero_unless
from refattn.primitives.linear import linear


class Attended(NamedTuple):
    """The attended values, and how much each of them counted."""

    output: Array
    weights: Array


def visible(query: Array, key: Array, mask: Booleans | None) -> Booleans:
    """Where a query may attend, in the shape of the scores."""
    return np.broadcast_to(True if mask is None else mask, (*query.shape[:-1], key.shape[-2]))


def average(scores: Array, value: Array, allowed: Booleans, masked_rows: MaskedRows) -> tuple[Attended, Pullback]:
    """Softmax of the scores over the keys that a query may attend to, and the values weighted by it."""
    heads = masked_softmax.vjp(scores[..., None, :, :], mask=allowed[..., None, :, :], masked_rows=masked_rows)
    (one_head, lse), softmax_pullback = heads
    weights = one_head[..., 0, :, :]
    read = allowed | np.isneginf(lse)[..., 0, :, None] if masked_rows == "uniform" else allowed
    output = masked_matmul(weights, value, read)

    def pullback(d_output: Array, d_weights: Array) -> Grads:
        d_read = np.where(allowed, d_output @ value.swapaxes(-1, -2), 0)
        return {
            "scores": softmax_pullback((d_weights + d_read)[..., None, :, :])["scores"][..., 0, :, :],
            "value": masked_matmul(np.where(read, weights, 0).swapaxes(-1, -2), d_output, read.swapaxes(-1, -2)),
        }

    return Attended(output, weights), pullback


def compare(
    query: Array,
    key: Array,
    value: Array,
    w_query: Array,
    w_key: Array,
    w_score: Array,
    b_hidden: Array | None = None,
    b_score: Array | None = None,
    *,
    activation: Mechanism[..., Any] = tanh,
    mask: Booleans | None = None,
    masked_rows: MaskedRows = "zero",
) -> tuple[Attended, Pullback]:
    """Attention by a network of one hidden layer that reads a query and a key, the weights of each on their own."""
    allowed = visible(query, key, mask)
    queries, query_pullback = linear.vjp(zero_unless(np.asarray(allowed.any(axis=-1)), query), w_query, b_hidden)
    keys, key_pullback = linear.vjp(zero_unless(np.asarray(allowed.any(axis=-2)), key), w_key)
    sums, sums_pullback = add.vjp(queries[..., :, None, :], keys[..., None, :, :])
    hidden, activation_pullback = activation.vjp(zero_unless(allowed, sums))
    scores, score_pullback = linear.vjp(hidden, w_score[None, :], b_score)
    attended, average_pullback = average(scores[..., 0], value, allowed, masked_rows)

    def pullback(d_output: Array, d_weights: Array) -> Grads:
        d_average = average_pullback(d_output, d_weights)
        d_score = score_pullback(d_average["scores"][..., None])
        d_sums = sums_pullback(activation_pullback(d_score["x"])["x"])
        d_query, d_key = query_pullback(d_sums["a"][..., :, 0, :]), key_pullback(d_sums["b"][..., 0, :, :])
        return {
            "query": d_query["x"],
            "key": d_key["x"],
            "value": d_average["value"],
            "w_query": d_query["weight"],
            "w_key": d_key["weight"],
            "w_score": d_score["weight"][0],
            "b_hidden": d_query.get("bias"),
            "b_score": d_score.get("bias"),
        }

    return attended, pullback


def compare_concatenated(
    query: Array,
    key: Array,
    value: Array,
    w_hidden: Array,
    w_score: Array,
    b_hidden: Array | None = None,
    b_score: Array | None = None,
    *,
    activation: Mechanism[..., Any] = tanh,
    mask: Booleans | None = None,
    masked_rows: MaskedRows = "zero",
) -> tuple[Array, Pullback]:
    """`compare`, with one matrix that multiplies a query and a key behind each other."""
    w_query, w_key = w_hidden[:, : query.shape[-1]], w_hidden[:, query.shape[-1] :]
    biases = (b_hidden, b_score)
    attended, compare_pullback = compare(
        query, key, value, w_query, w_key, w_score, *biases, activation=activation, mask=mask, masked_rows=masked_rows
    )

    def pullback(d_output: Array) -> Grads:
        d = compare_pullback(d_output, np.zeros_like(attended.weights))
        return {**d, "w_hidden": np.concatenate([d["w_query"], d["w_key"]], axis=1)}

    return attended.output, pullback
