"""Faults planted in the source for compute capability 9.0 are caught: by the emulator's checks, or by a wrong result."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("numba")

from refattn_numba.cuda import warpgroups
from refattn_numba.cuda.kernels import hopper_forward, hopper_tiles
from tests.cuda.cases import problem
from tests.cuda.emulator import Fault
from tests.cuda.hopper_calls import hopper_forward_of
from tests.cuda.test_forward import compare
from tests.cuda.test_hopper import ORDERS, small
from tests.cuda.test_planted import mutated

PROBLEMS: dict[str, dict[str, Any]] = {
    "full": {"heads": 1, "key_len": 100},
    "causal": {"heads": 1, "query_len": 140, "key_len": 150, "causal": "lower_right"},
    "grouped": {"heads": 2, "group": 2},
    "wide": {"heads": 1, "head_dim": 128, "key_len": 40},
}
LOOP = "                    "
RELEASE = "arrive(is_empty + BARRIER_BYTES * following)\n"

FAULTS: dict[str, tuple[ModuleType, str, str, str, str]] = {
    "barriers not told": (hopper_forward, "made()\n        barrier()", "barrier()", "full", "fault"),
    "no barrier after they are made": (hopper_forward, "made()\n        barrier()", "made()", "full", "fault"),
    "queries not waited for": (hopper_forward, "wait_phase(has_queries, 0)", "pass", "full", "fault"),
    "first keys not waited for": (hopper_forward, "wait_phase(is_full, 0)", "pass", "full", "fault"),
    "keys not waited for": (hopper_forward, "wait_phase(is_full + BARRIER_BYTES * following, of_following)", "pass", "full", "fault"),
    "values not waited for": (hopper_forward, f"{LOOP}wait_phase(is_full + BARRIER_BYTES * (slot + 1), parity)", f"{LOOP}pass", "full", "fault"),
    "parity of the first phase": (hopper_forward, "slot, parity = 0, 1", "slot, parity = 0, 0", "full", "fault"),
    "parity of copies stays": (hopper_forward, "slot, parity = 0, parity ^ 1", "slot, parity = 0, 1", "full", "fault"),
    "parity of products stays": (hopper_forward, "following, of_following = 0, parity ^ 1", "following, of_following = 0, 0", "full", "fault"),
    "copies do not wait": (hopper_forward, "wait_phase(is_empty + BARRIER_BYTES * slot, parity)", "pass", "full", "fault"),
    "values where keys are": (hopper_forward, "fetch_values(slot + 1, parity, value_map", "fetch_values(slot, parity, value_map", "full", "fault"),
    "keys never given back": (hopper_forward, RELEASE, "pass\n", "full", "fault"),
    "values never given back": (hopper_forward, "arrive(is_empty + BARRIER_BYTES * (slot + 1))", "pass", "full", "fault"),
    "values given back too early": (hopper_forward, f"parts = wait_sums(parts)\n{LOOP}arrive(is_empty + BARRIER_BYTES * (slot + 1))", f"arrive(is_empty + BARRIER_BYTES * (slot + 1))\n{LOOP}parts = wait_sums(parts)", "full", "fault"),
    "scores not waited for": (hopper_forward, "scores = wait_older(scores)", "pass", "full", "fault"),
    "sums not waited for": (hopper_forward, f"{LOOP}parts = wait_sums(parts)\n", "", "full", "fault"),
    "waits for too little": (hopper_forward, "products_wait(of_sums.kind, 0)", "products_wait(of_sums.kind, 1)", "full", "fault"),
    "no fence": (hopper_forward, f"meet(turn)\n{LOOP}sums = begin_products(sums)", "meet(turn)", "full", "fault"),
    "no first fence": (hopper_forward, "wait_phase(is_full, 0)\n                sums = begin_products(sums)", "wait_phase(is_full, 0)", "full", "fault"),
    "sums not rescaled": (hopper_tiles, "return scale(made, decay)", "return made", "full", "wrong"),
    "rescaled before they are there": (hopper_forward, "scores = wait_older(scores)", "scores = wait_older(scores)\n" + LOOP + "parts = scale_sums(parts, totals)", "full", "fault"),
    "turns not begun": (hopper_forward, "announce(1)", "pass", "full", "fault"),
    "turns not ended": (hopper_forward, "if of_group == 0:\n                    meet(1)", "pass", "full", "fault"),
    "a turn given to oneself": (hopper_forward, "announce(next_turn)", "announce(turn)", "full", "fault"),
    "one warp speaks for all": (hopper_forward, "barrier_init(WARPS * groups)", "barrier_init(1)", "full", "fault"),
    "fewer bytes expected": (hopper_forward, "barrier_expect(tile_bytes)", "barrier_expect(tile_bytes // 2)", "full", "fault"),
    "more bytes expected": (hopper_forward, "barrier_expect(query_bytes)", "barrier_expect(query_bytes + 16)", "full", "fault"),
    "map not acquired": (hopper_forward, "acquire(value_map)", "pass", "full", "fault"),
    "values of the keys' slot": (hopper_forward, "start_sums(sums, weights, ring + (slot + 1) * slot_bytes)\n" + LOOP, "start_sums(sums, weights, ring + slot * slot_bytes)\n" + LOOP, "full", "fault or wrong"),
    "same queries for all groups": (hopper_forward, "query_start + first + part * ROWS", "query_start + first", "causal", "wrong"),
    "edge of another group": (hopper_forward, "there + keys_in_tile - 1 - top > highest", "there - top > highest", "causal", "wrong"),
    "last tile left out": (hopper_forward, "for j in range(begin + 1, end):\n                    following", "for j in range(begin + 1, end - 1):\n                    following", "full", "fault"),
    "key heads not shared": (hopper_forward, "kv_head = quotient(head, group)", "kv_head = head", "grouped", "wrong"),
    "shared memory not aligned": (warpgroups, "(e.shared() + (ALIGNMENT - 1)) & -ALIGNMENT", "e.shared()", "full", "fault"),
    "no swizzle": (warpgroups, "_SWIZZLE | _EIGHT_ROWS", "_EIGHT_ROWS", "full", "fault"),
    "8 rows too near": (warpgroups, "(1024 >> 4) << 32", "(512 >> 4) << 32", "full", "wrong"),
    "next columns too near": (warpgroups, "depth * BLOCK_BYTES)", "16)", "wide", "fault or wrong"),
    "rows for columns": (warpgroups, "is_new=False, right_is_rows=False", "is_new=False, right_is_rows=True", "full", "fault or wrong"),
    "sums begin anew": (warpgroups, "is_new=False, right_is_rows=False", "is_new=True, right_is_rows=False", "full", "fault or wrong"),
    "steps through columns": (warpgroups, "k % in_block * STEP_BYTES", "k % in_block * STEP_BYTES // 2", "full", "wrong"),
    "blocks of columns": (warpgroups, "k // in_block * rows * BLOCK_BYTES", "k // in_block * 64 * BLOCK_BYTES", "wide", "fault or wrong"),
    "steps through rows": (warpgroups, "k * DEPTH * BLOCK_BYTES >> 4", "k * DEPTH * BLOCK_BYTES >> 5", "two steps", "wrong"),
    "not finite not looked for": (hopper_forward, "has_not_finite(sums) == 0", "0 == 0", "hidden", "wrong"),
}  # fmt: skip
"""Module, text and what takes its place, the problem that shows it, and how."""


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    module, old, new, on, how = FAULTS[name]
    record_property("emulated", "fault")
    faulty = mutated(module, old, new)
    if module is warpgroups:
        monkeypatch.setattr(hopper_forward, "warpgroups", faulty)
        monkeypatch.setattr(hopper_tiles, "warpgroups", faulty)
    elif module is hopper_tiles:
        monkeypatch.setattr(hopper_forward, "joins", faulty.joins)
    else:
        monkeypatch.setattr(hopper_forward, "forward", faulty.forward)
    case = problem(**PROBLEMS.get(on, PROBLEMS["full"]))
    if on == "hidden":
        case = problem(heads=1, causal="upper_left", query_len=25, key_len=40)
        case.operands[2].view("uint16")[..., 25, 3] = 0x7F80
    kernel = small(size=128 if on == "wide" else 64, keys=32 if on in {"two steps", "wide"} else 16)
    with pytest.raises((Fault, AssertionError)) as caught:
        for order in ("late", "at once"):
            compare(case, *hopper_forward_of(kernel, *case.operands, **case.options, **ORDERS[order]))
    assert ("fault" if isinstance(caught.value, Fault) else "wrong") in how


def test_no_fault_without_one() -> None:
    """What is planted is what is caught: the problems themselves pass."""
    assert inspect.getsource(hopper_forward).count("wait_phase(") > 0
    for how in PROBLEMS.values():
        case = problem(**how)
        compare(case, *hopper_forward_of(small(size=max(64, case.operands[0].shape[-1])), *case.operands, **case.options))
