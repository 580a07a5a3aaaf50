"""Faults planted in what float8 needs are caught: by the emulators' checks, or by a wrong result."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from refattn_numba.cuda import eights, warpgroups
from refattn_numba.cuda.kernels import by_columns, exact_rows, hopper_forward, hopper_tiles
from tests.cuda import test_float8 as float8
from tests.cuda.calls import numbers, stored
from tests.cuda.emulator import FLOAT8, Fault
from tests.cuda.hopper_calls import hopper_forward_of
from tests.cuda.test_hopper import ORDERS
from tests.cuda.test_planted import mutated


def compared(size: int = 64, *, is_dirty: bool = False, **how: Any) -> Callable[..., None]:
    """Compares a problem under the emulator."""

    def compare(**order: Any) -> None:
        case = float8.drawn(heads=1, **how)
        if is_dirty:
            value = numbers(case.operands[2])
            value[..., 25, 3] = np.nan
            case = case._replace(operands=(*case.operands[:2], stored(value, FLOAT8)))
        float8.compare(case, *hopper_forward_of(float8.small(size), *case.operands, **case.options, **order))

    return compare


PROBLEMS: dict[str, Callable[..., None]] = {
    "full": compared(key_len=100),
    "sinks": compared(options=("sinks",)),
    "one key": compared(key_len=1),
    "wide": compared(256, head_dim=200, value_dim=140, key_len=70),
    "not finite": compared(causal="upper_left", query_len=25, key_len=40, is_dirty=True),
    "packed": float8.compare_packed,
    "small weights": lambda **order: float8.compare_small_weights(),
}

ORDER = "2 * (place // 4) + place % 2 + 8 * (place % 4 // 2)"

FAULTS: dict[str, tuple[ModuleType, str, str, str, str]] = {
    "keys in their own order": (eights, ORDER, "place", "full", "wrong"),
    "pairs of keys changed": (eights, ORDER, "2 * (place // 4) + (1 - place % 2) + 8 * (place % 4 // 2)", "full", "wrong"),
    "rows of weights changed": (eights, "for j in (0, 2))", "for j in (2, 0))", "full", "wrong"),
    "bytes not turned": (eights, "(0x5410, 0x7632)", "(0x7632, 0x5410)", "full", "wrong"),
    "bytes turned by halves": (eights, "(0x5140, 0x7362)", "(0x5410, 0x7632)", "full", "wrong"),
    "second half from the first": (eights, "(half + key) * stride", "key * stride", "full", "wrong"),
    "columns past the last": (eights, "count > column", "count > column - 1", "full", "fault"),
    "weights not raised": (hopper_tiles, "RAISED = 8", "RAISED = 0", "small weights", "wrong"),
    "weights raised too far": (hopper_tiles, "RAISED = 8", "RAISED = 9", "one key", "wrong"),
    "sum of raised weights": (hopper_forward, "memory.natural_lse(per_row, config.raised)", "memory.natural_lse(per_row)", "full", "wrong"),
    "sinks not raised": (hopper_forward, "2.0**config.raised", "1.0", "sinks", "wrong"),
    "sums not rescaled": (hopper_tiles, "before, decay):\n        return add(sums, before, made)", "before, decay):\n        return add(sums, decay, made)", "full", "wrong"),
    "last tile alone": (hopper_tiles, "made, before):\n        return add(sums, before, made)", "made, before):\n        return made", "full", "wrong"),
    "sums in products and beside them": (hopper_tiles, "is_new=self.are_apart", "is_new=False", "full", "wrong"),
    "values of another sequence": (hopper_tiles, "(start // TILE + sequence) * TILE", "start // TILE * TILE", "packed", "fault or wrong"),
    "fewer bytes of values": (hopper_tiles, "self.size * blocks_of(self.keys, 1)", "self.size // 2 * blocks_of(self.keys, 1)", "full", "fault"),
    "values by rows": (hopper_tiles, "warpgroups.load_columns(self.size, self.keys, width) if self.is_narrow else of_keys", "of_keys", "full", "fault or wrong"),
    "columns from the first on": (warpgroups, "there = column + i", "there = i", "full", "wrong"),
    "columns of 16 bits": (warpgroups, "column = e.integer(i * BLOCK_BYTES // width)", "column = e.integer(i * 64)", "wide", "wrong"),
    "keys past the last": (by_columns, "keys - first", "TILE", "full", "fault"),
    "columns of the value past the last": (by_columns, "value_dim - column, thread", "COLUMNS, thread", "wide", "fault"),
    "copies not waited for": (by_columns, "wait()\n            barrier()", "barrier()", "full", "fault"),
    "no barrier before values are read": (by_columns, "wait()\n            barrier()", "wait()", "full", "fault"),
    "no barrier before they are overwritten": (by_columns, "barrier()\n            copy_rows", "copy_rows", "wide", "fault"),
    "places of another sequence": (by_columns, "(start // TILE + sequence) * TILE", "start // TILE * TILE", "packed", "fault or wrong"),
    "the first sequence's values": (by_columns, "(start + first) * value_row", "first * value_row", "packed", "wrong"),
    "warps one over another": (by_columns, "TILE + first + 32 * warp_of(thread)", "TILE + first", "full", "fault or wrong"),
    "exact rows of 8 bits": (exact_rows, "here * of_result", "here * width", "not finite", "fault or wrong"),
}  # fmt: skip
"""Module, text and what takes its place, the problem that shows it, and how."""

USERS: dict[ModuleType, tuple[ModuleType, ...]] = {
    eights: (hopper_tiles, by_columns),
    warpgroups: (hopper_tiles, hopper_forward),
}
"""Which modules look into another."""


def plant(monkeypatch: pytest.MonkeyPatch, module: ModuleType, old: str, new: str) -> None:
    faulty = mutated(module, old, new)
    for user in USERS.get(module, ()):
        monkeypatch.setattr(user, module.__name__.rpartition(".")[2], faulty)
    for name in ("first_of_values", "joins") if module is hopper_tiles else ("exact_rows",) if module is exact_rows else ():
        monkeypatch.setattr(hopper_forward, name, getattr(faulty, name))
    if module is hopper_tiles:
        monkeypatch.setattr(float8, "Config", faulty.Config)
    if module in (hopper_forward, by_columns):
        builder = module.__name__.rpartition(".")[2].removeprefix("hopper_")
        monkeypatch.setattr(module, builder, getattr(faulty, builder))


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    module, old, new, on, how = FAULTS[name]
    record_property("emulated", "fault")
    plant(monkeypatch, module, old, new)
    with pytest.raises((Fault, AssertionError)) as caught:
        for order in ("late", "at once"):
            PROBLEMS[on](**ORDERS[order])
    assert ("fault" if isinstance(caught.value, Fault) else "wrong") in how


@pytest.mark.parametrize("name", PROBLEMS)
def test_no_fault_without_one(name: str) -> None:
    PROBLEMS[name]()
