"""A few new queries of each sequence against its cache of keys and values, which may be quantised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from refattn import masks
from refattn._core import Array, BadCall, Booleans, Grads, Integers, Pullback, Random, Sample, mechanism, unbroadcast
from refattn.attention.dot_product.scaled_dot_product import AttendedWithLse, scaled_dot_product_attention_with_lse
from refattn.primitives.arithmetic import multiply
from refattn.primitives.attention_stages import zero_unless


def _inputs(random: Random) -> dict[str, Any]:
    sizes = {"query": (3, 4, 2, 3), "key": (3, 2, 6, 3), "value": (3, 2, 6, 2)}
    return {**{name: random.normal(size) for name, size in sizes.items()}, "lengths": np.asarray([4, 6, 2])}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    unwritten = {name: inputs[name].copy() for name in ("key", "value")}
    unwritten["key"][0, :, 4:], unwritten["value"][2, :, 2:] = np.nan, np.inf
    short = {**inputs, "lengths": np.asarray([0, 1, 5])}
    quantised = {name: random.integers(-127, 128, inputs[name].shape) / 64 for name in ("key", "value")}
    yield Sample("plain", inputs)
    yield Sample("causal", {**inputs, "causal": True})
    yield Sample("shorter than the queries", {**short, "causal": True})
    yield Sample("unsigned lengths", {**short, "causal": True, "lengths": short["lengths"].astype("uint8")})
    yield Sample(
        "no cache",
        {
            **inputs,
            "key": inputs["key"][..., :0, :],
            "value": inputs["value"][..., :0, :],
            "lengths": 0 * short["lengths"],
            "masked_rows": "nan",
        },
    )
    yield Sample("nothing yet", {**short, "masked_rows": "nan", "sinks": None})
    yield Sample("window", {**inputs, "window": (2, 0), "scale": 0.25})
    yield Sample("capped, with sinks", {**short, "softcap": 0.5, "sinks": random.normal(4)})
    yield Sample("unwritten rows", {**inputs, **unwritten, "key_scale": 0.5, "value_scale": random.normal((6, 1))})
    yield Sample("scale of the cache", {**inputs, **quantised, "key_scale": 0.5, "value_scale": 0.25})
    yield Sample(
        "scale of each head", {**inputs, **quantised, "key_scale": random.normal((3, 2, 1, 1)), "value_scale": random.normal((2, 1, 1))}
    )
    yield Sample(
        "scale of each channel and token",
        {**inputs, **quantised, "key_scale": random.normal((2, 1, 3)), "value_scale": random.normal((3, 2, 6, 1))},
    )


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield BadCall(
        "longer than the cache", {**inputs, "lengths": np.asarray([4, 7, 2])}, ValueError, "lengths runs from 2 to 7, but key_len is 6"
    )
    yield BadCall(
        "negative length", {**inputs, "lengths": np.asarray([4, -1, 2])}, ValueError, "lengths runs from -1 to 4, but key_len is 6"
    )
    yield BadCall("scale of no axis", {**inputs, "key_scale": random.normal((4, 1, 1))}, ValueError, "key_scale")


def _benchmark(random: Random) -> dict[str, Any]:
    cache = {name: random.normal((4, 8, 4096, 64)) for name in ("key", "value")}
    return {"query": random.normal((4, 32, 1, 64)), **cache, "lengths": np.asarray([4096, 3000, 2000, 1])}


@mechanism(tags={"softmax"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def decode_attention_with_lse(
    query: Array,
    key: Array,
    value: Array,
    lengths: Integers,
    sinks: Array | None = None,
    key_scale: Array | float | None = None,
    value_scale: Array | float | None = None,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    masked_rows: Literal["zero", "nan"] = "zero",
) -> tuple[AttendedWithLse, Pullback]:
    r"""`decode_attention`, and the log-sum-exp with which parts of a cache are merged.

    Parameters
    ----------
    query : array, shape (..., kv_heads * group, query_len, head_dim)
        The last positions of each sequence; query head h reads key and value head ``h // group``.
    key : int or real array, shape (..., kv_heads, key_len, head_dim)
        Cache of keys, or the codes of a quantised one. What stands behind a sequence's end is not read.
    value : int or real array, shape (..., kv_heads, key_len, value_dim)
        Cache of values, or codes.
    lengths : int array, shape (...)
        How many positions of each sequence the caches hold, those of the queries among them.
    sinks : array or None, shape (kv_heads * group), optional
        A score for each head that takes weight and gives nothing.
    key_scale : float or array or None, broadcastable to (..., kv_heads, key_len, head_dim), optional
        What a key's code is multiplied by: one number, or one for each sequence, head, token or channel.
    value_scale : float or array or None, broadcastable to (..., kv_heads, key_len, value_dim), optional
        What a value's code is multiplied by.
    causal : bool, optional
        No query attends to a later position; the last query sits at the last position of its sequence.
    window : (non-negative int or None, non-negative int or None) or None, optional
        How many keys before and after its own position a query may attend to; None is no limit.
    scale : float or None, optional
        Default ``1 / sqrt(head_dim)``.
    softcap : positive float or None, optional
        Bound of the scaled scores.
    masked_rows : {"zero", "nan"}, optional
        Output of a query that may attend nowhere and has no sink.

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

        \ell_i = \log \sum_{j < n} e^{S_{ij}}, \qquad \bar S_{ij} \mathrel{+}= P_{ij} \bar \ell_i

    References
    ----------
    .. [1] Dao, Haziza, Massa, Sizov, "Flash-Decoding for long-context inference", 2023: parts of a cache, merged by their
       log-sum-exp. https://pytorch.org/blog/flash-decoding/

    Examples
    --------
    >>> import numpy as np, refattn
    >>> cache = np.zeros((2, 1, 8, 1))
    >>> refattn.decode_attention_with_lse(np.zeros((2, 1, 1, 1)), cache, cache, np.array([4, 8])).lse.ravel() / np.log(2)
    array([2., 3.])
    """
    mask = _reach(lengths, query.shape[-2], key.shape[-2], causal=causal, window=window)
    read = np.logical_or.reduce(mask, axis=-2)
    keys, keys_pullback = _codes_times(key, key_scale, read)
    values, values_pullback = _codes_times(value, value_scale, read)
    attended, attend_pullback = scaled_dot_product_attention_with_lse.vjp(
        query, keys, values, sinks=sinks, mask=mask, scale=scale, softcap=softcap
    )
    output, lse = attended
    if masked_rows == "nan":
        output = np.where(np.isneginf(lse)[..., None], np.nan, output)

    def pullback(d_output: Array, d_lse: Array) -> Grads:
        d = attend_pullback(d_output, d_lse)
        d_key, d_value = keys_pullback(d["key"]), values_pullback(d["value"])
        grads = {"query": d["query"], "key": d_key["codes"], "value": d_value["codes"], "sinks": d.get("sinks")}
        return {**grads, "key_scale": d_key["scale"], "value_scale": d_value["scale"]}

    return AttendedWithLse(output, lse), pullback


@mechanism(tags={"softmax"}, samples=_samples, like=decode_attention_with_lse)
def decode_attention(*args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
    r"""Attend with the newest positions of each sequence to all that its cache holds.

    `append_to_cache` puts the keys and values of these positions into the caches first.

    Returns
    -------
    array, shape (..., kv_heads * group, query_len, value_dim)
        The attended values.

    Notes
    -----
    Sizes: ``head_dim >= 1``.

    Query i of a sequence of n positions sits at position ``n - query_len + i``. The scales c, per head, token or channel, turn
    codes into numbers; codes with a zero point are to be passed with it subtracted.

    .. math::

        k_j = c^k_j \odot \hat k_j, \quad v_j = c^v_j \odot \hat v_j, \quad
        o_i = \sum_{j < n} \operatorname{softmax}_j(q_i \cdot k_j / \sqrt d)\, v_j, \qquad
        \bar{\hat k}_j = c^k_j \odot \bar k_j, \quad \bar c^k_j = \hat k_j \odot \bar k_j

    References
    ----------
    .. [1] Shazeer, "Fast Transformer Decoding: One Write-Head is All You Need", 2019: attention one position at a time over
       cached keys and values. arXiv:1911.02150.
    .. [2] Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", ICML 2024: scales for each channel of the
       keys and each token of the values. arXiv:2402.02750.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> key, value = np.zeros((1, 1, 4, 1)), np.array([[[[1.0], [3.0], [np.nan], [np.nan]]]])
    >>> refattn.decode_attention(np.ones((1, 1, 1, 1)), key, value, np.array([2]))
    array([[[[2.]]]])
    """
    attended, pullback = decode_attention_with_lse.vjp(*args, **kwargs)
    return attended.output, lambda d_output: pullback(d_output, np.zeros_like(attended.lse))


def _reach(lengths: Integers, query_len: int, key_len: int, *, causal: bool, window: tuple[int | None, int | None] | None) -> Booleans:
    """A mask (..., 1, query_len, key_len): keys before the end of a sequence, as near as `causal` and `window` say."""
    position = lengths[..., None, None, None] - query_len + np.arange(query_len)[:, None]
    away = np.arange(key_len) - position
    left, right = (None, None) if window is None else window
    reached = masks.padding(lengths, key_len) & (away <= (0 if causal else np.inf))
    return reached & (away >= (-np.inf if left is None else -left)) & (away <= (np.inf if right is None else right))


def _codes_times(codes: Array, scale: Array | float | None, read: Booleans) -> tuple[Array, Pullback]:
    """The numbers that codes stand for; what is not read, which may not even have been written, is 0."""
    clean = zero_unless(read, codes)
    if scale is None:
        return clean, lambda d: {"codes": d, "scale": None}
    factors = zero_unless(read, np.broadcast_to(scale, codes.shape))
    numbers, multiply_pullback = multiply.vjp(clean, factors)

    def pullback(d_numbers: Array) -> Grads:
        d = multiply_pullback(d_numbers)
        return {"codes": d["a"], "scale": unbroadcast(d["b"], np.shape(scale))}

    return numbers, pullback
