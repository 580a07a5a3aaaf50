"""Arrays in the one form for which a kernel is compiled: C-contiguous, aligned, native and read-only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, Booleans, Integers


class Pairs(NamedTuple):
    """One number for each pair of a query and a key, stored as small as it was given.

    Attributes
    ----------
    values : array, shape (n)
        The numbers in a row; empty where the option is absent.
    start : int array, shape (batch * heads)
        Where each head begins in `values`; heads that share their numbers begin at the same place.
    query_step, key_step : int
        From one query or key to the next; 0 along an axis of size 1.
    """

    values: Array | Booleans
    start: Integers
    query_step: int
    key_step: int


def packed(x: Any, dtype: Any) -> np.ndarray[Any, Any]:
    """`x` itself where it already has the form, else a copy."""
    if type(x) is np.ndarray and x.dtype == dtype and not x.flags.writeable and x.flags.c_contiguous and x.flags.aligned:
        return x
    view = np.require(x, dtype=dtype, requirements=("C", "A")).view()
    view.flags.writeable = False
    return view


def cap_of(softcap: float | None, dtype: Any) -> float:
    """A cap that a dtype holds together with its inverse: what is larger than all scores caps none. 0 where there is none."""
    if softcap is None:
        return 0.0
    kind = np.finfo(dtype)
    return min(max(softcap, 4 * float(kind.tiny)), float(kind.max) ** 0.5)


def rows_of(x: Array, dtype: Any) -> Array:
    """`x` with all its axes but the last two as one, packed."""
    return packed(x, dtype).reshape(math.prod(x.shape[:-2]), *x.shape[-2:])


def pairs(x: Any, shape: tuple[int, ...], dtype: Any) -> Pairs:
    """An array broadcastable to ``shape = (*lead, query_len, key_len)``, or None; what it is broadcast to is not made."""
    lead = shape[:-2]
    if x is None:
        return Pairs(packed((), dtype), packed(np.zeros(math.prod(lead)), np.int64), 0, 0)
    np.broadcast_to(x, shape)  # refuses what does not fit
    full = np.reshape(x, (1,) * (len(shape) - np.ndim(x)) + np.shape(x))
    *given, queries, keys = full.shape
    start = np.arange(math.prod(given)).reshape(given) * (queries * keys)
    return Pairs(
        packed(full, dtype).reshape(full.size),
        packed(np.broadcast_to(start, lead).reshape(math.prod(lead)), np.int64),
        keys if queries > 1 else 0,
        1 if keys > 1 else 0,
    )


class Groups(NamedTuple):
    """Heads that one thread has to visit in turn: group g is ``members[bounds[g] : bounds[g + 1]]``."""

    members: Integers
    bounds: Integers


def sharing(starts: Sequence[Integers], count: int) -> Groups:
    """Groups of the `count` heads, such that heads of two groups have no element in common in any of the arrays.

    With two arrays that are shared in different ways there is one group: exact groups are not worth their code.
    """
    shared = [start for start in starts if len(np.unique(start)) < count]
    if len(shared) > 1 and any(not np.array_equal(shared[0], start) for start in shared):
        shared = [np.zeros_like(shared[0])]
    key = shared[0] if shared else np.arange(count)
    sizes = np.unique(key, return_counts=True)[1]
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    return Groups(packed(np.argsort(key, kind="stable"), np.int64), packed(bounds, np.int64))
