"""Attention within each of several sequences of different lengths that are packed one after another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from refattn import masks
from refattn._core import Array, BadCall, Grads, Integers, Pullback, Random, Sample, mechanism
from refattn.attention.dot_product.scaled_dot_product import AttendedWithLse, scaled_dot_product_attention_with_lse


def _inputs(random: Random) -> dict[str, Any]:
    sizes = {"query": (4, 7, 3), "key": (2, 9, 3), "value": (2, 9, 2)}
    return {
        **{name: random.normal(size) for name, size in sizes.items()},
        "cu_seqlens_q": np.asarray([0, 3, 3, 5, 7]),
        "cu_seqlens_k": np.asarray([0, 5, 6, 6, 9]),
    }


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    same = {**inputs, "key": random.normal((2, 7, 3)), "value": random.normal((2, 7, 2)), "cu_seqlens_k": None}
    yield Sample("plain", inputs)
    yield Sample("one set of lengths", {**same, "causal": True})
    yield Sample("causal", {**inputs, "causal": True, "align": "lower_right"})
    yield Sample("window", {**inputs, "window": (1, 0), "align": "upper_left"})
    yield Sample("capped, with sinks", {**inputs, "scale": 0.25, "softcap": 0.5, "sinks": random.normal(4)})
    yield Sample("not a number", {**inputs, "masked_rows": "nan"})
    yield Sample("batch", {**same, **{name: random.normal((2, *same[name].shape)) for name in ("query", "key", "value")}})
    yield Sample(
        "no sequence", {**{n: x[:, :0] for n, x in same.items() if n in {"query", "key", "value"}}, "cu_seqlens_q": np.asarray([0])}
    )


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield BadCall("late start", {**inputs, "cu_seqlens_q": np.asarray([1, 3, 3, 5, 7])}, ValueError, "cu_seqlens_q starts at 1, but must")
    yield BadCall(
        "early end", {**inputs, "cu_seqlens_k": np.asarray([0, 5, 6, 6, 8])}, ValueError, "cu_seqlens_k ends at 8, but key_len is 9"
    )
    yield BadCall("falls", {**inputs, "cu_seqlens_q": np.asarray([0, 5, 3, 5, 7])}, ValueError, "cu_seqlens_q falls from 5 to 3")
    yield BadCall("empty", {**inputs, "cu_seqlens_q": np.asarray([], dtype=int)}, ValueError, "cu_seqlens_q")
    yield BadCall("causal without alignment", {**inputs, "causal": True}, ValueError, "align is None, but")


@mechanism(tags={"softmax"}, samples=_samples, bad_calls=_bad_calls)
def varlen_attention_with_lse(
    query: Array,
    key: Array,
    value: Array,
    cu_seqlens_q: Integers,
    cu_seqlens_k: Integers | None = None,
    sinks: Array | None = None,
    *,
    causal: bool = False,
    align: masks.Align | None = None,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    masked_rows: Literal["zero", "nan"] = "zero",
) -> tuple[AttendedWithLse, Pullback]:
    r"""`varlen_attention`, and the log-sum-exp of each row of scores.

    Parameters
    ----------
    query : array, shape (..., kv_heads * group, query_len, head_dim)
        The queries of all sequences; query head h reads key and value head ``h // group``.
    key : array, shape (..., kv_heads, key_len, head_dim)
        The keys of all sequences.
    value : array, shape (..., kv_heads, key_len, value_dim)
        The values of all sequences.
    cu_seqlens_q : int array, shape (sequences + 1)
        Where each sequence of queries starts, and where the last one ends: 0, then the sums of the lengths.
    cu_seqlens_k : int array or None, shape (sequences + 1), optional
        The same for keys and values; None where it is the same.
    sinks : array or None, shape (kv_heads * group), optional
        A score for each head that takes weight and gives nothing.
    causal : bool, optional
        No query attends to a later key of its sequence.
    align : {"upper_left", "lower_right"} or None, optional
        Whether the first query of a sequence sits at its first key, or the last query at the last key. Needed by `causal` and
        `window` where the lengths of a sequence differ.
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
    Sizes: ``head_dim >= 1``, ``sequences >= 0``.

    .. math::

        \ell_i = \log \sum_{j \in s(i)} e^{S_{ij}}, \qquad \bar S_{ij} \mathrel{+}= P_{ij} \bar \ell_i

    References
    ----------
    .. [1] PyTorch documentation, "torch.nn.attention.varlen": the same packing, with the heads after the positions.
       https://docs.pytorch.org/docs/2.12/nn.attention.varlen.html

    Examples
    --------
    >>> import numpy as np, refattn
    >>> zeros = np.zeros((1, 3, 1))
    >>> refattn.varlen_attention_with_lse(zeros, zeros, zeros, np.array([0, 1, 3])).lse / np.log(2)
    array([[0., 1., 1.]])
    """
    queries, keys = spans_of(cu_seqlens_q, cu_seqlens_k, query.shape[-2], key.shape[-2])
    options = {"causal": causal, "align": align, "window": window, "scale": scale, "softcap": softcap}
    attended = [
        scaled_dot_product_attention_with_lse.vjp(query[..., q, :], key[..., k, :], value[..., k, :], sinks=sinks, **options)
        for q, k in zip(queries, keys, strict=True)
    ]
    none = np.zeros_like(query, shape=(*query.shape[:-2], 0, value.shape[-1]))
    sums = np.concatenate([none, *(part.output for part, _ in attended)], axis=-2)
    lse = np.concatenate([none.sum(axis=-1), *(part.lse for part, _ in attended)], axis=-1)
    output = np.where(np.isneginf(lse)[..., None], np.nan, sums) if masked_rows == "nan" else sums

    def pullback(d_output: Array, d_lse: Array) -> Grads:
        parts = [part(d_output[..., q, :], d_lse[..., q]) for q, (_, part) in zip(queries, attended, strict=True)]
        packed = {"query": query, "key": key, "value": value}
        grads = {name: np.concatenate([x[..., :0, :], *(d[name] for d in parts)], axis=-2) for name, x in packed.items()}
        return {**grads, "sinks": None if sinks is None else sum((d["sinks"] for d in parts), np.zeros_like(sinks))}

    return AttendedWithLse(output, lse), pullback


@mechanism(tags={"softmax"}, samples=_samples, like=varlen_attention_with_lse)
def varlen_attention(*args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
    r"""Attend within each of several sequences that are packed one after another.

    It is `scaled_dot_product_attention` of each sequence by itself. `causal` and `window` count positions within a sequence;
    kernels of the FlashAttention family align them ``"lower_right"``.

    Returns
    -------
    array, shape (..., kv_heads * group, query_len, value_dim)
        The attended values, packed as the queries are; 0 for the queries of a sequence without keys.

    Notes
    -----
    Sizes: ``head_dim >= 1``, ``sequences >= 0``.

    With s(i) the keys of the sequence of query i,

    .. math::

        o_i = \sum_{j \in s(i)} \operatorname{softmax}_j(q_i \cdot k_j / \sqrt d)\, v_j, \qquad
        \bar v_j = \sum_{i : j \in s(i)} P_{ij} \bar o_i, \quad
        \bar S_{ij} = P_{ij} (\bar o_i \cdot v_j - \bar o_i \cdot o_i)

    References
    ----------
    .. [1] PyTorch documentation, "torch.nn.attention.varlen": the same packing, with the heads after the positions.
       https://docs.pytorch.org/docs/2.12/nn.attention.varlen.html

    Examples
    --------
    >>> import numpy as np, refattn
    >>> zeros, value = np.zeros((1, 3, 1)), np.array([[[1.0], [2.0], [4.0]]])
    >>> refattn.varlen_attention(zeros, zeros, value, np.array([0, 1, 3]))
    array([[[1.],
            [3.],
            [3.]]])
    """
    attended, pullback = varlen_attention_with_lse.vjp(*args, **kwargs)
    return attended.output, lambda d_output: pullback(d_output, np.zeros_like(attended.lse))


def spans_of(cu_seqlens_q: Integers, cu_seqlens_k: Integers | None, query_len: int, key_len: int) -> tuple[list[slice], list[slice]]:
    """The queries and the keys of each sequence; ValueError where they are not all of them."""
    queries = _spans("cu_seqlens_q", cu_seqlens_q, "query_len", query_len)
    if cu_seqlens_k is not None:
        return queries, _spans("cu_seqlens_k", cu_seqlens_k, "key_len", key_len)
    if query_len != key_len:
        raise ValueError(f"cu_seqlens_k is None, but query_len is {query_len} and key_len is {key_len}")
    return queries, queries


def _spans(name: str, starts: Integers, axis: str, size: int) -> list[slice]:
    """The positions of each sequence; ValueError where they do not follow one another from 0 to the end."""
    if starts[0] != 0:
        raise ValueError(f"{name} starts at {starts[0]}, but must start at 0")
    for before, after in itertools.pairwise(starts):
        if after < before:
            raise ValueError(f"{name} falls from {before} to {after}")
    if starts[-1] != size:
        raise ValueError(f"{name} ends at {starts[-1]}, but {axis} is {size}")
    return [slice(before, after) for before, after in itertools.pairwise(starts)]
