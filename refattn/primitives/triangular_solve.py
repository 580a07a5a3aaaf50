"""Linear equations whose matrix is triangular, by substitution."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn._core import Array, Grads, Pullback, Random, Sample, mechanism


def _samples(random: Random) -> Iterator[Sample]:
    yield Sample("stacked", {"lower": random.normal((2, 3, 4, 4)), "b": random.normal((2, 3, 4, 2))})
    yield Sample("one row", {"lower": random.normal((1, 1)), "b": random.normal((1, 3))})
    yield Sample("no rows", {"lower": random.normal((2, 0, 0)), "b": random.normal((2, 0, 3))})


def _substituted(lower: Array, b: Array) -> Array:
    x = np.zeros_like(b)
    for i in range(b.shape[-2]):
        x[..., i, :] = b[..., i, :] - (lower[..., i, :i, None] * x[..., :i, :]).sum(axis=-2)
    return x


@mechanism(samples=_samples)
def triangular_solve(lower: Array, b: Array) -> tuple[Array, Pullback]:
    r"""Solve equations of which each one holds a new unknown, with factor 1, and those of the equations before it.

    Parameters
    ----------
    lower : array, shape (..., rows, rows)
        What stands below the diagonal counts; the diagonal counts as 1 and the rest as 0, whatever they hold.
    b : array, shape (..., rows, columns)
        Right-hand sides, one a column.

    Returns
    -------
    array, shape (..., rows, columns)
        Solutions, one a column.

    Notes
    -----
    With L the strictly lower part:

    .. math::

        (I + L)\, X = B, \quad x_i = b_i - \sum_{j < i} L_{i j}\, x_j, \qquad
        \bar B = (I + L)^{-\top} \bar X, \quad \bar L_{i j} = -[i > j]\, \bar b_i \cdot x_j

    References
    ----------
    .. [1] Golub, Van Loan, "Matrix Computations", 4th edition, 2013: forward substitution.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.triangular_solve(np.array([[7.0, 7.0], [3.0, 7.0]]), np.array([[1.0], [5.0]]))
    array([[1.],
           [2.]])
    """
    x = _substituted(lower, b)

    def pullback(dx: Array) -> Grads:
        # Read from the last row and column, the transpose is lower triangular too.
        d_b = np.flip(_substituted(np.flip(lower.swapaxes(-1, -2), (-1, -2)), np.flip(dx, -2)), -2)
        below = np.tri(lower.shape[-1], k=-1, dtype=bool)
        return {"lower": np.where(below, -d_b @ x.swapaxes(-1, -2), 0), "b": d_b}

    return x, pullback
