"""The value of the best key forwards; backwards, scores behave as in soft attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn._core import Array, Booleans, Grads, Pullback, Random, Sample, mechanism
from refattn.attention.dot_product.scaled_dot_product import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_with_weights,
)
from refattn.primitives.attention_stages import masked_matmul


def one_of(weights: Array) -> Booleans:
    """True at the largest of each row, at the first of several."""
    if not weights.shape[-1]:
        return np.zeros(weights.shape, dtype=bool)
    return np.arange(weights.shape[-1]) == weights.argmax(axis=-1)[..., None]


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {"query": random.normal((2, 2, 3, 4)), "key": random.normal((2, 2, 5, 4)), "value": random.normal((2, 2, 5, 2))}
    mask = random.booleans(0.5, (2, 1, 3, 5))
    mask[0, 0, 1] = False
    yield Sample("plain", inputs)
    yield Sample("masked", {**inputs, "mask": mask})
    yield Sample("the other way", {**inputs, "scale": -0.5})
    yield Sample("learned scale", {**inputs, "scale": np.asarray(0.75)})
    yield Sample("temperature per head", {**inputs, "scale": random.uniform(0.25, 1.0, (2, 1, 1))})


def _benchmark(random: Random) -> dict[str, Any]:
    return {name: random.normal((1, 8, 256, 64)) for name in ("query", "key", "value")}


SOFT = dict.fromkeys(("query", "key", "scale"), scaled_dot_product_attention)


@mechanism(tags={"softmax", "quadratic"}, samples=_samples, benchmark=_benchmark, gradient_of=SOFT)
def straight_through_attention(
    query: Array, key: Array, value: Array, *, mask: Booleans | None = None, scale: Array | float | None = None
) -> tuple[Array, Pullback]:
    r"""Take the value of the best key; query, key and scale have the gradients of soft attention.

    The gradient of the values is that of what was taken: the weights are a one-hot row, and only the step from scores to
    weights is differentiated as a softmax.

    Parameters
    ----------
    query : array, shape (..., heads, query_len, head_dim)
        What is asked.
    key : array, shape (..., heads, key_len, head_dim)
        What each position offers.
    value : array, shape (..., heads, key_len, value_dim)
        What each position gives.
    mask : bool array or None, broadcastable to (..., heads, query_len, key_len), optional
        True where the query may attend. A query that may attend nowhere gives 0.
    scale : float or array or None, broadcastable to (..., heads, query_len, key_len), optional
        Default ``1 / sqrt(head_dim)``; its inverse is the temperature of the softmax. An array has a gradient.

    Returns
    -------
    array, shape (..., heads, query_len, value_dim)
        The value of the best key, of the first of several.

    Notes
    -----
    Sizes: ``head_dim >= 1``.

    .. math::

        m_i = \operatorname{argmax}_j s\, q_i^\top k_j, \quad y_i = v_{m_i}, \qquad
        \bar\alpha_{ij} = v_j^\top \bar y_i, \quad
        \bar e_{ij} = \alpha_{ij} \Bigl(\bar\alpha_{ij} - \sum_k \alpha_{ik} \bar\alpha_{ik}\Bigr), \quad
        \bar v_j = \sum_{i : m_i = j} \bar y_i

    References
    ----------
    .. [1] Bengio, Léonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
       Computation", 2013: the straight-through estimator. arXiv:1308.3432.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> query, key, value = np.ones((1, 1, 1)), np.log([[[1.0], [3.0]]]), np.array([[[2.0], [4.0]]])
    >>> output, pullback = refattn.straight_through_attention.vjp(query, key, value)
    >>> output, pullback(np.ones((1, 1, 1)))["key"].ravel()
    (array([[[4.]]]), array([-0.375,  0.375]))
    """
    soft, soft_pullback = scaled_dot_product_attention_with_weights.vjp(query, key, value, mask=mask, scale=scale)
    taken = one_of(soft.weights) & (True if mask is None else mask)
    one_hot = np.where(taken, np.ones_like(soft.weights), 0)

    def pullback(dy: Array) -> Grads:
        return {**soft_pullback(dy), "value": masked_matmul(one_hot.swapaxes(-1, -2), dy, taken.swapaxes(-1, -2))}

    return masked_matmul(one_hot, value, taken), pullback
