"""Rows by number, and sums of rows that share a number: everything ragged is made of these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refattn._core import Array, BadCall, Grads, Integers, Pullback, Random, Sample, mechanism


def _gather_samples(random: Random) -> Iterator[Sample]:
    yield Sample("repeated", {"x": random.normal((4, 3, 2)), "indices": np.asarray([[0, 2, 2], [3, 0, 0]])})
    yield Sample("numbers", {"x": random.normal(5), "indices": random.integers(0, 5, 7)})
    yield Sample("one", {"x": random.normal((3, 2)), "indices": np.asarray(1)})
    yield Sample("none", {"x": random.normal((0, 2)), "indices": random.integers(0, 1, 0)})


def _gather_bad_calls(random: Random) -> Iterator[BadCall]:
    x = random.normal((4, 2))
    yield BadCall("negative", {"x": x, "indices": np.asarray([0, -1])}, ValueError, "indices runs from -1 to 0, but indexes rows = 4")
    yield BadCall("too large", {"x": x, "indices": np.asarray([4])}, ValueError, "indices runs from 4 to 4, but indexes rows = 4")


@mechanism(samples=_gather_samples, bad_calls=_gather_bad_calls)
def gather(x: Array, indices: Integers) -> tuple[Array, Pullback]:
    r"""Rows of an array, by number.

    Parameters
    ----------
    x : array, shape (rows, *features)
        Rows.
    indices : int array, shape (*picked), indexing rows
        Which to take.

    Returns
    -------
    array, shape (*picked, *features)
        These rows.

    Notes
    -----
    .. math::

        y_p = x_{n_p}, \qquad \bar x_i = \sum_{p : n_p = i} \bar y_p

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.gather(np.array([1.0, 2.0, 3.0]), np.array([2, 0, 2]))
    array([3., 1., 3.])
    """

    def pullback(dy: Array) -> Grads:
        return {"x": scatter_add(np.zeros_like(x), dy, indices)}

    return x[indices], pullback


def _scatter_samples(random: Random) -> Iterator[Sample]:
    indices = np.asarray([[0, 2, 2], [3, 0, 0]])
    yield Sample("repeated", {"x": random.normal((4, 2)), "updates": random.normal((2, 3, 2)), "indices": indices})
    yield Sample("numbers", {"x": random.normal(5), "updates": random.normal(7), "indices": random.integers(0, 5, 7)})


@mechanism(samples=_scatter_samples)
def scatter_add(x: Array, updates: Array, indices: Integers) -> tuple[Array, Pullback]:
    r"""Add each update to the row of its number; updates of the same row add up.

    Parameters
    ----------
    x : array, shape (rows, *features)
        Rows to add to.
    updates : array, shape (*picked, *features)
        What is added.
    indices : int array, shape (*picked), indexing rows
        To which row.

    Returns
    -------
    array, shape (rows, *features)
        Sums.

    Notes
    -----
    .. math::

        y_i = x_i + \sum_{p : n_p = i} u_p, \qquad \bar x_i = \bar y_i, \quad \bar u_p = \bar y_{n_p}

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.scatter_add(np.zeros(3), np.array([1.0, 2.0, 4.0]), np.array([2, 0, 2]))
    array([2., 0., 5.])
    """
    total = x.copy()
    np.add.at(total, indices, updates)
    return total, lambda dy: {"x": dy, "updates": dy[indices]}


def _embedding_samples(random: Random) -> Iterator[Sample]:
    inputs = {"weight": random.normal((5, 3)), "indices": np.asarray([[1, 4, 1], [0, 2, 4]])}
    yield Sample("tokens", inputs)
    yield Sample("padding", {**inputs, "padding_idx": 4})


def _embedding_bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = {"weight": random.normal((5, 3)), "indices": np.asarray([1, 4])}
    yield BadCall("no such row", {**inputs, "padding_idx": 5}, ValueError, "padding_idx is 5, but weight has 5 rows")


def _embedding_benchmark(random: Random) -> Mapping[str, Any]:
    return {"weight": random.normal((32000, 256)), "indices": random.integers(0, 32000, (8, 512))}


def _is_padding(weight: Array, indices: Integers, padding_idx: int | None) -> Array | bool:
    if padding_idx is not None and padding_idx >= len(weight):
        raise ValueError(f"padding_idx is {padding_idx}, but weight has {len(weight)} rows")
    return False if padding_idx is None else (indices == padding_idx)[..., None]


@mechanism(samples=_embedding_samples, bad_calls=_embedding_bad_calls)
def padded_embedding(weight: Array, indices: Integers, *, padding_idx: int | None = None) -> tuple[Array, Pullback]:
    r"""A learned vector for each token, and zeros for padding.

    Parameters
    ----------
    weight : array, shape (vocabulary, model_dim)
        One row for each token.
    indices : int array, shape (*picked), indexing vocabulary
        Tokens.
    padding_idx : non-negative int or None, optional
        The token that stands for padding.

    Returns
    -------
    array, shape (*picked, model_dim)
        Their vectors.

    Notes
    -----
    .. math::

        y_p = [n_p \ne o]\, W_{n_p}, \qquad \bar W_i = [i \ne o] \sum_{p : n_p = i} \bar y_p

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.padded_embedding(np.array([[1.0], [2.0]]), np.array([1, 0, 1]), padding_idx=0)
    array([[2.],
           [0.],
           [2.]])
    """
    padding = _is_padding(weight, indices, padding_idx)
    vectors, gather_pullback = gather.vjp(weight, indices)

    def pullback(dy: Array) -> Grads:
        return {"weight": gather_pullback(np.where(padding, 0, dy))["x"]}

    return np.where(padding, 0, vectors), pullback


@mechanism(
    samples=_embedding_samples,
    bad_calls=_embedding_bad_calls,
    benchmark=_embedding_benchmark,
    inert={"padding_idx"},
    gradient_of=padded_embedding,
    like=padded_embedding,
)
def embedding(weight: Array, indices: Integers, *, padding_idx: int | None = None) -> tuple[Array, Pullback]:
    r"""A learned vector for each token.

    The row of `padding_idx` is read as it stands, but is not learned: its gradient is 0, as in PyTorch. With it, the pullback
    is that of `padded_embedding`.

    Returns
    -------
    array, shape (*picked, model_dim)
        Their vectors.

    Notes
    -----
    .. math::

        y_p = W_{n_p}, \qquad \bar W_i = [i \ne o] \sum_{p : n_p = i} \bar y_p

    References
    ----------
    .. [1] Bengio et al., "A Neural Probabilistic Language Model", JMLR 3, 2003, section 2.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> y, pullback = refattn.embedding.vjp(np.array([[1.0], [2.0]]), np.array([1, 0, 1]), padding_idx=0)
    >>> y.ravel(), pullback(np.ones((3, 1)))["weight"].ravel()
    (array([2., 1., 2.]), array([0., 2.]))
    """
    _, pullback = padded_embedding.vjp(weight, indices, padding_idx=padding_idx)
    return weight[indices], pullback


def _segment_samples(random: Random) -> Iterator[Sample]:
    segments = np.asarray([2, 0, 2, 0, 2])
    yield Sample("vectors", {"x": random.normal((5, 2)), "segments": segments, "num_segments": 4})
    yield Sample("numbers", {"x": random.normal(5), "segments": segments, "num_segments": 3})


def _segment_bad_calls(random: Random) -> Iterator[BadCall]:
    call = {"x": random.normal((2, 3)), "segments": np.asarray([0, 2]), "num_segments": 2}
    yield BadCall("no such segment", call, ValueError, "segments runs from 0 to 2, but indexes num_segments = 2")


@mechanism(samples=_segment_samples, bad_calls=_segment_bad_calls)
def segment_sum(x: Array, segments: Integers, *, num_segments: int) -> tuple[Array, Pullback]:
    r"""Sum of the rows of each segment; 0 for a segment without rows.

    Parameters
    ----------
    x : array, shape (rows, *features)
        Rows.
    segments : int array, shape (rows), indexing num_segments
        Segment of each row, in any order.
    num_segments : non-negative int
        How many segments there are.

    Returns
    -------
    array, shape (num_segments, *features)
        Sums.

    Notes
    -----
    .. math::

        y_s = \sum_{i : n_i = s} x_i, \qquad \bar x_i = \bar y_{n_i}

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.segment_sum(np.array([1.0, 2.0, 4.0]), np.array([1, 0, 1]), num_segments=3)
    array([2., 5., 0.])
    """
    zeros = np.zeros_like(x, shape=(num_segments, *x.shape[1:]))
    total, scatter_pullback = scatter_add.vjp(zeros, x, segments)
    return total, lambda dy: {"x": scatter_pullback(dy)["updates"]}


def _segment_softmax_samples(random: Random) -> Iterator[Sample]:
    yield from _segment_samples(random)
    yield Sample("far from zero", {"x": 1000 * random.normal((5, 2)), "segments": np.asarray([1, 0, 1, 0, 1]), "num_segments": 2})


@mechanism(tags={"weights"}, samples=_segment_softmax_samples, bad_calls=_segment_bad_calls)
def segment_softmax(x: Array, segments: Integers, *, num_segments: int) -> tuple[Array, Pullback]:
    r"""Softmax over the rows of each segment.

    Parameters
    ----------
    x : array, shape (rows, *features)
        Scores.
    segments : int array, shape (rows), indexing num_segments
        Segment of each row, in any order.
    num_segments : non-negative int
        How many segments there are.

    Returns
    -------
    array, shape (rows, *features)
        Weights, which sum to 1 over each segment; zeros for a segment whose scores are all :math:`-\infty`.

    Notes
    -----
    .. math::

        y_i = \frac{e^{x_i}}{\sum_{j : n_j = n_i} e^{x_j}}, \qquad
        \bar x_i = y_i \Bigl(\bar y_i - \sum_{j : n_j = n_i} y_j \bar y_j\Bigr)

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.segment_softmax(np.log([1.0, 7.0, 3.0]), np.array([1, 0, 1]), num_segments=2)
    array([0.25, 1.  , 0.75])
    """
    largest = np.full_like(x, -np.inf, shape=(num_segments, *x.shape[1:]))
    np.maximum.at(largest, segments, x)
    shift = np.where(np.isneginf(largest), 0, largest)
    exp = np.exp(x - shift[segments])
    total = segment_sum(exp, segments, num_segments=num_segments)
    y = exp / np.where(total == 0, 1, total)[segments]

    def pullback(dy: Array) -> Grads:
        inner = segment_sum(y * dy, segments, num_segments=num_segments)
        return {"x": y * (dy - inner[segments])}

    return y, pullback
