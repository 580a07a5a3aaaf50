"""Hard attention: one key for each query, drawn by the caller."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, BadCall, Booleans, Grads, Integers, Pullback, Random, Sample, like, mechanism
from refattn.primitives.attention_stages import masked_matmul, masked_softmax, scaled


class Drawn(NamedTuple):
    """What a draw gave, how probable it was, and how uncertain it was."""

    output: Array
    log_probability: Array
    entropy: Array


def _inputs(random: Random) -> dict[str, Any]:
    return {
        "query": random.normal((2, 2, 3, 4)),
        "key": random.normal((2, 2, 5, 4)),
        "value": random.normal((2, 2, 5, 2)),
        "chosen": random.integers(0, 5, (2, 2, 3)),
    }


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    mask = random.booleans(0.5, (2, 1, 3, 5)) | (np.arange(5) == inputs["chosen"][..., None])
    mask[1, 0, 2] = False
    chosen = np.where(mask.any(axis=-1), inputs["chosen"], -1)
    yield Sample("plain", inputs)
    yield Sample("scale", {**inputs, "scale": 2.0})
    yield Sample("learned scale", {**inputs, "scale": np.asarray(0.75)})
    yield Sample("temperature per head", {**inputs, "scale": random.uniform(0.25, 1.0, (2, 1, 1))})
    yield Sample("masked", {**inputs, "chosen": chosen, "mask": mask})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    hidden = {"chosen": np.full_like(inputs["chosen"], 4), "mask": np.arange(5) < 4}
    yield BadCall("hidden key", {**inputs, **hidden}, ValueError, "chosen is 4 for a query that may not attend there")
    yield BadCall(
        "nothing", {**inputs, "chosen": np.full_like(inputs["chosen"], -1)}, ValueError, "chosen is -1 for a query that may attend"
    )
    yield BadCall("no such key", {**inputs, "chosen": np.full_like(inputs["chosen"], 5)}, ValueError, "chosen runs from 5 to 5")


def _benchmark(random: Random) -> dict[str, Any]:
    return {**{n: random.normal((1, 8, 256, 64)) for n in ("query", "key", "value")}, "chosen": random.integers(0, 256, (1, 8, 256))}


def _taken(chosen: Integers, allowed: Booleans) -> Booleans:
    """True at the pairs that were drawn; ValueError where one has probability 0."""
    pairs = chosen[..., None] == np.arange(allowed.shape[-1])
    hidden = (pairs & ~allowed).any(axis=-1)
    if hidden.any():
        raise ValueError(f"chosen is {chosen[hidden][0]} for a query that may not attend there")
    if ((chosen == -1) & allowed.any(axis=-1)).any():
        raise ValueError("chosen is -1 for a query that may attend")
    return pairs


@mechanism(tags={"softmax", "stochastic"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def hard_attention(
    query: Array, key: Array, value: Array, chosen: Integers, *, mask: Booleans | None = None, scale: Array | float | None = None
) -> tuple[Drawn, Pullback]:
    r"""Take the value at one key, which the caller drew from the attention weights, and say how probable that was.

    The cotangents make the estimator. Where the loss L depends on the output, ``pullback(d_output)`` is the derivative with the
    draw held fixed; ``pullback(d_output, L - baseline)`` is REINFORCE, whose mean is the derivative of the mean of L; a third
    cotangent, of the entropy, keeps the draws from settling early.

    Parameters
    ----------
    query : array, shape (..., heads, query_len, head_dim)
        What is asked.
    key : array, shape (..., heads, key_len, head_dim)
        What each position offers.
    value : array, shape (..., heads, key_len, value_dim)
        What each position gives.
    chosen : int array, shape (..., heads, query_len), indexing key_len or -1
        The key that each query takes; -1 for a query that may attend nowhere, and for no other.
    mask : bool array or None, broadcastable to (..., heads, query_len, key_len), optional
        True where the query may attend.
    scale : float or array or None, broadcastable to (..., heads, query_len, key_len), optional
        Default ``1 / sqrt(head_dim)``. An array is a learned temperature and has a gradient.

    Returns
    -------
    output : array, shape (..., heads, query_len, value_dim)
        The value that was taken; 0 where none was.
    log_probability : array, shape (..., heads, query_len)
        Natural logarithm of the weight of the key that was taken; 0 where none was.
    entropy : array, shape (..., heads, query_len)
        Of the weights of each query, in nats.

    Notes
    -----
    Sizes: ``head_dim >= 1``.

    .. math::

        \alpha_i = \operatorname{softmax}(s\, K q_i), \quad y_i = v_{c_i}, \quad \ell_i = \log \alpha_{i c_i}, \quad
        H_i = -\sum_j \alpha_{ij} \log \alpha_{ij}, \qquad
        \bar e_{ij} = ([j = c_i] - \alpha_{ij})\, \bar\ell_i - \alpha_{ij} (\log \alpha_{ij} + H_i)\, \bar H_i, \quad
        \bar v_j = \sum_{i : c_i = j} \bar y_i

    References
    ----------
    .. [1] Xu et al., "Show, Attend and Tell: Neural Image Caption Generation with Visual Attention", ICML 2015: stochastic "hard"
       attention. arXiv:1502.03044.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> query, key, value = np.zeros((1, 1, 2)), np.zeros((1, 4, 2)), np.array([[[1.0], [2.0], [3.0], [4.0]]])
    >>> drawn = refattn.hard_attention(query, key, value, np.array([[2]]))
    >>> drawn.output, drawn.log_probability / np.log(2), drawn.entropy / np.log(2)
    (array([[[3.]]]), array([[-2.]]), array([[2.]]))
    """
    allowed = np.broadcast_to(True if mask is None else mask, (*query.shape[:-1], key.shape[-2]))
    taken = _taken(chosen, allowed)
    products = np.where(allowed, query @ key.swapaxes(-1, -2), 0)
    scores, scale_pullback = scaled.vjp(products, 1 / np.sqrt(like(query, query.shape[-1])) if scale is None else scale)
    (weights, lse), softmax_pullback = masked_softmax.vjp(scores, mask=allowed)
    log_weights = np.where(allowed, scores - lse[..., None], 0)
    one_hot = np.where(taken, np.ones_like(scores), 0)
    entropy = -np.where(allowed, weights * log_weights, 0).sum(axis=-1)

    def pullback(d_output: Array, d_log_probability: Array, d_entropy: Array) -> Grads:
        d_log = np.where(taken, d_log_probability[..., None], 0) - np.where(allowed, weights * d_entropy[..., None], 0)
        d_softmax = softmax_pullback(-log_weights * d_entropy[..., None], -d_log.sum(axis=-1))
        d_scaled = scale_pullback(d_softmax["scores"] + d_log)
        return {
            "query": masked_matmul(d_scaled["scores"], key, allowed),
            "key": masked_matmul(d_scaled["scores"].swapaxes(-1, -2), query, allowed.swapaxes(-1, -2)),
            "value": masked_matmul(one_hot.swapaxes(-1, -2), d_output, taken.swapaxes(-1, -2)),
            "scale": d_scaled.get("scale"),
        }

    return Drawn(masked_matmul(one_hot, value, taken), np.where(taken, log_weights, 0).sum(axis=-1), entropy), pullback
