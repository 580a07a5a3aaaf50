"""Positions as learned vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism
from refattn.positional.maps import First, spread
from refattn.primitives.arithmetic import add
from refattn.primitives.indexing import gather


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 3, 4)), "table": random.normal((5, 4))}
    yield Sample("longer table", inputs)
    yield Sample("later", {**inputs, "offset": 2})
    yield Sample("one sequence", {"x": random.normal((3, 4)), "table": random.normal((3, 4))})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = {"x": random.normal((2, 3, 4)), "table": random.normal((5, 4)), "offset": 3}
    yield BadCall("beyond the table", inputs, ValueError, r"rows is 5, but must be at least offset \+ length")


def _benchmark(random: Random) -> dict[str, Any]:
    return {"x": random.normal((8, 512, 768)), "table": random.normal((512, 768))}


@mechanism(samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def add_learned(x: Array, table: Array, *, offset: int = 0) -> tuple[Array, Pullback]:
    r"""Add to each token the learned vector of its position.

    Parameters
    ----------
    x : array, shape (..., length, model_dim)
        Tokens.
    table : array, shape (rows, model_dim)
        One vector for each position that a token may have.
    offset : non-negative int, optional
        Position of the first token.

    Returns
    -------
    array, shape (..., length, model_dim)
        Tokens that know their position.

    Notes
    -----
    Sizes: ``rows >= offset + length``.

    .. math::

        y_t = x_t + E_{t_0 + t}, \qquad \bar x = \bar y, \quad \bar E_{t_0 + t} = \sum \bar y_t

    with the sum over all leading axes; what is not read of the table has gradient 0.

    References
    ----------
    .. [1] Gehring et al., "Convolutional Sequence to Sequence Learning", ICML 2017. arXiv:1705.03122.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.add_learned(np.zeros((2, 1)), np.array([[1.0], [2.0], [3.0]]), offset=1)
    array([[2.],
           [3.]])
    """
    read, read_pullback = gather.vjp(table, offset + np.arange(x.shape[-2]))
    output, add_pullback = add.vjp(x, read)

    def pullback(dy: Array) -> Grads:
        d_add = add_pullback(dy)
        return {"x": d_add["a"], "table": read_pullback(d_add["b"])["x"]}

    return output, pullback


def _map_samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 5, 3, 4)), "row_table": random.normal((6, 2)), "column_table": random.normal((4, 3))}
    yield Sample("row first", inputs)
    yield Sample("column first", {**inputs, "first": "width"})


def _map_bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = {"x": random.normal((2, 5, 3, 4)), "row_table": random.normal((3, 2)), "column_table": random.normal((4, 3))}
    short = {**inputs, "row_table": random.normal((2, 2))}
    yield BadCall("more rows than vectors", short, ValueError, "rows is 2, but must be at least height")
    other = {**inputs, "column_table": random.normal((4, 2))}
    yield BadCall("parts that do not make up the channels", other, ValueError, r"row_dim \+ column_dim is 5 in x, but should be 4")


def _map_benchmark(random: Random) -> dict[str, Any]:
    tables = {"row_table": random.normal((50, 128)), "column_table": random.normal((50, 128))}
    return {"x": random.normal((8, 256, 32, 32)), **tables}


@mechanism(samples=_map_samples, bad_calls=_map_bad_calls, benchmark=_map_benchmark)
def add_learned_2d(x: Array, row_table: Array, column_table: Array, *, first: First = "height") -> tuple[Array, Pullback]:
    r"""Add to each position of a feature map the learned vectors of its row and of its column.

    Parameters
    ----------
    x : array, shape (batch, row_dim + column_dim, height, width)
        Feature maps.
    row_table : array, shape (rows, row_dim)
        One vector for each row that a map may have.
    column_table : array, shape (columns, column_dim)
        One vector for each column.
    first : {"height", "width"}, optional
        Which table's vectors are added to the lower channels; DETR's code has the column's there.

    Returns
    -------
    array, shape (batch, row_dim + column_dim, height, width)
        Feature maps that know their positions.

    Notes
    -----
    Sizes: ``rows >= height``, ``columns >= width``.

    .. math::

        y_{:, i, j} = x_{:, i, j} + [R_i; S_j], \qquad \bar x = \bar y, \quad
        [\bar R_i; \cdot] = \sum_j \bar y_{:, i, j}, \quad [\cdot\,; \bar S_j] = \sum_i \bar y_{:, i, j}

    with the sums over the batch too; what is not read of a table has gradient 0.

    References
    ----------
    .. [1] Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020. arXiv:2005.12872.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> rows, columns = np.array([[1.0], [2.0]]), np.array([[3.0], [4.0], [5.0]])
    >>> refattn.add_learned_2d(np.zeros((1, 2, 2, 3)), rows, columns)
    array([[[[1., 1., 1.],
             [2., 2., 2.]],
    <BLANKLINE>
            [[3., 4., 5.],
             [3., 4., 5.]]]])
    """
    rows, row_pullback = gather.vjp(row_table, np.arange(x.shape[2]))
    columns, column_pullback = gather.vjp(column_table, np.arange(x.shape[3]))
    encoding, spread_pullback = spread(rows, columns, first)
    output, add_pullback = add.vjp(x, encoding)

    def pullback(dy: Array) -> Grads:
        d_add = add_pullback(dy)
        d_rows, d_columns = spread_pullback(d_add["b"])
        return {"x": d_add["a"], "row_table": row_pullback(d_rows)["x"], "column_table": column_pullback(d_columns)["x"]}

    return output, pullback
