"""Distances between the rows of two matrices: what attention by distance and means over neighbours compare by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn._core import Array, BadCall, Booleans, Grads, Pullback, Random, Sample, mechanism
from refattn.primitives.attention_stages import masked_matmul, zero_unless


def _samples(random: Random) -> Iterator[Sample]:
    yield Sample("stacked", {"a": random.normal((2, 3, 4)), "b": random.normal((2, 5, 4))})
    yield Sample("nothing to sum", {"a": random.normal((3, 0)), "b": random.normal((2, 0))})
    far = {"a": random.normal((2, 3, 4)), "b": random.normal((2, 5, 4)), "mask": random.booleans(0.6, (3, 5))}
    far["b"][0, 2, 1], far["mask"][:, 2] = np.nan, False
    far["a"][1, 0, 2], far["mask"][0] = np.inf, False
    yield Sample("some pairs", far)


def _bad_calls(random: Random) -> Iterator[BadCall]:
    call = {"a": random.normal((3, 4)), "b": random.normal((2, 5))}
    yield BadCall("other features", call, ValueError, "in_features is 5 in b, but 4 in a")


@mechanism(samples=_samples, bad_calls=_bad_calls)
def squared_distances(a: Array, b: Array, *, mask: Booleans | None = None) -> tuple[Array, Pullback]:
    r"""Squared Euclidean distance of each row to each other row.

    Parameters
    ----------
    a : array, shape (..., rows, in_features)
        Rows.
    b : array, shape (..., columns, in_features)
        The others.
    mask : bool array or None, broadcastable to (..., rows, columns), optional
        True where two rows are compared; elsewhere their distance is 0, and what stands in them, NaN included, reaches no gradient.

    Returns
    -------
    array, shape (..., rows, columns)
        Sums of squares of differences; rows that are equal have exactly 0, which inner products would not give.

    Notes
    -----
    .. math::

        y_{ij} = \|a_i - b_j\|^2, \qquad
        \bar a_i = 2 \sum_j (a_i - b_j)\, \bar y_{ij}, \quad \bar b_j = 2 \sum_i (b_j - a_i)\, \bar y_{ij}

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.squared_distances(np.array([[0.0, 0.0], [3.0, 0.0]]), np.array([[3.0, 4.0]]))
    array([[25.],
           [16.]])
    """
    y = np.zeros_like(a, shape=(*a.shape[:-1], b.shape[-2]))
    for k in range(a.shape[-1]):  # one feature at a time, so that no array has three axes of rows, columns and features
        y += (a[..., :, None, k] - b[..., None, :, k]) ** 2
    compared = np.broadcast_to(True if mask is None else mask, y.shape)

    def pullback(dy: Array) -> Grads:
        d = np.where(compared, dy, 0)
        of_a, of_b = (zero_unless(np.asarray(compared.any(axis=axis)), x) for axis, x in ((-1, a), (-2, b)))
        return {
            "a": 2 * (d.sum(axis=-1)[..., None] * of_a - masked_matmul(d, b, compared)),
            "b": 2 * (d.sum(axis=-2)[..., None] * of_b - masked_matmul(d.swapaxes(-1, -2), a, compared.swapaxes(-1, -2))),
        }

    return np.where(compared, y, 0), pullback
