"""What a kernel is told of a call: addresses, strides and sizes, in one record.

A record is cheap to hand over, and makes one type of any layout: an array of any strides is read where it lies, as long as
its last axis is contiguous. All strides are in elements, 0 where an array is broadcast.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from ctypes import c_size_t
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, Integers
from refattn_numba.cpu.jit import compiled

CACHE_LINE = 64
BFLOAT16_BYTES, COUPLE_BYTES = 2, 4
ARRAYS = ("query", "key", "value", "d_output", "bias", "mask", "keep")
"""Each has an address, 0 where it is absent, and strides ``_batch``, ``_head``, ``_row`` and ``_column``."""
ALWAYS = ("query", "key", "value", "output", "shift", "inverse")
"""What the forward pass has in any case: their addresses come first in a record."""

Call = np.dtype(
    [(name, np.int64) for name in ALWAYS]
    + [(f"{name}{part}", np.int64) for name in ARRAYS for part in ("", "_batch", "_head", "_row", "_column") if part or name not in ALWAYS]
    + [
        (name, np.int64)
        for name in (
            "sinks",
            "centre",
            "d_lse",
            "d_query",
            "d_key",
            "d_value",
            "d_bias",
            "key_couples",
            "value_couples",
        )
    ]
    + [(name, np.int64) for name in ("heads", "count", "group", "query_len", "key_len", "head_dim", "value_dim")]
    + [(name, np.int64) for name in ("query_rows", "key_rows", "end_task", "threads")]
    + [(name, np.int64) for name in ("before", "after", "memory_size", "panel", "chunks")]
    + [(name, np.float64) for name in ("scale", "softcap", "keep_factor")],
    align=True,
)


def _first_field(x: np.ndarray[Any, Any]) -> int:
    """The first field of NumPy's structure, which follows that of every object: a tenth of the time that ``x.ctypes.data`` takes."""
    return c_size_t.from_address(id(x) + object.__basicsize__).value


def address_of(x: np.ndarray[Any, Any]) -> int:
    """Where an array's first element is."""
    return x.ctypes.data


_PROBES = [np.zeros(n) for n in (1, 7)]
if all(_first_field(x) == x.ctypes.data for x in (*_PROBES, *(x[::-1] for x in _PROBES))):
    address_of = _first_field

PARTS = {name: tuple(f"{name}{part}" for part in ("", "_batch", "_head", "_row", "_column")) for name in ARRAYS}


class Spans(NamedTuple):
    """Sequences that lie one after another: where each begins among the queries and the keys, its lengths, and its band."""

    query: Integers
    queries: Integers
    key: Integers
    keys: Integers
    before: Integers
    after: Integers


@compiled
def place_of(calls: Any, task: int) -> tuple[int, int]:
    """Which of the calls a task belongs to, and its number there; the number of calls where there is no such task."""
    low, high = 0, calls.size
    while low < high:
        middle = (low + high) // 2
        if task < calls[middle].end_task:
            high = middle
        else:
            low = middle + 1
    return low, task - (calls[low - 1].end_task if low > 0 else 0)


@cache
def _packer(layout: Any) -> Callable[..., None] | None:
    """Writes a record whose fields are all numbers of 64 bits, in a third of NumPy's time; None for others."""
    kinds = [layout[name] for name in layout.names]
    is_simple = layout.itemsize == 8 * len(kinds) and all(kind in {np.dtype(np.int64), np.dtype(np.float64)} for kind in kinds)
    return struct.Struct("".join("q" if kind.kind == "i" else "d" for kind in kinds)).pack_into if is_simple else None


def moved(known: Integers, *arrays: Array) -> np.ndarray[Any, Any]:
    """The record of an earlier call, as numbers, for arrays of the same shapes and strides elsewhere: those that are there `ALWAYS`."""
    numbers = known.copy()
    numbers[: len(ALWAYS)] = [address_of(x) for x in arrays]
    return np.ndarray((1,), Call, numbers)  # NumPy copies records field by field


