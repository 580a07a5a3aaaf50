"""Scores that are inner products: of a query with a key, or with what a matrix makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn._core import Array, Booleans, Grads, Pullback, Random, Sample, mechanism
from refattn.attention.dot_product.scaled_dot_product import scaled_dot_product_attention
from refattn.attention.score.rule import visible
from refattn.primitives.attention_stages import MaskedRows, zero_unless
from refattn.primitives.linear import linear


def _masks(random: Random) -> tuple[Booleans, Booleans]:
    mask = random.booleans(0.6, (2, 3, 5))
    mask[0, 1] = False
    return mask, random.booleans(0.6, 5)


def _dot_inputs(random: Random) -> dict[str, Any]:
    return {"query": random.normal((2, 3, 4)), "key": random.normal((2, 5, 4)), "value": random.normal((2, 5, 2))}


def _dot_samples(random: Random) -> Iterator[Sample]:
    inputs, (mask, keys) = _dot_inputs(random), _masks(random)
    yield Sample("plain", inputs)
    yield Sample("masked", {**inputs, "mask": mask})
    yield Sample("masked row uniform", {**inputs, "mask": mask, "masked_rows": "uniform"})
    yield Sample("one sentence", {**{n: x[0] for n, x in inputs.items()}, "mask": keys})


def _general_samples(random: Random) -> Iterator[Sample]:
    inputs, (mask, keys) = {**_dot_inputs(random), "key": random.normal((2, 5, 6))}, _masks(random)
    weight = {"w_score": random.normal((4, 6))}
    yield Sample("plain", {**inputs, **weight})
    yield Sample("masked", {**inputs, **weight, "mask": mask})
    yield Sample("masked row uniform", {**inputs, **weight, "mask": mask, "masked_rows": "uniform"})
    yield Sample("one sentence", {**{n: x[0] for n, x in inputs.items()}, **weight, "mask": keys})


def _benchmark(random: Random) -> dict[str, Any]:
    return {name: random.normal((8, 50, 256)) for name in ("query", "key", "value")}


def _general_benchmark(random: Random) -> dict[str, Any]:
    return {**_benchmark(random), "w_score": random.normal((256, 256))}


@mechanism(tags={"softmax", "quadratic"}, samples=_dot_samples, benchmark=_benchmark)
def dot_attention(
    query: Array, key: Array, value: Array, *, mask: Booleans | None = None, masked_rows: MaskedRows = "zero"
) -> tuple[Array, Pullback]:
    r"""Average the values, weighted by the softmax of the inner products of query and key, which nothing scales.

    Parameters
    ----------
    query : array, shape (..., query_len, query_dim)
        Decoder states.
    key : array, shape (..., key_len, query_dim)
        Encoder states that are compared with.
    value : array, shape (..., key_len, value_dim)
        Encoder states that are read: the paper's are the keys.
    mask : bool array or None, broadcastable to (..., query_len, key_len), optional
        True where the query may attend.
    masked_rows : {"zero", "nan", "uniform"}, optional
        Weights of a query that may attend nowhere.

    Returns
    -------
    array, shape (..., query_len, value_dim)
        The attended values.

    Notes
    -----
    Sizes: ``query_dim >= 1``.

    .. math::

        e_{ij} = q_i^\top k_j, \quad \alpha_i = \operatorname{softmax}(e_i), \quad c_i = \sum_j \alpha_{ij} x_j, \qquad
        \bar q_i = \sum_j \bar e_{ij} k_j, \quad \bar k_j = \sum_i \bar e_{ij} q_i, \quad \bar x_j = \sum_i \alpha_{ij} \bar c_i

    References
    ----------
    .. [1] Luong, Pham, Manning, "Effective Approaches to Attention-based Neural Machine Translation", EMNLP 2015: the score "dot".
       arXiv:1508.04025.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.dot_attention(np.array([[1.0]]), np.log([[1.0], [3.0]]), np.array([[0.0], [4.0]]))  # weights 1 to 3
    array([[3.]])
    """
    allowed = visible(query, key, mask)[..., None, :, :]
    heads = (x[..., None, :, :] for x in (query, key, value))
    output, pullback = scaled_dot_product_attention.vjp(*heads, mask=allowed, scale=1.0, masked_rows=masked_rows)
    return output[..., 0, :, :], lambda d_output: {n: g[..., 0, :, :] for n, g in pullback(d_output[..., None, :, :]).items()}


@mechanism(tags={"softmax", "quadratic"}, samples=_general_samples, benchmark=_general_benchmark)
def general_attention(
    query: Array,
    key: Array,
    value: Array,
    w_score: Array,
    *,
    mask: Booleans | None = None,
    masked_rows: MaskedRows = "zero",
) -> tuple[Array, Pullback]:
    r"""Average the values, weighted by the softmax of a bilinear form of query and key.

    Parameters
    ----------
    query : array, shape (..., query_len, query_dim)
        Decoder states.
    key : array, shape (..., key_len, key_dim)
        Encoder states that are compared with.
    value : array, shape (..., key_len, value_dim)
        Encoder states that are read: the paper's are the keys.
    w_score : array, shape (query_dim, key_dim)
        The paper's W: a row for each feature of the query.
    mask : bool array or None, broadcastable to (..., query_len, key_len), optional
        True where the query may attend.
    masked_rows : {"zero", "nan", "uniform"}, optional
        Weights of a query that may attend nowhere.

    Returns
    -------
    array, shape (..., query_len, value_dim)
        The attended values.

    Notes
    -----
    Sizes: ``query_dim >= 1``.

    .. math::

        e_{ij} = q_i^\top W k_j, \quad \alpha_i = \operatorname{softmax}(e_i), \quad c_i = \sum_j \alpha_{ij} x_j, \qquad
        \bar q_i = \sum_j \bar e_{ij} W k_j, \quad \bar k_j = W^\top \sum_i \bar e_{ij} q_i, \quad
        \bar W = \sum_{ij} \bar e_{ij}\, q_i k_j^\top

    References
    ----------
    .. [1] Luong, Pham, Manning, "Effective Approaches to Attention-based Neural Machine Translation", EMNLP 2015: the score
       "general". arXiv:1508.04025.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> query, key, value = np.array([[1.0]]), np.array([[0.0, 0.0], [2.0, 1.0]]), np.array([[0.0], [4.0]])
    >>> refattn.general_attention(query, key, value, np.log([[1.0, 3.0]]))  # weights 1 to 3
    array([[3.]])
    """
    compared = np.asarray(visible(query, key, mask).any(axis=-2))
    keys, key_pullback = linear.vjp(zero_unless(compared, key), w_score)
    output, dot_pullback = dot_attention.vjp(query, keys, value, mask=mask, masked_rows=masked_rows)

    def pullback(d_output: Array) -> Grads:
        d_dot = dot_pullback(d_output)
        d_key = key_pullback(d_dot["key"])
        return {**d_dot, "key": d_key["x"], "w_score": d_key["weight"]}

    return output, pullback
