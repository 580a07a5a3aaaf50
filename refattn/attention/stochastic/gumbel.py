"""Draws from a softmax that have a gradient: Gumbel noise is added to the scores, and the softmax made as steep as wanted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn._core import Array, Booleans, Grads, Pullback, Random, Sample, like, mechanism
from refattn.attention.dot_product.scaled_dot_product import scaled_dot_product_attention
from refattn.attention.stochastic.straight_through import one_of
from refattn.primitives.softmax import softmax


def gumbel(random: Random, shape: tuple[int, ...]) -> Array:
    """Draws from the standard Gumbel distribution, without its tails, and rounded as all draws are."""
    return np.round(-np.log(-np.log(random.uniform(0.01, 0.99, shape))) * 2**20) / 2**20


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {"scores": random.normal((2, 3, 5)), "noise": gumbel(random, (2, 3, 5))}
    yield Sample("plain", inputs)
    yield Sample("steep", {**inputs, "temperature": 0.25})
    yield Sample("flat, one row", {**{n: x[0, 0] for n, x in inputs.items()}, "temperature": 4.0})
    yield Sample("another draw", {**inputs, "noise": gumbel(random, (2, 3, 5)), "temperature": 0.5})


def _benchmark(random: Random) -> dict[str, Any]:
    return {"scores": random.normal((64, 10, 256)), "noise": gumbel(random, (64, 10, 256)), "temperature": 0.5}


@mechanism(tags={"softmax", "stochastic"}, samples=_samples, benchmark=_benchmark)
def gumbel_softmax(scores: Array, noise: Array, *, temperature: float = 1.0) -> tuple[Array, Pullback]:
    r"""A softened draw from the softmax of the scores.

    Parameters
    ----------
    scores : array, shape (..., classes)
        Logarithms of probabilities, up to a number for each row.
    noise : constant array, shape (..., classes)
        Draws from the standard Gumbel distribution: :math:`-\log(-\log u)` for u even between 0 and 1.
    temperature : positive float, optional
        Near 0, a row is nearly one-hot, at each class with the probability of the softmax; far from it, nearly even.

    Returns
    -------
    array, shape (..., classes)
        Weights that sum to 1.

    Notes
    -----
    .. math::

        y = \operatorname{softmax}\bigl((x + g) / \tau\bigr), \qquad
        \bar x_i = \frac{y_i}{\tau} \Bigl(\bar y_i - \sum_j y_j \bar y_j\Bigr)

    References
    ----------
    .. [1] Jang, Gu, Poole, "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017. arXiv:1611.01144.
    .. [2] Maddison, Mnih, Teh, "The Concrete Distribution: A Continuous Relaxation of Discrete Random Variables", ICLR 2017.
       arXiv:1611.00712.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.gumbel_softmax(np.log([1.0, 3.0]), np.zeros(2), temperature=0.5)
    array([0.1, 0.9])
    """
    y, pullback = softmax.vjp((scores + noise) / temperature)
    return y, lambda dy: {"scores": pullback(dy)["x"] / temperature}


@mechanism(tags={"softmax", "stochastic"}, samples=_samples, gradient_of=gumbel_softmax, like=gumbel_softmax, inert={"temperature"})
def straight_through_gumbel_softmax(scores: Array, noise: Array, *, temperature: float = 1.0) -> tuple[Array, Pullback]:
    r"""A draw from the softmax of the scores, one-hot; its pullback is that of `gumbel_softmax`.

    The temperature is that of the pullback: it does not change what is drawn.

    Returns
    -------
    array, shape (..., classes)
        1 at the class that was drawn (the first of several with the same sum), 0 elsewhere.

    Notes
    -----
    .. math::

        y_i = [i = \operatorname{argmax}_j (x_j + g_j)], \quad z = \operatorname{softmax}\bigl((x + g) / \tau\bigr), \qquad
        \bar x_i = \frac{z_i}{\tau} \Bigl(\bar y_i - \sum_j z_j \bar y_j\Bigr)

    References
    ----------
    .. [1] Jang, Gu, Poole, "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017: the straight-through Gumbel estimator.
       arXiv:1611.01144.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> y, pullback = refattn.straight_through_gumbel_softmax.vjp(np.log([1.0, 3.0]), np.zeros(2))
    >>> y, pullback(np.array([0.0, 1.0]))["scores"]
    (array([0., 1.]), array([-0.1875,  0.1875]))
    """
    _, pullback = gumbel_softmax.vjp(scores, noise, temperature=temperature)
    return np.where(one_of(scores + noise), np.ones_like(scores), 0), pullback


def _attention_samples(random: Random) -> Iterator[Sample]:
    inputs = {"query": random.normal((2, 2, 3, 4)), "key": random.normal((2, 2, 5, 4)), "value": random.normal((2, 2, 5, 2))}
    noise = {"noise": gumbel(random, (2, 2, 3, 5))}
    mask = random.booleans(0.5, (2, 1, 3, 5))
    mask[0, 0, 1] = False
    yield Sample("plain", {**inputs, **noise})
    yield Sample("steep", {**inputs, **noise, "temperature": 0.25, "scale": 2.0})
    yield Sample("masked", {**inputs, **noise, "mask": mask})
    yield Sample("scale per head", {**inputs, **noise, "temperature": 0.5, "scale": random.uniform(0.25, 1.0, (2, 1, 1))})
    yield Sample("learned scale", {**inputs, **noise, "temperature": 0.5, "scale": np.asarray(0.75)})


def _attention_benchmark(random: Random) -> dict[str, Any]:
    return {**{n: random.normal((1, 8, 256, 64)) for n in ("query", "key", "value")}, "noise": gumbel(random, (1, 8, 256, 256))}


@mechanism(tags={"softmax", "quadratic", "stochastic"}, samples=_attention_samples, benchmark=_attention_benchmark)
def gumbel_softmax_attention(
    query: Array,
    key: Array,
    value: Array,
    noise: Array,
    *,
    temperature: float = 1.0,
    mask: Booleans | None = None,
    scale: Array | float | None = None,
) -> tuple[Array, Pullback]:
    r"""Average the values, weighted by softened draws from the attention weights.

    Parameters
    ----------
    query : array, shape (..., heads, query_len, head_dim)
        What is asked.
    key : array, shape (..., heads, key_len, head_dim)
        What each position offers.
    value : array, shape (..., heads, key_len, value_dim)
        What each position gives.
    noise : constant array, shape (..., heads, query_len, key_len)
        Draws from the standard Gumbel distribution.
    temperature : positive float, optional
        Near 0, nearly one value is taken.
    mask : bool array or None, broadcastable to (..., heads, query_len, key_len), optional
        True where the query may attend. A query that may attend nowhere gives 0.
    scale : float or array or None, broadcastable to (..., heads, query_len, key_len), optional
        Of the scores, before the noise is added. Default ``1 / sqrt(head_dim)``. An array has a gradient.

    Returns
    -------
    array, shape (..., heads, query_len, value_dim)
        The attended values.

    Notes
    -----
    Sizes: ``head_dim >= 1``.

    .. math::

        P = \operatorname{softmax}\bigl((s\, Q K^\top + G) / \tau\bigr), \quad O = P V, \qquad
        \bar P = \bar O V^\top, \quad \bar S = P \odot (\bar P - \operatorname{rowsum}(P \odot \bar P)) / \tau, \quad
        \bar Q = s\, \bar S K, \quad \bar K = s\, \bar S^\top Q, \quad \bar V = P^\top \bar O

    References
    ----------
    .. [1] Jang, Gu, Poole, "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017. arXiv:1611.01144.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> query, key, value = np.ones((1, 1, 1)), np.log([[[1.0], [3.0]]]), np.array([[[0.0], [1.0]]])
    >>> refattn.gumbel_softmax_attention(query, key, value, np.zeros((1, 1, 2)), temperature=0.5)
    array([[[0.9]]])
    """
    own = like(query, 1 / np.sqrt(like(query, query.shape[-1])) if scale is None else scale)
    factor = like(query, own / temperature)  # an array, so that its gradient comes
    output, soft_pullback = scaled_dot_product_attention.vjp(query, key, value, noise / temperature, mask=mask, scale=factor)

    def pullback(dy: Array) -> Grads:
        d = soft_pullback(dy)
        return {**d, "scale": d["scale"] / temperature}

    return output, pullback
