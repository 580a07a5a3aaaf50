"""Exact attention of chosen queries over any number of keys, without the matrix of all scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from refattn import masks
from refattn._core import Array, BadCall, Booleans, Grads, Integers, Pullback, Random, Sample, mechanism
from refattn.attention.dot_product.merge import merge_attention
from refattn.attention.dot_product.scaled_dot_product import (
    AttendedWithLse,
    scaled_dot_product_attention_with_lse,
    within_reach,
)


def _inputs(random: Random) -> dict[str, Any]:
    return {"query": random.normal((2, 4, 5, 3)), "key": random.normal((2, 2, 7, 3)), "value": random.normal((2, 2, 7, 2))}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    rows = np.asarray([4, 0, 4])
    mask = random.booleans(0.6, (2, 1, 3, 7))
    mask[0, 0, 1] = False
    bias = random.normal((4, 3, 7))
    bias[:, 0, 3] = -np.inf
    yield Sample("plain", inputs)
    yield Sample("all rows", {**inputs, "mask": random.booleans(0.7, (5, 1)), "block_size": 3})
    yield Sample("some rows", {**inputs, "rows": rows, "scale": 0.25, "block_size": 3})
    yield Sample("masked row", {**inputs, "rows": rows, "mask": mask, "block_size": 2})
    yield Sample("masked row not a number", {**inputs, "rows": rows, "mask": mask, "masked_rows": "nan"})
    yield Sample("sinks", {**inputs, "rows": rows, "sinks": random.normal(4), "mask": mask, "block_size": 4})
    yield Sample("bias", {**inputs, "rows": rows, "bias": bias, "softcap": 0.75, "block_size": 3})
    yield Sample("bias per query", {**inputs, "bias": random.normal((2, 1, 5, 1)), "softcap": 0.75, "sinks": random.normal(4)})
    yield Sample("temperatures", {**inputs, "rows": rows, "scale": random.uniform(0.25, 1.0, (4, 1, 7)), "block_size": 3})
    yield Sample("causal", {**inputs, "rows": rows, "causal": True, "align": "upper_left", "block_size": 3})
    yield Sample("window", {**inputs, "rows": rows, "window": (1, 0), "align": "lower_right", "block_size": 2})
    yield Sample("dropout", {**inputs, "rows": rows, "keep": random.booleans(0.7, (4, 3, 7)), "dropout_rate": 0.25, "block_size": 3})
    yield Sample("no row", {**inputs, "rows": rows[:0]})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield BadCall("no such row", {**inputs, "rows": np.asarray([5])}, ValueError, "rows runs from 5 to 5, but indexes query_len = 5")
    yield BadCall(
        "mask of all rows", {**inputs, "rows": np.asarray([1, 2]), "mask": random.booleans(0.5, (5, 7))}, ValueError, "mask .5, 7."
    )
    yield BadCall("causal without alignment", {**inputs, "causal": True}, ValueError, "align is None, but query_len = 5")
    yield BadCall("empty blocks", {**inputs, "block_size": 0}, ValueError, "block_size is 0")


def _benchmark(random: Random) -> dict[str, Any]:
    inputs = {name: random.normal((1, 2**16, 64)) for name in ("query", "key", "value")}
    return {**inputs, "rows": np.arange(0, 2**16, 2**11), "causal": True}


@mechanism(tags={"softmax"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark, inert={"block_size"})
def scaled_dot_product_attention_rows(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    sinks: Array | None = None,
    *,
    rows: Integers | None = None,
    mask: Booleans | None = None,
    causal: bool = False,
    align: masks.Align | None = None,
    window: tuple[int | None, int | None] | None = None,
    scale: Array | float | None = None,
    softcap: float | None = None,
    keep: Booleans | None = None,
    dropout_rate: float = 0.0,
    masked_rows: Literal["zero", "nan"] = "zero",
    block_size: int = 8192,
) -> tuple[AttendedWithLse, Pullback]:
    r"""Rows of `scaled_dot_product_attention_with_lse`, a block of keys at a time.

    What a kernel returns for a million keys can be held against some of its rows: only ``picked * block_size`` scores are
    held at once. Blocks that `causal` and `window` put out of reach of all rows are not computed.

    Parameters
    ----------
    query : array, shape (..., kv_heads * group, query_len, head_dim)
        All queries; query head h reads key and value head ``h // group``.
    key : array, shape (..., kv_heads, key_len, head_dim)
        What each position offers.
    value : array, shape (..., kv_heads, key_len, value_dim)
        What each position gives.
    bias : array or None, broadcastable to (..., kv_heads * group, picked, key_len), optional
        Added to the scores; :math:`-\infty` masks as `mask` does.
    sinks : array or None, shape (kv_heads * group), optional
        A score for each head that takes weight and gives nothing.
    rows : int array or None, shape (picked), indexing query_len, optional
        The queries to compute, in any order; None is all of them. `bias`, `mask`, `scale` and `keep` have these rows only.
    mask : bool array or None, broadcastable to (..., kv_heads * group, picked, key_len), optional
        True where the query may attend.
    causal : bool, optional
        No query attends to a later key.
    align : {"upper_left", "lower_right"} or None, optional
        Whether the first query sits at the first key, or the last query at the last key. Needed by `causal` and `window`
        where ``query_len != key_len``.
    window : (non-negative int or None, non-negative int or None) or None, optional
        How many keys before and after its own position a query may attend to; None is no limit.
    scale : float or array or None, broadcastable to (..., kv_heads * group, picked, key_len), optional
        Default ``1 / sqrt(head_dim)``. An array is a learned temperature and has a gradient.
    softcap : positive float or None, optional
        Bound of the scaled scores.
    keep : bool array or None, broadcastable to (..., kv_heads * group, picked, key_len), optional
        False where dropout drops a weight; None drops none, and scales none, whatever the rate.
    dropout_rate : probability, optional
        The probability with which `keep` was drawn False.
    masked_rows : {"zero", "nan"}, optional
        Output of a query that may attend nowhere and has no sink.
    block_size : positive int, optional
        How many keys are computed at once.

    Returns
    -------
    output : array, shape (..., kv_heads * group, picked, value_dim)
        The attended values.
    lse : array, shape (..., kv_heads * group, picked)
        Natural logarithm, with the sink where there is one; :math:`-\infty` for a row that has nothing.

    Notes
    -----
    Sizes: ``head_dim >= 1``, ``picked := query_len``.

    With J the blocks of keys, and the sink as one more block of output 0,

    .. math::

        (O_i, \ell_i) = \operatorname{merge}_J \operatorname{attention}(q_i, K_J, V_J), \qquad
        \bar K_J = \bigl(P_J \odot (\bar P_J - \bar O \cdot O + \bar \ell)\bigr)^\top Q / \sqrt d

    The pullback computes each block again from its keys and values.

    References
    ----------
    .. [1] Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018. arXiv:1805.02867.
    .. [2] Rabe, Staats, "Self-attention Does Not Need O(n^2) Memory", 2021. arXiv:2112.05682.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> query, key = np.zeros((1, 8, 2)), np.zeros((1, 8, 2))
    >>> value = np.arange(8.0)[None, :, None]
    >>> refattn.scaled_dot_product_attention_rows(query, key, value, rows=np.array([2, 6]), causal=True, block_size=4).output
    array([[[1.],
            [3.]]])
    """
    *lead, heads, query_len, _ = query.shape
    key_len = key.shape[-2]
    picked = query if rows is None else query[..., rows, :]

    def visible(span: slice) -> Booleans:
        columns = np.arange(span.start, span.stop)
        near = within_reach(query_len, key_len, causal=causal, window=window, align=align, rows=rows, columns=columns)
        return near if mask is None else near & _block(mask, span)

    def attend(span: slice) -> tuple[AttendedWithLse, Pullback]:
        return scaled_dot_product_attention_with_lse.vjp(
            picked,
            key[..., span, :],
            value[..., span, :],
            _block(bias, span),
            mask=visible(span),
            scale=_block(scale, span),
            softcap=softcap,
            keep=_block(keep, span),
            dropout_rate=dropout_rate,
        )

    blocks = (slice(i, min(i + block_size, key_len)) for i in range(0, key_len, block_size))
    spans = [span for span in blocks if visible(span).any()]
    nothing = np.zeros_like(picked, shape=(*lead, heads, picked.shape[-2], value.shape[-1]))
    sink = np.zeros_like(picked[..., 0]) + (-np.inf if sinks is None else sinks[:, None])
    parts = [AttendedWithLse(nothing, sink), *(attend(span)[0] for span in spans)]
    (merged, lse), merge_pullback = merge_attention.vjp(np.stack([p.output for p in parts]), np.stack([p.lse for p in parts]))
    output = np.where(np.isneginf(lse)[..., None], np.nan, merged) if masked_rows == "nan" else merged

    def pullback(d_output: Array, d_lse: Array) -> Grads:
        d_parts = merge_pullback(d_output, d_lse)
        real = {"query": picked, "key": key, "value": value, "bias": bias, "scale": scale}
        grads = {name: np.zeros_like(x) for name, x in real.items() if isinstance(x, np.ndarray)}
        for span, d_part, d_part_lse in zip(spans, d_parts["outputs"][1:], d_parts["lses"][1:], strict=True):
            for name, g in attend(span)[1](d_part, d_part_lse).items():
                at = {"query": (...,), "key": (..., span, slice(None)), "value": (..., span, slice(None))}.get(name)
                grads[name][at or _columns(grads[name], span)] += g
        d_sink = d_parts["lses"][0]
        d_query = _scattered(grads["query"], rows, query)
        return {**grads, "query": d_query, "sinks": d_sink.sum(axis=(*range(d_sink.ndim - 2), -1))}

    return AttendedWithLse(output, lse), pullback


def _columns(x: Array | Booleans, span: slice) -> Any:
    """The index of a block of keys in an array that may broadcast along the keys."""
    return (..., span) if x.ndim and x.shape[-1] != 1 else (...,)


def _block(x: Any, span: slice) -> Any:
    """The part of an option that belongs to a block of keys."""
    return x[_columns(x, span)] if isinstance(x, np.ndarray) else x


def _scattered(picked: Array, rows: Integers | None, like: Array) -> Array:
    """Rows put back where they were picked, those that were picked twice summed."""
    if rows is None:
        return picked
    full = np.zeros_like(like)
    for i, row in enumerate(rows):
        full[..., row, :] += picked[..., i, :]
    return full
