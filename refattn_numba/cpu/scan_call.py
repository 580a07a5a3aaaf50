"""What the kernels of a scan are told: addresses of packed arrays, sizes, and where in a thread's memory each matrix stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.products import SPARE

SPAN = 128  # positions from one state that is kept for the backward pass to the next

GIVEN = ("query", "key", "value", "log_decay", "beta", "state", "d_output", "d_end")
"""Packed arrays whose first axis is batch and key heads; `log_decay` has `rates` columns, and without `beta` its address is 0."""

MADE = ("output", "states", "end", "d_query", "d_key", "d_value", "d_log_decay", "d_beta", "d_state")
"""Where the values are in parts, each part has its own share of the gradients that are summed over them, one after another."""

SIZES = ("count", "group", "length", "head_dim", "value_dim", "rates", "chunk", "part", "parts", "memory_size")

STEPS = ("head_step", "chunk_step", "part_step", "state_size", "writes_size")
"""The steps of matrices with head_dim, chunk and part columns, and how many numbers a state and what a chunk writes have."""

ROWS: Mapping[str, tuple[str, ...]] = {
    "head_step": (
        "keys", "keys_end", "keys_start", "gains", "since", "until", "queries", "queries_start", "moved",
        "d_queries", "d_start", "d_keys", "d_keys_end", "reads", "inside",
    ),
    "chunk_step": ("decays", "inner", "erase", "scores", "d_scores", "pairs"),
    "part_step": ("read", "d_outputs", "d_writes"),
}  # fmt: skip
"""Matrices with a row for each position of a chunk, by their step.

keys_end, keys_start : decayed from their position to the last; minus the keys, as the state before the chunk meets them.
gains, since, until : factors of decay at each position; from before the chunk to it; from it to the last.
decays : between positions, where one factor holds for all rows of the state: E below the diagonal, 1 on it, 0 above.
inner, erase : decayed products of the keys below the diagonal; the same, times minus beta.
moved : keys on their way, where each row of the state has a decay of its own.
reads, inside, pairs : terms of the decays to a position, of all that reach over it, and of those between positions.
"""

OTHERS = ("ones", "scales", "whole", "transposed", "across", "d_across", "turned", "d_states", "kept", "writes", "missing")
"""Vectors; transposes of keys, states and writes; and one for each chunk of a span: states, writes, and what the state lacked."""

PLACES = tuple(name for names in (*ROWS.values(), OTHERS) for name in names)

ScanCall = np.dtype(
    [(name, np.int64) for name in (*GIVEN, *MADE, *SIZES, *STEPS)]
    + [(f"at_{name}", np.int64) for name in PLACES]
    + [("scale", np.float64)],
    align=True,
)


class Place(NamedTuple):
    """Positions ``first`` to before ``first + positions`` of one head, and values from column `begin`."""

    head: int
    first: int
    positions: int
    begin: int
    columns: int
    part: int


def memory_of(head_dim: int, columns: int, chunk: int, itemsize: int, *, backward: bool) -> dict[str, int]:
    """Steps, places and size of one thread's memory."""
    lanes = HOST.register_bytes // itemsize
    whole = lambda n, step: -(-n // step) * step  # noqa: E731
    room = lambda rows: max(whole(rows, SPARE), whole(rows, lanes))  # noqa: E731
    steps = {"head_step": whole(head_dim, lanes), "chunk_step": whole(chunk, lanes), "part_step": whole(columns, lanes)}
    state, writes, chunks = room(head_dim) * steps["part_step"], room(chunk) * steps["part_step"], SPAN // chunk if backward else 1
    sizes = {name: room(chunk) * steps[step] for step, names in ROWS.items() for name in names}
    sizes |= dict.fromkeys(("ones", "scales", "whole"), room(max(head_dim, chunk)))
    sizes |= {"transposed": room(head_dim) * steps["chunk_step"], "turned": room(columns) * steps["chunk_step"]}
    sizes |= dict.fromkeys(("across", "d_across"), room(columns) * steps["head_step"])
    sizes |= {"d_states": state, "kept": chunks * state, "writes": chunks * writes, "missing": chunks * writes}
    ends = np.cumsum([sizes[name] for name in PLACES])
    places = {f"at_{name}": int(end) - sizes[name] for name, end in zip(PLACES, ends, strict=True)}
    return {**steps, **places, "state_size": state, "writes_size": writes, "memory_size": whole(int(ends[-1]), lanes)}
