"""Additive attention: a small network compares a query with a key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn._core import Array, Booleans, Pullback, Random, Sample, mechanism
from refattn.attention.score.rule import compare
from refattn.primitives.attention_stages import MaskedRows


def _inputs(random: Random) -> dict[str, Any]:
    return {
        "query": random.normal((2, 3, 4)),
        "key": random.normal((2, 5, 6)),
        "value": random.normal((2, 5, 2)),
        "w_query": random.normal((3, 4)),
        "w_key": random.normal((3, 6)),
        "w_score": random.normal(3),
    }


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    mask = random.booleans(0.6, (2, 3, 5))
    mask[0, 1] = False
    yield Sample("plain", inputs)
    yield Sample("bias", {**inputs, "b_hidden": random.normal(3)})
    yield Sample("masked", {**inputs, "mask": mask})
    yield Sample("masked row uniform", {**inputs, "mask": mask, "masked_rows": "uniform"})
    yield Sample("one sentence", {**inputs, **{n: inputs[n][0] for n in ("query", "key", "value")}, "mask": mask[1]})


def _benchmark(random: Random) -> dict[str, Any]:
    tokens = {name: random.normal((8, 50, 256)) for name in ("query", "key", "value")}
    return {**tokens, "w_query": random.normal((256, 256)), "w_key": random.normal((256, 256)), "w_score": random.normal(256)}


@mechanism(tags={"softmax", "quadratic"}, samples=_samples, benchmark=_benchmark)
def additive_attention(
    query: Array,
    key: Array,
    value: Array,
    w_query: Array,
    w_key: Array,
    w_score: Array,
    b_hidden: Array | None = None,
    *,
    mask: Booleans | None = None,
    masked_rows: MaskedRows = "zero",
) -> tuple[Array, Pullback]:
    r"""Average the values, weighted by a network of one hidden layer that reads a query and a key.

    Parameters
    ----------
    query : array, shape (..., query_len, query_dim)
        Decoder states.
    key : array, shape (..., key_len, key_dim)
        Encoder states that are compared with.
    value : array, shape (..., key_len, value_dim)
        Encoder states that are read: the paper's are the keys.
    w_query : array, shape (hidden_dim, query_dim)
        The paper's W: one row for each hidden unit.
    w_key : array, shape (hidden_dim, key_dim)
        The paper's U.
    w_score : array, shape (hidden_dim)
        The paper's v.
    b_hidden : array or None, shape (hidden_dim), optional
        Added before the tanh; the paper's equation has none.
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
    .. math::

        e_{ij} = v^\top \tanh(W q_i + U k_j + b), \quad \alpha_i = \operatorname{softmax}(e_i), \quad
        c_i = \sum_j \alpha_{ij} x_j, \qquad
        \bar h_{ij} = \bar e_{ij}\, v \odot (1 - \tanh^2 h_{ij}), \quad \bar q_i = W^\top \sum_j \bar h_{ij}, \quad
        \bar k_j = U^\top \sum_i \bar h_{ij}

    References
    ----------
    .. [1] Bahdanau, Cho, Bengio, "Neural Machine Translation by Jointly Learning to Align and Translate", ICLR 2015,
       section 3.1 and appendix A.1.2. arXiv:1409.0473.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> query, key, value = np.zeros((1, 1)), np.array([[-1e9], [1e9]]), np.array([[2.0], [4.0]])
    >>> weight = np.ones((1, 1))
    >>> refattn.additive_attention(query, key, value, weight, weight, np.log([2.0]) / 2)  # weights 1 to 2
    array([[3.33333333]])
    """
    attended, pullback = compare(query, key, value, w_query, w_key, w_score, b_hidden, mask=mask, masked_rows=masked_rows)
    return attended.output, lambda d_output: pullback(d_output, np.zeros_like(attended.weights))
