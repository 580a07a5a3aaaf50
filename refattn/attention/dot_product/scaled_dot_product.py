"""Scaled dot-product attention, with every option that kernels offer, in the order in which they apply."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from refattn import masks
from refattn._core import Array, BadCall, Booleans, Grads, Integers, Pullback, Random, Sample, like, mechanism, unbroadcast
from refattn.primitives.attention_stages import MaskedRows, dropout, masked_matmul, masked_softmax, scaled
from refattn.primitives.attention_stages import softcap as softcapped


class Attended(NamedTuple):
    """Everything that a softmax attention computes on its way."""

    output: Array
    lse: Array
    weights: Array


def _inputs(random: Random) -> dict[str, Any]:
    return {"query": random.normal((2, 4, 3, 5)), "key": random.normal((2, 2, 6, 5)), "value": random.normal((2, 2, 6, 3))}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    mask = random.booleans(0.6, (2, 1, 3, 6))
    mask[0, 0, 1] = False
    bias = random.normal((4, 3, 6))
    bias[1, 2] = bias[:, 0, 3] = -np.inf
    yield Sample("grouped", inputs)
    yield Sample("bias per head", {**inputs, "bias": random.normal((4, 1, 6))})
    yield Sample("bias per query", {**inputs, "bias": random.normal((2, 1, 3, 1)), "sinks": random.normal(4), "softcap": 0.75})
    yield Sample("bias that masks", {**inputs, "bias": bias})
    yield Sample("masked row", {**inputs, "mask": mask, "scale": 0.25})
    yield Sample("masked row uniform", {**inputs, "mask": mask, "masked_rows": "uniform"})
    yield Sample("sinks", {**inputs, "mask": mask, "sinks": random.normal(4)})
    yield Sample("temperature per head", {**inputs, "scale": random.uniform(0.25, 1.0, (4, 1, 1)), "softcap": 2.0})
    yield Sample("causal", {**inputs, "causal": True, "align": "lower_right"})
    yield Sample("causal window", {**inputs, "causal": True, "align": "upper_left", "window": (1, None)})
    yield Sample("window", {**inputs, "align": "lower_right", "window": (1, 0)})
    yield Sample("dropout", {**inputs, "keep": random.booleans(0.7, (2, 4, 3, 6)), "dropout_rate": 0.25})
    yield Sample("no keys", {**inputs, "key": random.normal((2, 2, 0, 5)), "value": random.normal((2, 2, 0, 3))})
    yield Sample("no queries", {**inputs, "query": random.normal((2, 4, 0, 5))})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield BadCall("causal without alignment", {**inputs, "causal": True}, ValueError, "align is None, but query_len = 3")
    yield BadCall("window without alignment", {**inputs, "window": (1, 1)}, ValueError, "align is None, but query_len = 3")
    yield BadCall("negative window", {**inputs, "align": "upper_left", "window": (-1, 1)}, ValueError, "window is")
    yield BadCall("float mask", {**inputs, "mask": random.normal((3, 6))}, TypeError, "mask is float64, but must be bool")
    yield BadCall("rate of 1", {**inputs, "dropout_rate": 1.0}, ValueError, "dropout_rate is 1.0")
    yield BadCall("heads that do not divide", {**inputs, "query": random.normal((2, 3, 3, 5))}, ValueError, r"kv_heads \* group is 3")


def within_reach(
    query_len: int,
    key_len: int,
    *,
    causal: bool,
    window: tuple[int | None, int | None] | None,
    align: masks.Align | None,
    rows: Integers | None = None,
    columns: Integers | None = None,
) -> Booleans:
    """Where the positions of a query and a key let it attend; of some rows and columns only, where they are given."""
    allowed = np.asarray(True)
    if causal:
        allowed = allowed & masks.causal(query_len, key_len, align=align, rows=rows, columns=columns)
    if window is not None:
        left, right = window
        allowed = allowed & masks.sliding_window(query_len, key_len, left=left, right=right, align=align, rows=rows, columns=columns)
    return allowed


def allowed_pairs(
    shape: tuple[int, ...],
    bias: Array | None,
    *,
    mask: Booleans | None,
    causal: bool,
    align: masks.Align | None,
    window: tuple[int | None, int | None] | None,
) -> Booleans:
    """Every reason for which a query may not attend to a key, in one mask of a shape (..., heads, query_len, key_len)."""
    near = within_reach(shape[-2], shape[-1], causal=causal, window=window, align=align)
    allowed = np.broadcast_to(True if mask is None else mask, shape) & near
    return allowed if bias is None else allowed & ~np.isneginf(bias)


def attend(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    sinks: Array | None = None,
    *,
    mask: Booleans | None = None,
    causal: bool = False,
    align: masks.Align | None = None,
    window: tuple[int | None, int | None] | None = None,
    scale: Array | float | None = None,
    softcap: float | None = None,
    keep: Booleans | None = None,
    dropout_rate: float = 0.0,
    masked_rows: MaskedRows = "zero",
) -> tuple[Attended, Pullback]:
    """One line a stage; each stage is the identity where its option is None."""
    *lead, heads, query_len, head_dim = query.shape
    kv_heads, key_len = key.shape[-3:-1]
    group = heads // max(kv_heads, 1)

    pairs = (*lead, heads, query_len, key_len)
    allowed = allowed_pairs(pairs, bias, mask=mask, causal=causal, align=align, window=window)

    keys, values = (x if group == 1 else x.repeat(group, axis=-3) for x in (key, value))
    products = np.where(allowed, query @ keys.swapaxes(-1, -2), 0)
    scores, scale_pullback = scaled.vjp(products, 1 / np.sqrt(like(query, head_dim)) if scale is None else scale)
    capped, softcap_pullback = softcapped.vjp(scores, cap=softcap)
    logits = capped if bias is None else np.where(allowed, capped + np.where(allowed, bias, 0), 0)
    (weights, lse), softmax_pullback = masked_softmax.vjp(logits, sinks, mask=allowed, masked_rows=masked_rows)
    kept, dropout_pullback = dropout.vjp(weights, keep=keep, rate=dropout_rate)
    read = allowed | np.isneginf(lse)[..., None] if masked_rows == "uniform" else allowed
    output = masked_matmul(kept, values, read)

    def pullback(d_output: Array, d_lse: Array, d_weights: Array) -> Grads:
        d_values = masked_matmul(np.where(read, kept, 0).swapaxes(-1, -2), d_output, read.swapaxes(-1, -2))
        d_kept = np.where(allowed, d_output @ values.swapaxes(-1, -2), 0)
        d_softmax = softmax_pullback(d_weights + dropout_pullback(d_kept)["x"], d_lse)
        d_scaled = scale_pullback(softcap_pullback(d_softmax["scores"])["scores"])
        d_keys = masked_matmul(d_scaled["scores"].swapaxes(-1, -2), query, allowed.swapaxes(-1, -2))
        return {
            "query": masked_matmul(d_scaled["scores"], keys, allowed),
            "key": d_keys.reshape(*lead, kv_heads, group, *key.shape[-2:]).sum(axis=-3),
            "value": d_values.reshape(*lead, kv_heads, group, *value.shape[-2:]).sum(axis=-3),
            "bias": None if bias is None else unbroadcast(d_softmax["scores"], bias.shape),
            "sinks": d_softmax.get("sinks"),
            "scale": d_scaled.get("scale"),
        }

    return Attended(output, lse, weights), pullback


def _benchmark(random: Random) -> dict[str, Any]:
    return {name: random.normal((1, 8, 256, 64)) for name in ("query", "key", "value")}


@mechanism(tags={"softmax", "quadratic"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark, like=attend)
def scaled_dot_product_attention(*args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
    r"""Average the values, weighted by how well each key matches the query.

    The options apply in the order scale, softcap, bias, mask, softmax with sink, dropout, value. What stands in a masked
    key or value, NaN included, reaches no output and no gradient.

    Parameters
    ----------
    query : array, shape (..., kv_heads * group, query_len, head_dim)
        What is asked; query head h reads key and value head ``h // group``.
    key : array, shape (..., kv_heads, key_len, head_dim)
        What each position offers.
    value : array, shape (..., kv_heads, key_len, value_dim)
        What each position gives.
    bias : array or None, broadcastable to (..., kv_heads * group, query_len, key_len), optional
        Added to the scores; :math:`-\infty` masks as `mask` does.
    sinks : array or None, shape (kv_heads * group), optional
        A score for each head that takes weight and gives nothing.
    mask : bool array or None, broadcastable to (..., kv_heads * group, query_len, key_len), optional
        True where the query may attend.
    causal : bool, optional
        No query attends to a later key.
    align : {"upper_left", "lower_right"} or None, optional
        Whether the first query sits at the first key, or the last query at the last key. Needed by `causal` and `window`
        where ``query_len != key_len``.
    window : (non-negative int or None, non-negative int or None) or None, optional
        How many keys before and after its own position a query may attend to; None is no limit.
    scale : float or array or None, broadcastable to (..., kv_heads * group, query_len, key_len), optional
        Default ``1 / sqrt(head_dim)``. An array is a learned temperature and has a gradient.
    softcap : positive float or None, optional
        Bound of the scaled scores.
    keep : bool array or None, broadcastable to (..., kv_heads * group, query_len, key_len), optional
        False where dropout drops a weight; None drops none, and scales none, whatever the rate.
    dropout_rate : probability, optional
        The probability with which `keep` was drawn False.
    masked_rows : {"zero", "nan", "uniform"}, optional
        Weights of a query that may attend nowhere and has no sink.

    Returns
    -------
    array, shape (..., kv_heads * group, query_len, value_dim)
        The attended values.

    Notes
    -----
    Sizes: ``head_dim >= 1``.

    .. math::

        S = s\, Q K^\top, \quad P = \operatorname{softmax}(c \tanh(S / c) + B \mid b), \quad O = \frac{M \odot P}{1 - r} V

    .. math::

        \bar P = \frac{M \odot \bar O V^\top}{1 - r}, \quad \bar B = P \odot (\bar P - \operatorname{rowsum}(P \odot \bar P)), \quad
        \bar S = (1 - \tanh^2(S / c)) \odot \bar B, \quad \bar Q = s\, \bar S K, \quad \bar K = s\, \bar S^\top Q

    References
    ----------
    .. [1] Vaswani et al., "Attention Is All You Need", NeurIPS 2017, eq. (1). arXiv:1706.03762.
    .. [2] Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints", EMNLP 2023,
       section 2.2. arXiv:2305.13245.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> query, key = np.zeros((1, 1, 2)), np.zeros((1, 4, 2))
    >>> value = np.arange(4.0)[None, :, None]
    >>> refattn.scaled_dot_product_attention(query, key, value)
    array([[[1.5]]])
    >>> output, pullback = refattn.scaled_dot_product_attention.vjp(query, key, value, causal=True, align="upper_left")
    >>> output, pullback(np.ones((1, 1, 1)))["value"].ravel()
    (array([[[0.]]]), array([1., 0., 0., 0.]))
    """
    attended, pullback = attend(*args, **kwargs)
    absent = np.zeros_like
    return attended.output, lambda d_output: pullback(d_output, absent(attended.lse), absent(attended.weights))


class AttendedWithLse(NamedTuple):
    """Output, and the log-sum-exp with which outputs over different keys are merged."""

    output: Array
    lse: Array


@mechanism(tags={"softmax", "quadratic"}, samples=_samples, like=scaled_dot_product_attention)
def scaled_dot_product_attention_with_lse(*args: Any, **kwargs: Any) -> tuple[AttendedWithLse, Pullback]:
    r"""`scaled_dot_product_attention`, and the log-sum-exp of each row of scores.

    Returns
    -------
    output : array, shape (..., kv_heads * group, query_len, value_dim)
        The attended values.
    lse : array, shape (..., kv_heads * group, query_len)
        Natural logarithm, with the sink where there is one; :math:`-\infty` for a row that has nothing.

    Notes
    -----
    Sizes: ``head_dim >= 1``.

    .. math::

        \ell_i = \log \sum_j e^{S_{ij}}, \qquad \bar S_{ij} \mathrel{+}= P_{ij} \bar \ell_i

    References
    ----------
    .. [1] Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", ICLR 2024, section 3.1.
       arXiv:2307.08691.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.scaled_dot_product_attention_with_lse(np.zeros((1, 1, 2)), np.zeros((1, 8, 2)), np.ones((1, 8, 1))).lse / np.log(2)
    array([[3.]])
    """
    attended, pullback = attend(*args, **kwargs)
    return AttendedWithLse(attended.output, attended.lse), lambda d_output, d_lse: pullback(
        d_output, d_lse, np.zeros_like(attended.weights)
    )


class AttendedWithWeights(NamedTuple):
    """Output, and the weights before dropout."""

    output: Array
    weights: Array


@mechanism(tags={"softmax", "quadratic"}, samples=_samples, like=scaled_dot_product_attention)
def scaled_dot_product_attention_with_weights(*args: Any, **kwargs: Any) -> tuple[AttendedWithWeights, Pullback]:
    r"""`scaled_dot_product_attention`, and its weights before dropout.

    Returns
    -------
    output : array, shape (..., kv_heads * group, query_len, value_dim)
        The attended values.
    weights : array, shape (..., kv_heads * group, query_len, key_len)
        A row sums to 1 less what a sink takes, or to 0.

    Notes
    -----
    Sizes: ``head_dim >= 1``.

    .. math::

        P = \operatorname{softmax}(S), \qquad \bar P \mathrel{+}= \bar O V^\top

    References
    ----------
    .. [1] Vaswani et al., "Attention Is All You Need", NeurIPS 2017, eq. (1). arXiv:1706.03762.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.scaled_dot_product_attention_with_weights(np.zeros((1, 1, 2)), np.zeros((1, 4, 2)), np.ones((1, 4, 1))).weights
    array([[[0.25, 0.25, 0.25, 0.25]]])
    """
    attended, pullback = attend(*args, **kwargs)
    return AttendedWithWeights(attended.output, attended.weights), lambda d_output, d_weights: pullback(
        d_output, np.zeros_like(attended.lse), d_weights
    )
