"""Where a query may attend: boolean arrays, True = may. Compose them with ``&``, ``|`` and ``~``.

>>> show(causal(4, 4) & sliding_window(4, 4, left=1))
█···
██··
·██·
··██
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from refattn._core.arrays import Booleans, Integers, as_array
from refattn._core.stated import stated

Align: TypeAlias = Literal["upper_left", "lower_right"]


@stated
def causal(
    query_len: int, key_len: int, *, align: Align | None = None, rows: Integers | None = None, columns: Integers | None = None
) -> Booleans:
    """Each query sees its own position and those before it.

    Parameters
    ----------
    query_len : non-negative int
        Number of queries.
    key_len : non-negative int
        Number of keys.
    align : {"upper_left", "lower_right"} or None, optional
        Whether the first query sits at the first key, or the last query at the last key; needed where the numbers differ.
    rows : int array or None, optional
        Only these queries.
    columns : int array or None, optional
        Only these keys.

    Returns
    -------
    bool array, shape (query_len, key_len)
        True where the query may attend.

    Examples
    --------
    >>> show(causal(2, 4, align="lower_right"))
    ███·
    ████
    """
    return distance(query_len, key_len, align=align, rows=rows, columns=columns) <= 0


@stated
def sliding_window(
    query_len: int,
    key_len: int,
    *,
    left: int | None = None,
    right: int | None = None,
    align: Align | None = None,
    rows: Integers | None = None,
    columns: Integers | None = None,
) -> Booleans:
    """Each query sees `left` keys before and `right` keys after its own position; None is no limit.

    Parameters
    ----------
    query_len : non-negative int
        Number of queries.
    key_len : non-negative int
        Number of keys.
    left : non-negative int or None, optional
        Number of keys before the diagonal.
    right : non-negative int or None, optional
        Number of keys after it.
    align : {"upper_left", "lower_right"} or None, optional
        As for `causal`.
    rows : int array or None, optional
        Only these queries.
    columns : int array or None, optional
        Only these keys.

    Returns
    -------
    bool array, shape (query_len, key_len)
        True where the query may attend.
    """
    away = distance(query_len, key_len, align=align, rows=rows, columns=columns)
    return (away >= (-np.inf if left is None else -left)) & (away <= (np.inf if right is None else right))


@stated
def padding(lengths: Any, key_len: int) -> Booleans:
    """Each batch entry has its own number of keys.

    Parameters
    ----------
    lengths : int array, shape (...)
        How many keys count.
    key_len : non-negative int
        How many there are.

    Returns
    -------
    bool array, shape (..., 1, 1, key_len)
        True before each length.
    """
    counted = _integers("lengths", lengths)
    if counted.size and not 0 <= counted.min() <= counted.max() <= key_len:
        raise ValueError(f"lengths runs from {counted.min()} to {counted.max()}, but key_len is {key_len}")
    return np.arange(key_len) < counted[..., None, None, None]


@stated
def documents(query_ids: Any, key_ids: Any) -> Booleans:
    """A query sees the keys of its own document.

    Parameters
    ----------
    query_ids : int array, shape (..., query_len)
        Document of each query.
    key_ids : int array, shape (..., key_len)
        Document of each key.

    Returns
    -------
    bool array, shape (..., query_len, key_len)
        True where the two agree.
    """
    queries, keys = _integers("query_ids", query_ids, axes=1), _integers("key_ids", key_ids, axes=1)
    return queries[..., :, None] == keys[..., None, :]


@stated
def blocks(layout: Booleans, block: tuple[int, int]) -> Booleans:
    """One entry of `layout` for each block of queries by keys.

    Parameters
    ----------
    layout : bool array, shape (..., rows, columns)
        Which blocks take part.
    block : (positive int, positive int)
        Queries and keys of one block.

    Returns
    -------
    bool array, shape (..., rows * queries, columns * keys)
        The mask.
    """
    return np.repeat(np.repeat(_matrix("layout", layout), block[0], axis=-2), block[1], axis=-1)


@stated
def distance(
    query_len: int, key_len: int, *, align: Align | None = None, rows: Integers | None = None, columns: Integers | None = None
) -> Integers:
    """How many positions key j is after query i.

    Parameters
    ----------
    query_len : non-negative int
        Number of queries.
    key_len : non-negative int
        Number of keys.
    align : {"upper_left", "lower_right"} or None, optional
        As for `causal`.
    rows : int array or None, optional
        Only these queries.
    columns : int array or None, optional
        Only these keys.

    Returns
    -------
    int array, shape (query_len, key_len)
        Signed distances.
    """
    if align is None and query_len != key_len:
        raise ValueError(
            f"align is None, but query_len = {query_len} and key_len = {key_len} differ: say whether the first query sits "
            'at the first key (align="upper_left") or the last query at the last key (align="lower_right")'
        )
    offset = key_len - query_len if align == "lower_right" else 0
    queries, keys = _chosen("rows", rows, query_len), _chosen("columns", columns, key_len)
    return keys - (queries[:, None] + offset)


class Summary(NamedTuple):
    """How many blocks a kernel skips, computes without a mask, and computes with one.

    Attributes
    ----------
    kinds : str array, shape (..., rows, columns)
        ``"empty"``, ``"full"`` or ``"partial"``.
    empty, full, partial : int
        How many of each.
    """

    kinds: np.ndarray[Any, Any]
    empty: int
    full: int
    partial: int


@stated
def summary(mask: Booleans, block: tuple[int, int]) -> Summary:
    """Blocks that are empty, full or partial; the last ones may be shorter.

    Parameters
    ----------
    mask : bool array, shape (..., query_len, key_len)
        Where queries may attend.
    block : (positive int, positive int)
        Queries and keys of one block.

    Returns
    -------
    Summary
        The kind of each block, and how many there are.
    """
    allowed = _matrix("mask", mask)
    rows, columns = (np.arange(0, n, b) for n, b in zip(allowed.shape[-2:], block, strict=True))
    some, every = (f.reduceat(f.reduceat(allowed, rows, -2), columns, -1) for f in (np.logical_or, np.logical_and))
    kinds = np.where(every, "full", np.where(some, "partial", "empty"))
    return Summary(kinds, int((~some).sum()), int(every.sum()), int((some & ~every).sum()))


def picture(mask: Booleans) -> str:
    """One character for each pair of a query (down) and a key (across).

    Parameters
    ----------
    mask : bool array, shape (query_len, key_len)
        Where queries may attend.

    Returns
    -------
    str
        One line for each query.
    """
    allowed = _matrix("mask", mask)
    if allowed.ndim > 2:
        raise ValueError(f"mask has {allowed.ndim} axes, but must have 2: choose one batch entry and head")
    return "\n".join("".join("·█"[int(seen)] for seen in row) for row in allowed)


def show(mask: Booleans) -> None:
    """Print `picture(mask)`.

    Parameters
    ----------
    mask : bool array, shape (query_len, key_len)
        Where queries may attend.
    """
    print(picture(mask))


def _integers(name: str, x: Any, *, axes: int = 0) -> Integers:
    array = as_array(x, name)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} is {array.dtype}, but must be an integer array")
    if array.ndim < axes:
        raise ValueError(f"{name} has {array.ndim} axes, but needs at least {axes}")
    return array


def _chosen(name: str, some: Any, count: int) -> Integers:
    """All of `count` positions, or those given."""
    if some is None:
        return np.arange(count)
    chosen = _integers(name, some, axes=1)
    if chosen.ndim > 1:
        raise ValueError(f"{name} has {chosen.ndim} axes, but must have 1")
    if chosen.size and not 0 <= chosen.min() <= chosen.max() < count:
        raise ValueError(f"{name} runs from {chosen.min()} to {chosen.max()}, but there are {count}")
    return chosen.astype(int, copy=False)


def _matrix(name: str, x: Any) -> Booleans:
    array = as_array(x, name)
    if array.dtype != bool:
        raise TypeError(f"{name} is {array.dtype}, but must be bool, where True may attend")
    if array.ndim < 2:
        raise ValueError(f"{name} has {array.ndim} axes, but needs at least 2")
    return array
