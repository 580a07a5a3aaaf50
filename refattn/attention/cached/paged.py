"""Attention to a cache whose pages lie anywhere in one pool, and may be shared by sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from refattn._core import Array, BadCall, Grads, Integers, Pullback, Random, Sample, mechanism, unbroadcast
from refattn.attention.cached.decode import decode_attention_with_lse
from refattn.attention.dot_product.scaled_dot_product import AttendedWithLse
from refattn.primitives.indexing import gather


def _inputs(random: Random) -> dict[str, Any]:
    sizes = {"query": (3, 4, 2, 3), "key_pages": (5, 2, 2, 3), "value_pages": (5, 2, 2, 2)}
    table = np.asarray([[3, 0, -1], [3, 4, 1], [-1, -1, -1]])
    return {**{name: random.normal(size) for name, size in sizes.items()}, "block_table": table, "lengths": np.asarray([3, 6, 0])}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    unwritten = inputs["value_pages"].copy()
    unwritten[0, :, 1], unwritten[2] = np.nan, np.inf
    yield Sample("a page of two sequences", inputs)
    yield Sample("causal", {**inputs, "causal": True, "sinks": random.normal(4)})
    yield Sample("window", {**inputs, "window": (2, 0), "scale": 0.25, "masked_rows": "nan"})
    freed = np.asarray([[3, 0, -1], [-1, 4, 1], [-1, -1, -1]])
    yield Sample("a page that no window reaches", {**inputs, "window": (1, 0), "block_table": freed})
    yield Sample("capped", {**inputs, "softcap": 0.5})
    yield Sample("unwritten rows", {**inputs, "value_pages": unwritten, "key_scale": 0.5, "value_scale": random.normal((5, 1, 1, 1))})
    yield Sample("scales in pages", {**inputs, "key_scale": random.normal((5, 2, 2, 1)), "value_scale": 0.25})
    yield Sample("scale of each head", {**inputs, "key_scale": random.normal((2, 1, 1)), "value_scale": random.normal((2, 1, 2))})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield BadCall(
        "no such page", {**inputs, "block_table": np.asarray([[3, 0, 5]] * 3)}, ValueError, "block_table runs from 0 to 5, but indexes"
    )
    yield BadCall(
        "longer than the table",
        {**inputs, "lengths": np.asarray([3, 7, 0])},
        ValueError,
        "lengths runs from 0 to 7, but block_table has room for 6",
    )
    yield BadCall(
        "a page that is missing", {**inputs, "lengths": np.asarray([5, 6, 0])}, ValueError, "block_table has no page for position 4"
    )


@mechanism(tags={"softmax"}, samples=_samples, bad_calls=_bad_calls)
def paged_attention_with_lse(
    query: Array,
    key_pages: Array,
    value_pages: Array,
    block_table: Integers,
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
    r"""`paged_attention`, and the log-sum-exp with which parts of a cache are merged.

    Parameters
    ----------
    query : array, shape (..., kv_heads * group, query_len, head_dim)
        The last positions of each sequence; query head h reads key and value head ``h // group``.
    key_pages : int or real array, shape (pages, kv_heads, page_size, head_dim)
        Keys, or the codes of quantised ones. What no sequence reaches is not read.
    value_pages : int or real array, shape (pages, kv_heads, page_size, value_dim)
        Values, or codes.
    block_table : int array, shape (..., table_len), indexing pages or -1
        The pages of each sequence, in the order of its positions; -1, or any page, behind its end and before its window.
    lengths : int array, shape (...)
        How many positions of each sequence the pages hold, those of the queries among them.
    sinks : array or None, shape (kv_heads * group), optional
        A score for each head that takes weight and gives nothing.
    key_scale : float or array or None, broadcastable to (pages, kv_heads, page_size, head_dim), optional
        What a key's code is multiplied by: one number, or one for each page, head, token or channel.
    value_scale : float or array or None, broadcastable to (pages, kv_heads, page_size, value_dim), optional
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
    Sizes: ``head_dim >= 1``, ``pages >= 1``, ``page_size >= 1``.

    .. math::

        \ell_i = \log \sum_{j < n} e^{S_{ij}}, \qquad \bar S_{ij} \mathrel{+}= P_{ij} \bar \ell_i

    References
    ----------
    .. [1] Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", SOSP 2023,
       section 4.1. arXiv:2309.06180.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> pages, table = np.zeros((4, 1, 2, 1)), np.array([[3, -1], [1, 2]])
    >>> refattn.paged_attention_with_lse(np.zeros((2, 1, 1, 1)), pages, pages, table, np.array([2, 4])).lse.ravel() / np.log(2)
    array([1., 2.])
    """
    refuse_missing_pages(block_table, lengths, key_pages.shape[-2], query.shape[-2], window)
    pools = {"key": key_pages, "value": value_pages}
    factors = {"key_scale": key_scale, "value_scale": value_scale}
    arrays = {name: x for name, x in factors.items() if isinstance(x, np.ndarray)}
    pools |= {name: np.broadcast_to(x, pools[name.removesuffix("_scale")].shape) for name, x in arrays.items()}
    laid, laid_pullbacks = {}, {}
    for name, pool in pools.items():
        laid[name], laid_pullbacks[name] = _laid_out(pool, np.maximum(block_table, 0))
    options = {"causal": causal, "window": window, "scale": scale, "softcap": softcap, "masked_rows": masked_rows}
    attended, attend_pullback = decode_attention_with_lse.vjp(query, lengths=lengths, sinks=sinks, **{**factors, **laid}, **options)

    def pullback(d_output: Array, d_lse: Array) -> Grads:
        d = attend_pullback(d_output, d_lse)
        d_pools = {name: back(d[name]) for name, back in laid_pullbacks.items()}
        return {
            "query": d["query"],
            "key_pages": d_pools["key"],
            "value_pages": d_pools["value"],
            "sinks": d.get("sinks"),
            **{name: unbroadcast(d_pools[name], x.shape) for name, x in arrays.items()},
        }

    return attended, pullback


@mechanism(tags={"softmax"}, samples=_samples, like=paged_attention_with_lse)
def paged_attention(*args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
    r"""Attend to caches that lie in pages of one pool, as a table says.

    It is `decode_attention` of the pages laid out one after another. A page may belong to several sequences, as where they start
    with the same prompt; its gradient is the sum over them.

    Returns
    -------
    array, shape (..., kv_heads * group, query_len, value_dim)
        The attended values.

    Notes
    -----
    Sizes: ``head_dim >= 1``, ``pages >= 1``, ``page_size >= 1``.

    With t the table of a sequence and B the size of a page,

    .. math::

        k_j = K_{t_{\lfloor j / B \rfloor},\, j \bmod B}, \quad
        o_i = \sum_{j < n} \operatorname{softmax}_j(q_i \cdot k_j / \sqrt d)\, v_j, \qquad
        \bar K_{p, r} = \sum_{j :\, t_{\lfloor j / B \rfloor} = p,\, j \bmod B = r} \bar k_j

    References
    ----------
    .. [1] Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", SOSP 2023,
       section 4.1. arXiv:2309.06180.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> query, keys, values = np.zeros((1, 1, 1, 1)), np.zeros((3, 1, 2, 1)), np.arange(6.0).reshape(3, 1, 2, 1)
    >>> refattn.paged_attention(query, keys, values, np.array([[2, 0]]), np.array([3]))  # the mean of 4, 5 and 0
    array([[[[3.]]]])
    """
    attended, pullback = paged_attention_with_lse.vjp(*args, **kwargs)
    return attended.output, lambda d_output: pullback(d_output, np.zeros_like(attended.lse))


def refuse_missing_pages(
    table: Integers, lengths: Integers, page_size: int, query_len: int, window: tuple[int | None, int | None] | None
) -> None:
    """ValueError where a sequence reaches a page that its table does not name."""
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= table.shape[-1] * page_size:
        room = table.shape[-1] * page_size
        raise ValueError(f"lengths runs from {lengths.min()} to {lengths.max()}, but block_table has room for {room}")
    firsts = page_size * np.arange(table.shape[-1])
    left = None if window is None else window[0]
    reached = 0 * lengths if left is None else lengths - query_len - left
    missing = (table < 0) & (firsts < lengths[..., None]) & (firsts + page_size > reached[..., None])
    if missing.any():
        *sequence, page = (int(i[0]) for i in np.nonzero(missing))
        at = f"position {firsts[page]} of sequence {', '.join(map(str, sequence))}"
        raise ValueError(f"block_table has no page for {at}, but lengths is {lengths[tuple(sequence)]}")


def _laid_out(pool: Array, table: Integers) -> tuple[Array, Pullback]:
    """The pages of each sequence one after another: (pages, heads, page_size, dim) to (..., heads, table_len * page_size, dim)."""
    picked, gather_pullback = gather.vjp(pool, table)
    in_order = picked.swapaxes(-4, -3)
    laid = in_order.reshape(*table.shape[:-1], pool.shape[1], -1 if in_order.size else table.shape[-1] * pool.shape[2], pool.shape[3])
    return laid, lambda d: gather_pullback(d.reshape(in_order.shape).swapaxes(-4, -3))["x"]
