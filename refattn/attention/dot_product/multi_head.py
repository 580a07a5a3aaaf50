"""Multi-head attention: projections, scaled dot-product attention in each head, and one more projection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn import masks
from refattn._core import Array, BadCall, Booleans, Grads, Pullback, Random, Sample, mechanism
from refattn.attention.dot_product.scaled_dot_product import allowed_pairs, scaled_dot_product_attention
from refattn.primitives.attention_stages import MaskedRows, zero_unless
from refattn.primitives.linear import linear


def _inputs(random: Random) -> dict[str, Any]:
    return {
        "query": random.normal((2, 3, 5)),
        "key": random.normal((2, 4, 6)),
        "value": random.normal((2, 4, 3)),
        "w_query": 0.5 * random.normal((8, 5)),
        "w_key": 0.5 * random.normal((8, 6)),
        "w_value": random.normal((12, 3)),
        "w_output": random.normal((2, 12)),
        "num_heads": 4,
    }


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    x = random.normal((2, 3, 5))
    mask = random.booleans(0.6, (2, 1, 3, 4))
    mask[0, 0, 1] = False
    biases = {"b_query": random.normal(8), "b_key": random.normal(8), "b_value": random.normal(12), "b_output": random.normal(2)}
    grouped = {"w_key": 0.5 * random.normal((4, 6)), "w_value": random.normal((6, 3))}
    itself = {"query": x, "key": x, "value": x, "w_key": 0.5 * random.normal((8, 5)), "w_value": random.normal((12, 5))}
    yield Sample("cross", inputs)
    yield Sample("biases", {**inputs, **biases, "softcap": 0.75})
    yield Sample("self", {**inputs, **itself, **biases, "causal": True})
    yield Sample("grouped", {**inputs, **grouped, "causal": True, "align": "lower_right"})
    yield Sample("window", {**inputs, "align": "upper_left", "window": (1, 0), "scale": 0.25})
    yield Sample("masked row", {**inputs, "mask": mask, "masked_rows": "uniform"})
    yield Sample("score bias", {**inputs, "bias": random.normal((4, 3, 4)), "sinks": random.normal(4)})
    yield Sample("temperatures", {**inputs, "scale": random.uniform(0.25, 1.0, (4, 1, 1))})
    yield Sample("dropout", {**inputs, "keep": random.booleans(0.7, (2, 4, 3, 4)), "dropout_rate": 0.25})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    of_three = {"w_key": random.normal((6, 6)), "w_value": random.normal((9, 3))}
    yield BadCall("heads that do not divide", {**inputs, "num_heads": 3}, ValueError, r"num_heads \* head_dim is 8 in w_query")
    yield BadCall("value heads of another number", {**inputs, "w_value": random.normal((11, 3))}, ValueError, "is 11 in w_value")
    yield BadCall("four heads on three", {**inputs, **of_three}, ValueError, r"kv_heads \* group is 4")
    yield BadCall("causal without alignment", {**inputs, "causal": True}, ValueError, "align is None, but query_len = 3")


def _benchmark(random: Random) -> dict[str, Any]:
    x = random.normal((1, 256, 512))
    weights = {name: random.normal((512, 512)) / 16 for name in ("w_query", "w_key", "w_value", "w_output")}
    return {"query": x, "key": x, "value": x, **weights, "num_heads": 8}


def split_heads(x: Array, heads: int) -> Array:
    """Features of a token, head after head, as one axis of heads before the length."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).swapaxes(-2, -3)


def merge_heads(x: Array) -> Array:
    """Undo `split_heads`."""
    *lead, heads, length, width = x.shape
    return x.swapaxes(-2, -3).reshape(*lead, length, heads * width)


