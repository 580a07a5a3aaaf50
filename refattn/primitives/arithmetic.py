"""Sums and products of arrays that broadcast, and of matrices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism, unbroadcast


def _samples(random: Random) -> Iterator[Sample]:
    yield Sample("same shape", {"a": random.normal((2, 3)), "b": random.normal((2, 3))})
    yield Sample("one gate a channel", {"a": random.normal((2, 3, 2, 2)), "b": random.normal((2, 3, 1, 1))})
    yield Sample("all pairs", {"a": random.normal((2, 3, 1)), "b": random.normal((4,))})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    yield BadCall("shapes apart", {"a": random.normal((2, 3)), "b": random.normal((2, 1, 2))}, ValueError, "a and b do not broadcast")


@mechanism(samples=_samples, bad_calls=_bad_calls)
def add(a: Array, b: Array) -> tuple[Array, Pullback]:
    r"""Sum of two arrays.

    Parameters
    ----------
    a : array, broadcastable to (...)
        One.
    b : array, broadcastable to (...)
        The other.

    Returns
    -------
    array, shape (...)
        Their sum.

    Notes
    -----
    .. math::

        y = a + b, \qquad \bar a = \sum \bar y, \quad \bar b = \sum \bar y

    with sums over the axes along which an array was broadcast.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.add(np.array([[1.0], [2.0]]), np.array([0.0, 0.5]))
    array([[1. , 1.5],
           [2. , 2.5]])
    """
    return a + b, lambda dy: {"a": unbroadcast(dy, a.shape), "b": unbroadcast(dy, b.shape)}


@mechanism(samples=_samples, bad_calls=_bad_calls, like=add)
def multiply(a: Array, b: Array) -> tuple[Array, Pullback]:
    r"""Product of two arrays, element by element.

    Returns
    -------
    array, shape (...)
        Their product.

    Notes
    -----
    .. math::

        y = a \odot b, \qquad \bar a = \sum b \odot \bar y, \quad \bar b = \sum a \odot \bar y

    with sums over the axes along which an array was broadcast.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.multiply(np.array([[1.0], [2.0]]), np.array([0.0, 0.5]))
    array([[0. , 0.5],
           [0. , 1. ]])
    """
    return a * b, lambda dy: {"a": unbroadcast(b * dy, a.shape), "b": unbroadcast(a * dy, b.shape)}


def _weighted_samples(random: Random) -> Iterator[Sample]:
    inputs = {"a": random.normal((2, 3)), "b": random.normal((2, 3))}
    yield Sample("learned", {**inputs, "alpha": np.asarray(random.normal()), "beta": np.asarray(random.normal())})
    yield Sample("one for each column", {**inputs, "alpha": random.normal(3), "beta": 0.25})


def _weighted_bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = {"a": random.normal((2, 3)), "b": random.normal((2, 3)), "alpha": 0.5, "beta": 0.5}
    yield BadCall("another shape", {**inputs, "b": random.normal((1, 3))}, ValueError, "the leading shape is")
    yield BadCall("too many weights", {**inputs, "alpha": random.normal(2)}, ValueError, "alpha .* does not broadcast")


@mechanism(samples=_weighted_samples, bad_calls=_weighted_bad_calls)
def weighted_sum(a: Array, b: Array, alpha: Array | float, beta: Array | float) -> tuple[Array, Pullback]:
    r"""Mix two branches of one shape by learned weights.

    Parameters
    ----------
    a : array, shape (...)
        One.
    b : array, shape (...)
        The other.
    alpha : float or array, broadcastable to (...)
        Weight of `a`; a number has no gradient, an array has one.
    beta : float or array, broadcastable to (...)
        Weight of `b`.

    Returns
    -------
    array, shape (...)
        Their weighted sum.

    Notes
    -----
    .. math::

        y = \alpha \odot a + \beta \odot b, \qquad
        \bar a = \alpha \odot \bar y, \quad \bar b = \beta \odot \bar y, \quad
        \bar\alpha = \sum a \odot \bar y, \quad \bar\beta = \sum b \odot \bar y

    with sums over the axes along which a weight was broadcast.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.weighted_sum(np.array([1.0, 2.0]), np.array([4.0, 8.0]), 0.5, 0.25)
    array([1.5, 3. ])
    """

    def pullback(dy: Array) -> Grads:
        return {
            "a": alpha * dy,
            "b": beta * dy,
            "alpha": unbroadcast(a * dy, np.shape(alpha)),
            "beta": unbroadcast(b * dy, np.shape(beta)),
        }

    return alpha * a + beta * b, pullback


def _matmul_samples(random: Random) -> Iterator[Sample]:
    yield Sample("stacked", {"a": random.normal((2, 3, 4)), "b": random.normal((2, 4, 5))})
    yield Sample("nothing to sum", {"a": random.normal((3, 0)), "b": random.normal((0, 2))})


@mechanism(samples=_matmul_samples)
def matmul(a: Array, b: Array) -> tuple[Array, Pullback]:
    r"""Product of matrices.

    Parameters
    ----------
    a : array, shape (..., rows, in_features)
        One.
    b : array, shape (..., in_features, out_features)
        The other.

    Returns
    -------
    array, shape (..., rows, out_features)
        Their product.

    Notes
    -----
    .. math::

        Y = A B, \qquad \bar A = \bar Y B^\top, \quad \bar B = A^\top \bar Y

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.matmul(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]))
    array([[11.]])
    """

    def pullback(dy: Array) -> Grads:
        return {"a": dy @ b.swapaxes(-1, -2), "b": a.swapaxes(-1, -2) @ dy}

    return a @ b, pullback
