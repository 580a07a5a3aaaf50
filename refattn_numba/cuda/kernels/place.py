"""Which tile a block makes, and what a pair of positions allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refattn_numba.cuda import memory
from refattn_numba.cuda.kernel import Parameters, Type

FAR = 2**30
"""No limit; positions are below that."""


def numbers(kind: Type, *names: str) -> Parameters:
    """Parameters of one type."""
    return tuple((name, kind) for name in names)


def strides(*names: str, axes: tuple[str, ...] = ("batch", "head", "row")) -> Parameters:
    """Steps along the axes of some arrays, in elements."""
    return numbers("int64", *(f"{name}_{axis}" for name in names for axis in axes))


OPERANDS: Parameters = (
    *numbers("pointer", "query", "key", "value", "lse", "cu_query", "cu_key", "sinks"),
    *numbers(
        "int32", "tiles", "heads", "group", "query_len", "key_len", "head_dim", "value_dim", "sequences", "align_right", "low", "high"
    ),
    *strides("query", "key", "value"),
    *strides("lse", axes=("batch", "head")),
    ("scale", "float32"),
)
"""Of every kernel for attention; `low` and `high` bound ``key - query`` on a diagonal that `align_right` moves by the lengths' difference."""

OPTIONS: Parameters = (
    *numbers("pointer", "mask", "bias", "keep"),
    *strides("mask", "bias", "keep", axes=("batch", "head", "row", "key")),
    *numbers("float32", "softcap", "keep_scale"),
)
"""Of kernels that have all options; an address of 0 is an option that a call does not use, and so is a cap of 0."""


def places(ops: Any, tile: int, *, of_keys: bool = False) -> Callable[..., Any]:
    """The function that says what a block does: its tile of rows, its head and batch, and where its sequence starts and how long it is."""
    place_in = places_in(ops, tile, of_keys=of_keys)

    def place(
        block: Any, tiles: Any, heads: Any, starts: Any, other_starts: Any, length: Any, other_length: Any, sequences: Any
    ) -> tuple[Any, Any, Any, Any, Any, Any, Any]:
        return place_in(block, tiles, heads, starts, other_starts, length, other_length, sequences)[:7]

    return ops.function(place)


def places_in(ops: Any, tile: int, *, of_keys: bool = False) -> Callable[..., Any]:
    """The same function, which says at last which sequence that is.

    Rows of packed sequences are not tiled across their borders: sequence b has the places from ``start // tile + b`` on, of which there
    are enough for any lengths, so that their number is known without reading where they start. A place may then have no rows.
    Blocks come in the order in which tiles have less and less to do under a causal mask: queries in reverse, keys from the first on.
    """
    load, quotient = ops(memory.load("int32")), ops(memory.quotient())

    def sequence(at: Any, total: Any) -> tuple[Any, Any]:
        """Where it starts, and its length; inside what there is, also where the numbers, which nobody checked, are wrong."""
        start = min(max(load(at), 0), total)
        return start, min(max(load(at + 4), start), total) - start

    sequence = ops.function(sequence)

    def place_in(
        block: Any, tiles: Any, heads: Any, starts: Any, other_starts: Any, length: Any, other_length: Any, sequences: Any
    ) -> tuple[Any, Any, Any, Any, Any, Any, Any, Any]:
        rest = quotient(block, tiles)
        batch = quotient(rest, heads)
        head = rest - batch * heads
        index = block - rest * tiles
        if not of_keys:
            index = tiles - 1 - index
        start, other_start, which = 0, 0, 0
        if starts != 0:
            low, high = 0, sequences - 1
            while low < high:
                middle = (low + high + 1) // 2
                if load(starts + 4 * middle) // tile + middle <= index:
                    low = middle
                else:
                    high = middle - 1
            which = low
            index = max(index - (load(starts + 4 * which) // tile + which), 0)
            start, length = sequence(starts + 4 * which, length)
            other_start, other_length = sequence(other_starts + 4 * which, other_length)
        return index * tile, head, batch, start, length, other_start, other_length, which

    return ops.function(place_in)


def addresses_of_pairs(ops: Any, *, has_options: bool) -> Callable[..., Any]:
    """The function for where an option of single pairs stands for a head: 0, where it is absent or there are no options."""

    def address(start: Any, offset: Any, width: Any) -> Any:
        return start + offset * width if has_options and start != 0 else 0

    return ops.function(address)