class Record:
    """A record in the making, and the arrays that it gives the addresses of, which have to outlive the kernel's call."""

    def __init__(self, fields: Mapping[str, Any], arrays: Sequence[Any] = (), layout: Any = Call) -> None:
        self.fields, self.arrays, self.layout = dict(fields), list(arrays), layout

    def more(self, **fields: int | float) -> Record:
        """Another record, with more in it."""
        return Record({**self.fields, **fields}, self.arrays, self.layout)

    def add(self, **arrays: Array | Integers) -> None:
        """C-contiguous arrays that have an address alone."""
        for name, x in arrays.items():
            self.arrays.append(x)
            self.fields[name] = address_of(x)

    def add_strided(self, name: str, x: Any, shape: tuple[int, ...], dtype: Any) -> None:
        """An array that is broadcastable to ``shape = (*batch, heads, rows, columns)``; copied where no such view of it exists."""
        if x.dtype != dtype or not x.flags.aligned:
            x = np.require(x, dtype, "A")
        if x.ndim and x.shape[-1] > 1 and x.strides[-1] != x.itemsize:
            x = np.ascontiguousarray(x)
        if x.itemsize == BFLOAT16_BYTES and (address_of(x) % COUPLE_BYTES or any(step % COUPLE_BYTES for step in x.strides[:-1])):
            x = np.ascontiguousarray(x)  # whose rows have even sizes
        view = np.broadcast_to(x, shape) if x.shape != shape else x
        if len(shape) != 4:
            view = view.reshape(math.prod(shape[:-3]), *shape[-3:])
        item, fields, (address, *parts) = x.itemsize, self.fields, PARTS[name]
        self.arrays.append(view)
        fields[address] = address_of(view)
        for part, step, size in zip(parts, view.strides, view.shape, strict=True):
            fields[part] = step // item if size > 1 else 0

    def packed(self) -> np.ndarray[Any, Any]:
        """As the kernel takes it; what was not given is 0."""
        numbers = map(self.fields.get, self.layout.names, itertools.repeat(0))
        pack_into = _packer(self.layout)
        if pack_into is None:
            return np.array([tuple(numbers)], self.layout)
        made = np.empty(len(self.layout.names), np.int64)
        pack_into(made, 0, *numbers)
        return np.ndarray((1,), self.layout, made)

    def packed_spans(self, spans: Spans, itemsize: int) -> np.ndarray[Any, Any]:
        """A record for each span: the same arrays from other rows on."""
        calls = np.repeat(self.packed(), spans.query.size)
        head_dim, value_dim = self.fields["head_dim"], self.fields["value_dim"]
        rows = dict.fromkeys(("shift", "inverse", "centre", "d_lse"), (spans.query, 1))
        rows |= {"output": (spans.query, value_dim), "d_query": (spans.query, head_dim)}
        rows |= {"d_key": (spans.key, head_dim), "d_value": (spans.key, value_dim)}
        rows |= {name: (spans.query, self.fields.get(f"{name}_row", 0)) for name in ("query", "d_output")}
        rows |= {name: (spans.key, self.fields[f"{name}_row"]) for name in ("key", "value")}
        for name in rows.keys() & self.fields.keys():  # what is absent keeps the address 0
            first, step = rows[name]
            calls[name] += first * int(step) * itemsize
        calls["query_len"], calls["key_len"], calls["before"], calls["after"] = spans.queries, spans.keys, spans.before, spans.after
        return calls


def aligned(size: int, dtype: Any) -> Array:
    """Memory that begins on a cache line, so that no register of a tile lies on two."""
    spare = CACHE_LINE // np.dtype(dtype).itemsize
    whole = np.empty(size + spare, dtype)
    first = -address_of(whole) % CACHE_LINE // whole.itemsize
    return whole[first : first + size]


def empty(shape: Sequence[int], dtype: Any) -> Array:
    """An array in such memory: NumPy's own begins 16 bytes after a line more often than not, which costs up to half of a kernel's speed."""
    return aligned(math.prod(shape), dtype).reshape(shape)