@mechanism(tags={"softmax", "quadratic"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def multi_head_attention(
    query: Array,
    key: Array,
    value: Array,
    w_query: Array,
    w_key: Array,
    w_value: Array,
    w_output: Array,
    b_query: Array | None = None,
    b_key: Array | None = None,
    b_value: Array | None = None,
    b_output: Array | None = None,
    *,
    num_heads: int,
    bias: Array | None = None,
    sinks: Array | None = None,
    mask: Booleans | None = None,
    causal: bool = False,
    align: masks.Align | None = None,
    window: tuple[int | None, int | None] | None = None,
    scale: Array | float | None = None,
    softcap: float | None = None,
    keep: Booleans | None = None,
    dropout_rate: float = 0.0,
    masked_rows: MaskedRows = "zero",
) -> tuple[Array, Pullback]:
    r"""Attend several times at once, each time in another projection of the tokens.

    Self-attention is the call with one array as query, key and value; its gradient is the sum of the three. With fewer rows
    in `w_key` and `w_value` than in `w_query`, several heads share a key and a value.

    Parameters
    ----------
    query : array, shape (..., query_len, query_dim)
        Tokens that ask.
    key : array, shape (..., key_len, key_dim)
        Tokens that are compared with.
    value : array, shape (..., key_len, in_features)
        Tokens that are read.
    w_query : array, shape (num_heads * head_dim, query_dim)
        Projection to queries: one row for each feature, head after head.
    w_key : array, shape (kv_heads * head_dim, key_dim)
        Projection to keys.
    w_value : array, shape (kv_heads * value_dim, in_features)
        Projection to values.
    w_output : array, shape (out_features, num_heads * value_dim)
        Projection of all heads together.
    b_query : array or None, shape (num_heads * head_dim), optional
        Added to the queries.
    b_key : array or None, shape (kv_heads * head_dim), optional
        Added to the keys: the same number for all keys of a query, so without effect where there is neither softcap nor sink, and
        all keys have the same scale.
    b_value : array or None, shape (kv_heads * value_dim), optional
        Added to the values.
    b_output : array or None, shape (out_features), optional
        Added to the output.
    num_heads : positive int
        Heads of the queries.
    bias : array or None, broadcastable to (..., num_heads, query_len, key_len), optional
        Added to the scores; :math:`-\infty` masks as `mask` does.
    sinks : array or None, shape (num_heads), optional
        A score for each head that takes weight and gives nothing.
    mask : bool array or None, broadcastable to (..., num_heads, query_len, key_len), optional
        True where the query may attend.
    causal : bool, optional
        No query attends to a later key.
    align : {"upper_left", "lower_right"} or None, optional
        Whether the first query sits at the first key, or the last query at the last key. Needed by `causal` and `window`
        where ``query_len != key_len``.
    window : (non-negative int or None, non-negative int or None) or None, optional
        How many keys before and after its own position a query may attend to; None is no limit.
    scale : float or array or None, broadcastable to (..., num_heads, query_len, key_len), optional
        Default ``1 / sqrt(head_dim)``. An array is a learned temperature and has a gradient.
    softcap : positive float or None, optional
        Bound of the scaled scores.
    keep : bool array or None, broadcastable to (..., num_heads, query_len, key_len), optional
        False where dropout drops a weight; None drops none, and scales none, whatever the rate.
    dropout_rate : probability, optional
        The probability with which `keep` was drawn False.
    masked_rows : {"zero", "nan", "uniform"}, optional
        Weights of a query that may attend nowhere and has no sink.

    Returns
    -------
    array, shape (..., query_len, out_features)
        Output; `b_output` alone for a query that may attend nowhere.

    Notes
    -----
    Sizes: ``head_dim >= 1``.

    .. math::

        H_h = \operatorname{attention}(X_q W_{q,h}^\top + b_q, X_k W_{k,h}^\top + b_k, X_v W_{v,h}^\top + b_v), \quad
        Y = [H_1 \dots H_n] W_o^\top + b_o, \qquad
        \bar H = \bar Y W_o, \quad \bar W_o = \bar Y^\top H, \quad \bar W_q = \bar Q^\top X_q, \quad \bar X_q = \bar Q W_q

    References
    ----------
    .. [1] Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.2.2. arXiv:1706.03762.
    .. [2] Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints", EMNLP 2023,
       section 2.2. arXiv:2305.13245.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x, eye = np.array([[0.0, 2.0], [4.0, 0.0]]), np.eye(2)
    >>> refattn.multi_head_attention(x, x, x, 0 * eye, eye, eye, eye, num_heads=2)
    array([[2., 1.],
           [2., 1.]])
    """
    kv_heads = len(w_key) * num_heads // len(w_query)
    pairs = (*query.shape[:-2], num_heads, query.shape[-2], key.shape[-2])
    allowed = allowed_pairs(pairs, bias, mask=mask, causal=causal, align=align, window=window)
    used = np.asarray(allowed.any(axis=(-3, -2)))
    queries, query_pullback = linear.vjp(query, w_query, b_query)
    keys, key_pullback = linear.vjp(zero_unless(used, key), w_key, b_key)
    values, value_pullback = linear.vjp(value if masked_rows == "uniform" else zero_unless(used, value), w_value, b_value)
    attended, attention_pullback = scaled_dot_product_attention.vjp(
        split_heads(queries, num_heads),
        split_heads(keys, kv_heads),
        split_heads(values, kv_heads),
        bias,
        sinks,
        mask=mask,
        causal=causal,
        align=align,
        window=window,
        scale=scale,
        softcap=softcap,
        keep=keep,
        dropout_rate=dropout_rate,
        masked_rows=masked_rows,
    )
    output, output_pullback = linear.vjp(merge_heads(attended), w_output, b_output)

    def pullback(dy: Array) -> Grads:
        d_output = output_pullback(dy)
        d_heads = attention_pullback(split_heads(d_output["x"], num_heads))
        d_query, d_key, d_value = (
            back(merge_heads(d_heads[name])) for name, back in (("query", query_pullback), ("key", key_pullback), ("value", value_pullback))
        )
        projections = {"query": d_query, "key": d_key, "value": d_value, "output": d_output}
        return {
            **{name: d_heads.get(name) for name in ("bias", "sinks", "scale")},
            **{name: projections[name]["x"] for name in ("query", "key", "value")},
            **{f"w_{name}": d["weight"] for name, d in projections.items()},
            **{f"b_{name}": d.get("bias") for name, d in projections.items()},
        }

    return output, pullback
