"""Parts of large arrays of any library as float64, without converting the whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refattn._core import Array
from refattn._core.arrays import as_array, is_real
from refattn.testing.precision import FORMATS, Format

BLOCK = 4096
"""Tokens that are converted and computed with at once: 4096 x 64 numbers of 8 bytes are 2 MiB, which a cache holds."""

TOKENS = 1024
"""The same where nothing is made for each pair of a token and a chosen one: several arrays of half a megabyte fit a core's own cache."""


def part(x: Any, lead: tuple[int, ...], heads: int | slice, rows: Any) -> Array:
    """Some rows of one head or of several, of an array, tensor or whatever can be indexed, as float64.

    It is indexed in steps, since NumPy puts axes elsewhere where numbers and arrays are mixed with slices.
    """
    piece = as_array((x[lead] if lead else x)[heads][(slice(None), rows) if isinstance(heads, slice) else rows])
    return piece if piece.dtype == np.float64 else piece.astype(np.float64)


def large(name: str, x: Any) -> Any:
    """An array that is only ever read in parts; TypeError where it does not hold real numbers."""
    if not hasattr(x, "shape") or not hasattr(x, "__getitem__"):
        x = as_array(x, name)
    if x.ndim < 2:
        raise ValueError(f"{name} has {x.ndim} axes, but needs at least 2")
    one = as_array(x[(slice(0, 1),) * x.ndim], name)
    if not is_real(one.dtype):
        raise TypeError(f"{name} is {one.dtype}, but must be floating point")
    return x


def unit_of(x: Any, target: Format) -> float:
    """The unit roundoff of an array's own type; that of the format where the type is not known."""
    name = str(getattr(x, "dtype", target.name)).rpartition(".")[2]
    return FORMATS[name].unit if name in FORMATS else target.unit


def spans(start: int, stop: int, size: int = BLOCK) -> Iterator[slice]:
    """From `start` to `stop` in blocks."""
    for i in range(start, stop, size):
        yield slice(i, min(i + size, stop))


def named(name: str, given: Any) -> Mapping[str, Any]:
    """A mapping by name; TypeError for anything else."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} is a {type(given).__name__}, but must be a mapping by name")
    return given
