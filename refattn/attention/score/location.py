"""Scores that come from the query alone: where to look is known before anything is seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn._core import Array, Booleans, Grads, Pullback, Random, Sample, mechanism
from refattn.attention.score.rule import average, visible
from refattn.primitives.attention_stages import MaskedRows, zero_unless
from refattn.primitives.linear import linear


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {"query": random.normal((2, 3, 4)), "value": random.normal((2, 5, 2)), "w_score": random.normal((5, 4))}
    mask = random.booleans(0.6, (2, 3, 5))
    mask[0, 1] = False
    yield Sample("plain", inputs)
    yield Sample("masked", {**inputs, "mask": mask})
    yield Sample("masked row uniform", {**inputs, "mask": mask, "masked_rows": "uniform"})
    yield Sample("one sentence", {**inputs, "query": inputs["query"][0], "value": inputs["value"][0], "mask": mask[1]})


def _benchmark(random: Random) -> dict[str, Any]:
    return {"query": random.normal((8, 50, 256)), "value": random.normal((8, 50, 256)), "w_score": random.normal((50, 256))}


@mechanism(tags={"softmax"}, samples=_samples, benchmark=_benchmark)
def location_attention(
    query: Array, value: Array, w_score: Array, *, mask: Booleans | None = None, masked_rows: MaskedRows = "zero"
) -> tuple[Array, Pullback]:
    r"""Average the values, weighted by where a linear map of the query alone says to look.

    Parameters
    ----------
    query : array, shape (..., query_len, query_dim)
        Decoder states.
    value : array, shape (..., key_len, value_dim)
        Encoder states.
    w_score : array, shape (key_len, query_dim)
        The paper's W: a row for each position, so that it fixes how many there are.
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

        \alpha_i = \operatorname{softmax}(W q_i), \quad c_i = \sum_j \alpha_{ij} x_j, \qquad
        \bar e_{ij} = \alpha_{ij} \Bigl(x_j - c_i\Bigr)^\top \bar c_i, \quad \bar q_i = W^\top \bar e_i, \quad
        \bar W = \sum_i \bar e_i q_i^\top, \quad \bar x_j = \sum_i \alpha_{ij} \bar c_i

    References
    ----------
    .. [1] Luong, Pham, Manning, "Effective Approaches to Attention-based Neural Machine Translation", EMNLP 2015: the
       location-based function. arXiv:1508.04025.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.location_attention(np.array([[1.0]]), np.array([[0.0], [4.0]]), np.log([[1.0], [3.0]]))  # weights 1 to 3
    array([[3.]])
    """
    allowed = visible(query, value, mask)
    scores, score_pullback = linear.vjp(zero_unless(np.asarray(allowed.any(axis=-1)), query), w_score)
    attended, average_pullback = average(scores, value, allowed, masked_rows)

    def pullback(d_output: Array) -> Grads:
        d_average = average_pullback(d_output, np.zeros_like(attended.weights))
        d_score = score_pullback(d_average["scores"])
        return {"query": d_score["x"], "value": d_average["value"], "w_score": d_score["weight"]}

    return attended.output, pullback
