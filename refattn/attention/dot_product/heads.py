"""Features cut into heads and put together again, and attention in heads without any projection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refattn import masks
from refattn._core import Array, BadCall, Booleans, Grads, Pullback, Random, Sample, mechanism
from refattn.attention.dot_product import multi_head
from refattn.attention.dot_product.scaled_dot_product import scaled_dot_product_attention


def _split_samples(random: Random) -> Iterator[Sample]:
    yield Sample("two heads", {"x": random.normal((2, 3, 6)), "num_heads": 2})
    yield Sample("one sequence", {"x": random.normal((3, 6)), "num_heads": 3})


def _split_bad_calls(random: Random) -> Iterator[BadCall]:
    yield BadCall("heads that do not divide", {"x": random.normal((3, 6)), "num_heads": 4}, ValueError, r"num_heads \* head_dim is 6 in x")


def _split_benchmark(random: Random) -> dict[str, Any]:
    return {"x": random.normal((8, 512, 512)), "num_heads": 8}


@mechanism(samples=_split_samples, bad_calls=_split_bad_calls, benchmark=_split_benchmark)
def split_heads(x: Array, *, num_heads: int) -> tuple[Array, Pullback]:
    r"""Cut the features of each token into heads, and put the heads before the tokens.

    A reshape to (num_heads, length, head_dim) has the same shape and is another function: it puts features of several tokens into
    one row. The features are cut first, then two axes change places.

    Parameters
    ----------
    x : array, shape (..., length, num_heads * head_dim)
        Tokens; their features stand head after head.
    num_heads : positive int
        Heads.

    Returns
    -------
    array, shape (..., num_heads, length, head_dim)
        Each head's tokens.

    Notes
    -----
    .. math::

        y_{h t i} = x_{t, h d + i}, \qquad \bar x_{t, h d + i} = \bar y_{h t i}

    References
    ----------
    .. [1] Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.2.2. arXiv:1706.03762.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.split_heads(np.array([[1.0, 2.0], [3.0, 4.0]]), num_heads=2)
    array([[[1.],
            [3.]],
    <BLANKLINE>
           [[2.],
            [4.]]])
    """
    return multi_head.split_heads(x, num_heads), lambda dy: {"x": multi_head.merge_heads(dy)}


def _merge_samples(random: Random) -> Iterator[Sample]:
    yield Sample("two heads", {"x": random.normal((2, 2, 3, 4))})
    yield Sample("one sequence", {"x": random.normal((3, 2, 4))})


def _merge_benchmark(random: Random) -> dict[str, Any]:
    return {"x": random.normal((8, 8, 512, 64))}


@mechanism(samples=_merge_samples, benchmark=_merge_benchmark)
def merge_heads(x: Array) -> tuple[Array, Pullback]:
    r"""Put the heads of each token behind each other: undo `split_heads`.

    Parameters
    ----------
    x : array, shape (..., heads, length, head_dim)
        Each head's tokens.

    Returns
    -------
    array, shape (..., length, heads * head_dim)
        Tokens; their features stand head after head.

    Notes
    -----
    Sizes: ``heads >= 1``.

    .. math::

        y_{t, h d + i} = x_{h t i}, \qquad \bar x_{h t i} = \bar y_{t, h d + i}

    References
    ----------
    .. [1] Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.2.2. arXiv:1706.03762.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.merge_heads(np.array([[[1.0], [3.0]], [[2.0], [4.0]]]))
    array([[1., 2.],
           [3., 4.]])
    """
    return multi_head.merge_heads(x), lambda dy: {"x": multi_head.split_heads(dy, x.shape[-3])}


def _inputs(random: Random) -> dict[str, Any]:
    return {"query": random.normal((2, 3, 6)), "key": random.normal((2, 4, 6)), "value": random.normal((2, 4, 9)), "num_heads": 3}


def _samples(random: Random) -> Iterator[Sample]:
    inputs, x = _inputs(random), random.normal((2, 5, 4))
    mask = random.booleans(0.6, (2, 3, 3, 4))
    mask[0, :, 1] = False
    yield Sample("cross", inputs)
    yield Sample("itself", {"query": x, "key": x, "value": x, "num_heads": 2, "causal": True})
    yield Sample("masked", {**inputs, "mask": mask, "scale": 0.25})
    yield Sample("aligned", {**inputs, "causal": True, "align": "lower_right"})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield BadCall("heads that do not divide", {**inputs, "num_heads": 4}, ValueError, r"num_heads \* head_dim is 6 in query")


def _benchmark(random: Random) -> dict[str, Any]:
    return {**dict.fromkeys(("query", "key", "value"), random.normal((1, 256, 512))), "num_heads": 8}


@mechanism(tags={"softmax", "quadratic"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def multi_head_attention_without_projections(
    query: Array,
    key: Array,
    value: Array,
    *,
    num_heads: int,
    mask: Booleans | None = None,
    causal: bool = False,
    align: masks.Align | None = None,
    scale: float | None = None,
) -> tuple[Array, Pullback]:
    r"""Attend in each head's share of the features, with nothing learned before or after.

    Self-attention is the call with one array as query, key and value; its gradient is the sum of the three.

    Parameters
    ----------
    query : array, shape (..., query_len, num_heads * head_dim)
        Tokens that ask.
    key : array, shape (..., key_len, num_heads * head_dim)
        Tokens that are compared with.
    value : array, shape (..., key_len, num_heads * value_dim)
        Tokens that are read.
    num_heads : positive int
        Heads.
    mask : bool array or None, broadcastable to (..., num_heads, query_len, key_len), optional
        True where the query may attend. A query that may attend nowhere gives 0.
    causal : bool, optional
        No query attends to a later key.
    align : {"upper_left", "lower_right"} or None, optional
        Whether the first query sits at the first key, or the last query at the last key. Needed by `causal` where
        ``query_len != key_len``.
    scale : float or None, optional
        Default ``1 / sqrt(head_dim)``.

    Returns
    -------
    array, shape (..., query_len, num_heads * value_dim)
        What each head attends to, head after head.

    Notes
    -----
    Sizes: ``head_dim >= 1``.

    .. math::

        Y = [H_1 \dots H_n], \quad H_h = \operatorname{attention}(Q_h, K_h, V_h), \qquad
        \bar Q = [\bar Q_1 \dots \bar Q_n], \quad \bar K = [\bar K_1 \dots \bar K_n], \quad \bar V = [\bar V_1 \dots \bar V_n]

    References
    ----------
    .. [1] Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.2.2, which has a projection before and after.
       arXiv:1706.03762.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x = np.array([[0.0, 100.0], [100.0, 0.0]])
    >>> refattn.multi_head_attention_without_projections(x, x, x, num_heads=2)
    array([[ 50., 100.],
           [100.,  50.]])
    """
    queries, query_pullback = split_heads.vjp(query, num_heads=num_heads)
    keys, key_pullback = split_heads.vjp(key, num_heads=num_heads)
    values, value_pullback = split_heads.vjp(value, num_heads=num_heads)
    attended, attention_pullback = scaled_dot_product_attention.vjp(
        queries, keys, values, mask=mask, causal=causal, align=align, scale=scale
    )
    output, merge_pullback = merge_heads.vjp(attended)

    def pullback(dy: Array) -> Grads:
        d = attention_pullback(merge_pullback(dy)["x"])
        pullbacks = {"query": query_pullback, "key": key_pullback, "value": value_pullback}
        return {name: back(d[name])["x"] for name, back in pullbacks.items()}

    return output, pullback
