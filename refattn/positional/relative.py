"""How far one position is from another, as a score: the query times a learned vector of the distance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism
from refattn.primitives.arithmetic import add
from refattn.primitives.linear import linear


def _samples(random: Random) -> Iterator[Sample]:
    yield Sample("heads", {"query": random.normal((2, 3, 4, 5)), "table": random.normal((7, 5))})
    yield Sample("one position", {"query": random.normal((1, 2)), "table": random.normal((1, 2))})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = {"query": random.normal((4, 5)), "table": random.normal((8, 5))}
    yield BadCall("too many distances", inputs, ValueError, r"2 \* length - 1 is 8 in table, but should be 7")
    yield BadCall("no positions", {**inputs, "query": random.normal((0, 5))}, ValueError, "length")


def _benchmark(random: Random) -> dict[str, Any]:
    return {"query": random.normal((1, 8, 256, 64)), "table": random.normal((511, 64))}


@mechanism(samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def relative_logits_1d(query: Array, table: Array) -> tuple[Array, Pullback]:
    r"""Score each key by how far before or after the query it stands.

    These are scores before the scale, to add to the products of queries and keys. The usual way to compute them, pad and reshape
    until each row is shifted by one, takes the same entries.

    Parameters
    ----------
    query : array, shape (..., length, head_dim)
        Queries; all leading axes share the table.
    table : array, shape (2 * length - 1, head_dim)
        One vector for each distance from key to query: the first is for a key ``length - 1`` positions before the query.

    Returns
    -------
    array, shape (..., length, length)
        One score for each query and key.

    Notes
    -----
    Sizes: ``length >= 1``.

    .. math::

        s_{ij} = q_i^\top r_{j - i}, \qquad
        \bar q_i = \sum_j \bar s_{ij}\, r_{j - i}, \quad \bar r_m = \sum_{j - i = m} \bar s_{ij}\, q_i

    with the last sum over all leading axes too.

    References
    ----------
    .. [1] Bello et al., "Attention Augmented Convolutional Networks", ICCV 2019, section 3.1. arXiv:1904.09925.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.relative_logits_1d(np.array([[1.0], [1.0], [10.0]]), np.array([[-2.0], [-1.0], [0.0], [1.0], [2.0]]))
    array([[  0.,   1.,   2.],
           [ -1.,   0.,   1.],
           [-20., -10.,   0.]])
    """
    length = query.shape[-2]
    scores, scores_pullback = linear.vjp(query, table)  # of each query with every distance
    rows = np.arange(length)[:, None]
    distances = np.arange(length) - rows + length - 1

    def pullback(dy: Array) -> Grads:
        d_scores = np.zeros_like(scores)
        d_scores[..., rows, distances] = dy  # no distance occurs twice in a row
        d_linear = scores_pullback(d_scores)
        return {"query": d_linear["x"], "table": d_linear["weight"]}

    return scores[..., rows, distances], pullback


def _map_samples(random: Random) -> Iterator[Sample]:
    tables = {"row_table": random.normal((3, 4)), "column_table": random.normal((5, 4))}
    yield Sample("heads", {"query": random.normal((2, 2, 2, 3, 4)), **tables})
    yield Sample("one map", {"query": random.normal((2, 3, 4)), **tables})


def _map_bad_calls(random: Random) -> Iterator[BadCall]:
    tables = {"row_table": random.normal((5, 4)), "column_table": random.normal((3, 4))}
    yield BadCall("tables swapped", {"query": random.normal((2, 3, 4)), **tables}, ValueError, r"2 \* height - 1 is 5 in row_table")


def _map_benchmark(random: Random) -> dict[str, Any]:
    tables = {"row_table": random.normal((31, 64)), "column_table": random.normal((31, 64))}
    return {"query": random.normal((1, 8, 16, 16, 64)), **tables}


@mechanism(samples=_map_samples, bad_calls=_map_bad_calls, benchmark=_map_benchmark)
def relative_logits_2d(query: Array, row_table: Array, column_table: Array) -> tuple[Array, Pullback]:
    r"""Score each position of a map by how far above or below, and how far left or right of the query it stands.

    Parameters
    ----------
    query : array, shape (..., height, width, head_dim)
        Queries of a feature map; all leading axes, heads among them, share the tables.
    row_table : array, shape (2 * height - 1, head_dim)
        One vector for each distance in rows: the first is for a key ``height - 1`` rows above the query.
    column_table : array, shape (2 * width - 1, head_dim)
        One vector for each distance in columns: the first is for a key ``width - 1`` columns to the left.

    Returns
    -------
    array, shape (..., height * width, height * width)
        One score for each query and key, both in row-major order; before the scale.

    Notes
    -----
    Sizes: ``height >= 1``, ``width >= 1``.

    With :math:`(i_y, i_x)` the row and the column of position i:

    .. math::

        s_{ij} = q_i^\top r^H_{j_y - i_y} + q_i^\top r^W_{j_x - i_x}, \qquad
        \bar q_i = \sum_j \bar s_{ij}\, (r^H_{j_y - i_y} + r^W_{j_x - i_x}), \quad
        \bar r^H_m = \sum_{j_y - i_y = m} \bar s_{ij}\, q_i, \quad \bar r^W_m = \sum_{j_x - i_x = m} \bar s_{ij}\, q_i

    References
    ----------
    .. [1] Bello et al., "Attention Augmented Convolutional Networks", ICCV 2019, section 3.1. arXiv:1904.09925.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> rows, columns = np.array([[-10.0], [0.0], [10.0]]), np.array([[-1.0], [0.0], [1.0]])
    >>> refattn.relative_logits_2d(np.ones((2, 2, 1)), rows, columns)
    array([[  0.,   1.,  10.,  11.],
           [ -1.,   0.,   9.,  10.],
           [-10.,  -9.,   0.,   1.],
           [-11., -10.,  -1.,   0.]])
    """
    *lead, height, width, _ = query.shape
    down, down_pullback = relative_logits_1d.vjp(query.swapaxes(-2, -3), row_table)  # (..., width, height, height)
    across, across_pullback = relative_logits_1d.vjp(query, column_table)  # (..., height, width, width)
    total, add_pullback = add.vjp(down.swapaxes(-2, -3)[..., :, None], across[..., None, :])

    def pullback(dy: Array) -> Grads:
        d_add = add_pullback(dy.reshape(total.shape))
        d_down = down_pullback(d_add["a"][..., 0].swapaxes(-2, -3))
        d_across = across_pullback(d_add["b"][..., 0, :])
        return {
            "query": d_down["query"].swapaxes(-2, -3) + d_across["query"],
            "row_table": d_down["table"],
            "column_table": d_across["table"],
        }

    return total.reshape(*lead, height * width, height * width), pullback
