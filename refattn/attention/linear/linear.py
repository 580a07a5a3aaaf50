"""Linear attention: a kernel in place of the softmax, so that keys and values fit into one matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism
from refattn.attention.linear import draws, rule
from refattn.primitives.activation import elu_plus_one, relu

FeatureMap: TypeAlias = Literal["elu_plus_one", "relu"]

FEATURE_MAPS: Mapping[str | None, Callable[[Array], tuple[Array, Pullback]]] = {
    None: lambda x: (x, lambda dy: {"x": dy}),
    "elu_plus_one": elu_plus_one.vjp,
    "relu": relu.vjp,
}


class LinearAttended(NamedTuple):
    """Output, and the two sums over the keys that the next part of a sequence continues."""

    output: Array
    state: Array
    normalizer: Array


def _inputs(random: Random) -> dict[str, Any]:
    return {"query": random.normal((2, 4, 5, 3)), "key": random.normal((2, 2, 5, 3)), "value": random.normal((2, 2, 5, 4))}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    memory = {"state": random.normal((2, 2, 3, 4)), "normalizer": random.uniform(0.5, 2.0, (2, 2, 3))}
    raw = {"feature_map": None, "normalize": False}
    signs = np.asarray([1.0, -1.0, 1.0, 1.0])[:, None, None]
    blind = {"query": signs * np.abs(inputs["query"]), "key": np.abs(inputs["key"])}
    yield Sample("grouped", inputs)
    yield Sample("causal", {**inputs, "causal": True})
    yield Sample("causal with state", {**inputs, **memory, "causal": True, "eps": 0.25})
    yield Sample("state", {**inputs, **memory, "scale": 0.5, "eps": 1.0})
    yield Sample("fewer queries", {**inputs, "query": random.normal((2, 2, 3, 3)), "feature_map": "relu"})
    yield Sample("rectified, causal", {**inputs, "causal": True, "feature_map": "relu"})
    yield Sample("a head that matches nothing", {**inputs, **blind, "feature_map": "relu"})
    yield Sample("raw", {**inputs, **raw, "state": memory["state"], "causal": True})
    yield Sample("raw, unscaled", {**inputs, **raw, "scale": 1.0})
    yield Sample("one step", {**{n: x[..., :1, :] for n, x in inputs.items()}, **memory, "causal": True})
    yield Sample("nothing yet", {**{n: x[..., :0, :] for n, x in inputs.items()}, **memory, "causal": True})
    yield Sample("no keys", {**inputs, "key": random.normal((2, 2, 0, 3)), "value": random.normal((2, 2, 0, 4))})


def _chunked_samples(random: Random) -> Iterator[Sample]:
    return draws.in_chunks(_samples(random))


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield from draws.bad_calls(random, inputs)
    fewer = {**inputs, "query": random.normal((2, 4, 3, 3)), "causal": True}
    yield BadCall("causal, of other lengths", fewer, ValueError, "causal is True, but query_len")


def _benchmark(random: Random) -> dict[str, Any]:
    return {**{name: random.normal((1, 8, 256, 64)) for name in ("query", "key", "value")}, "causal": True}


def at_once(query: Array, key: Array, value: Array, state: Array, *, scale: float) -> tuple[rule.Recalled, Pullback]:
    """Every query reads what all keys have written."""
    queries = rule.grouped(scale * query, key)
    end = state + key.swapaxes(-1, -2) @ value
    output = queries @ end[..., None, :, :]

    def pullback(d_output: Array, d_state: Array) -> Grads:
        d_outputs = rule.grouped(d_output, key)
        d_end = d_state + (queries.swapaxes(-1, -2) @ d_outputs).sum(axis=-3)
        return {
            "query": scale * rule.flat(d_outputs @ end[..., None, :, :].swapaxes(-1, -2)),
            "key": value @ d_end.swapaxes(-1, -2),
            "value": key @ d_end,
            "state": d_end,
        }

    return rule.Recalled(rule.flat(output), end), pullback


def attend(
    form: Callable[..., tuple[rule.Recalled, Pullback]],
    query: Array,
    key: Array,
    value: Array,
    state: Array | None,
    normalizer: Array | None,
    *,
    causal: bool,
    feature_map: FeatureMap | None,
    normalize: bool,
    eps: float,
    scale: float | None,
) -> tuple[LinearAttended, Pullback]:
    """The normaliser is what the query reads of values that are all 1: one more column of values and of the state."""
    if causal and query.shape[-2] != key.shape[-2]:
        raise ValueError(f"causal is True, but query_len = {query.shape[-2]} and key_len = {key.shape[-2]}: earlier keys come as state")
    features, query_pullback = FEATURE_MAPS[feature_map](query)
    key_features, key_pullback = FEATURE_MAPS[feature_map](key)
    ones = np.ones_like(value, shape=(*value.shape[:-1], 1))
    _, before, factor = rule.filled(query, key, value, None, state, scale)
    before_sum = np.zeros_like(before, shape=before.shape[:-1]) if normalizer is None else normalizer
    memory = np.concatenate([before, before_sum[..., None]], axis=-1)
    run = partial(form, log_decay=None, beta=None) if causal else at_once
    values = np.concatenate([value, ones], axis=-1)
    (read, end), pullback_form = run(features, key_features, values, state=memory, scale=factor)

    total = read[..., -1:] + eps
    nothing = total == 0
    divisor = np.where(nothing, 1, total)
    output = np.where(nothing, 0, read[..., :-1] / divisor) if normalize else read[..., :-1]

    def pullback(d_output: Array, d_state: Array, d_normalizer: Array) -> Grads:
        d_sum = np.where(nothing, 0, d_output / divisor) if normalize else d_output
        d_total = -(d_sum * output).sum(axis=-1, keepdims=True) if normalize else np.zeros_like(total)
        d = pullback_form(np.concatenate([d_sum, d_total], axis=-1), np.concatenate([d_state, d_normalizer[..., None]], axis=-1))
        return {
            "query": query_pullback(d["query"])["x"],
            "key": key_pullback(d["key"])["x"],
            "value": d["value"][..., :-1],
            "state": d["state"][..., :-1],
            "normalizer": d["state"][..., -1],
        }

    return LinearAttended(output, end[..., :-1], end[..., -1]), pullback


@mechanism(tags={"linear", "recurrent"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def linear_attention(
    query: Array,
    key: Array,
    value: Array,
    state: Array | None = None,
    normalizer: Array | None = None,
    *,
    causal: bool = False,
    feature_map: FeatureMap | None = "elu_plus_one",
    normalize: bool = True,
    eps: float = 0.0,
    scale: float | None = None,
) -> tuple[LinearAttended, Pullback]:
    r"""Average the values, weighted by inner products of positive features of queries and keys.

    A sequence may come in parts: the state and normalizer that one call returns are those that the next one takes.

    Parameters
    ----------
    query : array, shape (..., kv_heads * group, query_len, head_dim)
        What is asked; query head h reads key and value head ``h // group``.
    key : array, shape (..., kv_heads, key_len, head_dim)
        What each position offers.
    value : array, shape (..., kv_heads, key_len, value_dim)
        What each position gives.
    state : array or None, shape (..., kv_heads, head_dim, value_dim), optional
        Sum of the products of key features and values before the first position; None is zeros.
    normalizer : array or None, shape (..., kv_heads, head_dim), optional
        Sum of the key features before the first position; None is zeros.
    causal : bool, optional
        No query reads a later key; needs as many queries as keys. Otherwise every query reads all keys, and the state.
    feature_map : {"elu_plus_one", "relu"} or None, optional
        What makes features of queries and keys; with None they are features already.
    normalize : bool, optional
        Whether the weights of a query are divided by their sum. Without it this is a sum, not an average.
    eps : non-negative float, optional
        Added to the sum of the weights, as some implementations do (1e-6 or 1e-10); the paper adds nothing.
    scale : float or None, optional
        Factor of the query's features, default ``1 / sqrt(head_dim)``. It cancels where weights are normalised and `eps` is 0;
        the paper has none.

    Returns
    -------
    output : array, shape (..., kv_heads * group, query_len, value_dim)
        The attended values; 0 where the sum of the weights is 0.
    state : array, shape (..., kv_heads, head_dim, value_dim)
        Sum of the products of key features and values, with all keys.
    normalizer : array, shape (..., kv_heads, head_dim)
        Sum of the key features, with all keys.

    Notes
    -----
    Sizes: ``head_dim >= 1``.

    With :math:`\phi` the feature map, s the scale, and t(i) the last key that query i reads:

    .. math::

        S_t = S_0 + \sum_{j \le t} \phi(k_j)\, v_j^\top, \quad z_t = z_0 + \sum_{j \le t} \phi(k_j), \quad
        o_i = \frac{s\, S_{t(i)}^\top \phi(q_i)}{s\, z_{t(i)}^\top \phi(q_i) + \epsilon} = \frac{a_i}{b_i}

    With the gradients of what key j has written, from the end and from all queries that read it:

    .. math::

        \bar a_i = \bar o_i / b_i, \quad \bar b_i = -\bar a_i \cdot o_i, \quad
        \bar S_j = \bar S + s \sum_{i: t(i) \ge j} \phi(q_i)\, \bar a_i^\top, \quad
        \bar z_j = \bar z + s \sum_{i: t(i) \ge j} \phi(q_i)\, \bar b_i

    .. math::

        \bar \phi(q_i) = s\, (S_{t(i)} \bar a_i + z_{t(i)} \bar b_i), \quad
        \bar \phi(k_j) = \bar S_j v_j + \bar z_j, \quad \bar v_j = \bar S_j^\top \phi(k_j)

    References
    ----------
    .. [1] Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention", ICML 2020.
       arXiv:2006.16236.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> query, key, value = np.ones((1, 3, 2)), np.zeros((1, 3, 2)), np.array([[[1.0], [3.0], [8.0]]])
    >>> refattn.linear_attention(query, key, value).output.ravel()
    array([4., 4., 4.])
    >>> output, state, normalizer = refattn.linear_attention(query, key, value, causal=True)
    >>> output.ravel(), state.ravel(), normalizer.ravel()
    (array([1., 2., 4.]), array([12., 12.]), array([3., 3.]))
    """
    options = {"causal": causal, "feature_map": feature_map, "normalize": normalize, "eps": eps, "scale": scale}
    return attend(rule.recurrent, query, key, value, state, normalizer, **options)


@mechanism(
    tags={"linear", "recurrent", "chunked"}, samples=_chunked_samples, bad_calls=_bad_calls, benchmark=_benchmark, inert={"chunk_size"}
)
def chunked_linear_attention(
    query: Array,
    key: Array,
    value: Array,
    state: Array | None = None,
    normalizer: Array | None = None,
    *,
    causal: bool = False,
    feature_map: FeatureMap | None = "elu_plus_one",
    normalize: bool = True,
    eps: float = 0.0,
    scale: float | None = None,
    chunk_size: int = 64,
) -> tuple[LinearAttended, Pullback]:
    r"""`linear_attention`, chunk by chunk where it is causal: a masked product inside a chunk, the state between chunks.

    Parameters
    ----------
    query : array, shape (..., kv_heads * group, query_len, head_dim)
        What is asked; query head h reads key and value head ``h // group``.
    key : array, shape (..., kv_heads, key_len, head_dim)
        What each position offers.
    value : array, shape (..., kv_heads, key_len, value_dim)
        What each position gives.
    state : array or None, shape (..., kv_heads, head_dim, value_dim), optional
        Sum of the products of key features and values before the first position; None is zeros.
    normalizer : array or None, shape (..., kv_heads, head_dim), optional
        Sum of the key features before the first position; None is zeros.
    causal : bool, optional
        No query reads a later key; needs as many queries as keys. Otherwise every query reads all keys, and the state.
    feature_map : {"elu_plus_one", "relu"} or None, optional
        What makes features of queries and keys; with None they are features already.
    normalize : bool, optional
        Whether the weights of a query are divided by their sum.
    eps : non-negative float, optional
        Added to the sum of the weights.
    scale : float or None, optional
        Factor of the query's features, default ``1 / sqrt(head_dim)``.
    chunk_size : positive int, optional
        Positions of a chunk; the last one may be shorter. The result does not depend on it.

    Returns
    -------
    output : array, shape (..., kv_heads * group, query_len, value_dim)
        The attended values; 0 where the sum of the weights is 0.
    state : array, shape (..., kv_heads, head_dim, value_dim)
        Sum of the products of key features and values, with all keys.
    normalizer : array, shape (..., kv_heads, head_dim)
        Sum of the key features, with all keys.

    Notes
    -----
    Sizes: ``head_dim >= 1``.

    For the chunk C of position i, S the state before it, M the causal mask, and features in the rows of Q and K:

    .. math::

        A_C = s\, \bigl(Q_C S + (Q_C K_C^\top \odot M) V_C\bigr), \quad S' = S + K_C^\top V_C

    .. math::

        \bar V_C = s\, (Q_C K_C^\top \odot M)^\top \bar A_C + K_C \bar S', \quad
        \bar S = \bar S' + s\, Q_C^\top \bar A_C

    References
    ----------
    .. [1] Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention", ICML 2020.
       arXiv:2006.16236.
    .. [2] Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", ICML 2024: the chunkwise form.
       arXiv:2312.06635.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> query, key, value = np.ones((1, 3, 2)), np.zeros((1, 3, 2)), np.array([[[1.0], [3.0], [8.0]]])
    >>> refattn.chunked_linear_attention(query, key, value, causal=True, chunk_size=2).output.ravel()
    array([1., 2., 4.])
    """
    options = {"causal": causal, "feature_map": feature_map, "normalize": normalize, "eps": eps, "scale": scale}
    return attend(partial(rule.chunked, chunk_size=chunk_size), query, key, value, state, normalizer, **options)
