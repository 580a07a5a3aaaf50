"""Faults planted in the backward source for compute capability 9.0 are caught: by the emulator's checks, or by a wrong result."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("numba")

from refattn_numba.cuda import row_numbers, warpgroups
from refattn_numba.cuda.kernels import backward_tiles, exact_gradients, hopper_backward
from tests.cuda.cases import problem
from tests.cuda.emulator import Fault
from tests.cuda.test_hopper import ORDERS
from tests.cuda.test_hopper_backward import both, compare, hidden, small
from tests.cuda.test_planted import mutated

PROBLEMS: dict[str, dict[str, Any]] = {
    "full": {"heads": 1, "key_len": 75},
    "causal": {"heads": 1, "query_len": 70, "key_len": 90, "causal": "lower_right"},
    "grouped": {"heads": 2, "group": 2, "query_len": 20, "key_len": 20},
    "wide": {"heads": 1, "head_dim": 128, "query_len": 20, "key_len": 20},
    "shared": {"heads": 1, "head_dim": 100, "query_len": 20, "key_len": 20},
}
LOOP = "                    "
NEXT = "slot, parity = 0, parity ^ 1"
LOADS, PUTS = (f"{LOOP}slot += 1\n{LOOP}if slot == stages:\n{LOOP}    {NEXT}\n{after}" for after in ("        elif", "\n    return"))
WAITS = f"""{LOOP}slot += 1
{LOOP}if slot == stages:
{LOOP}    {NEXT}
            of_left"""

FAULTS: dict[str, tuple[ModuleType, str, str, str, str]] = {
    "barriers not told": (backward_tiles, "        made()\n", "", "full", "fault"),
    "what stays not waited for": (hopper_backward, "wait_phase(is_kept, 0)", "pass", "full", "fault"),
    "tiles not waited for": (hopper_backward, "wait_phase(is_full + BARRIER_BYTES * slot, parity)", "pass", "full", "fault"),
    "parity of products stays": (hopper_backward, WAITS, WAITS.replace("parity ^ 1", "0"), "full", "fault"),
    "parity of copies stays": (backward_tiles, LOADS, LOADS.replace("parity ^ 1", "1"), "full", "fault"),
    "parity of numbers stays": (backward_tiles, PUTS, PUTS.replace("parity ^ 1", "1"), "full", "fault"),
    "copies begin with the wrong parity": (backward_tiles, "slot, parity = 0, 1\n", "slot, parity = 0, 0\n", "full", "fault"),
    "numbers not announced": (backward_tiles, "arrive(is_full + BARRIER_BYTES * slot)", "pass", "full", "fault"),
    "numbers not awaited": (backward_tiles, "barrier_init(2 if config.of_keys else 1)", "barrier_init(1)", "full", "fault"),
    "numbers of another stage": (hopper_backward, "of_numbers + 2 * slot * numbers_bytes\n" + LOOP + "wait", "of_numbers\n" + LOOP + "wait", "full", "fault or wrong"),
    "numbers of the first tile": (backward_tiles, "delta + at, j * in_tile,", "delta + at, begin * in_tile,", "full", "wrong"),
    "given back too early": (hopper_backward, "arrive(is_empty + BARRIER_BYTES * before)", "arrive(is_empty + BARRIER_BYTES * slot)", "full", "fault"),
    "given back before sums are made": (hopper_backward, f"scores = wait_scores(scores)\n{LOOP}if before >= 0:\n{LOOP}    arrive(is_empty + BARRIER_BYTES * before)", f"if before >= 0:\n{LOOP}    arrive(is_empty + BARRIER_BYTES * before)\n{LOOP}scores = wait_scores(scores)", "full", "fault"),
    "never given back": (hopper_backward, "if before >= 0:", "if before >= 9:", "full", "fault"),
    "one warp speaks for all": (backward_tiles, "barrier_init(all_warps)", "barrier_init(1)", "full", "fault"),
    "fewer bytes expected": (backward_tiles, "barrier_expect(2 * tile_bytes)", "barrier_expect(tile_bytes)", "full", "fault"),
    "more bytes expected": (backward_tiles, "barrier_expect(2 * kept_bytes)", "barrier_expect(2 * kept_bytes + 16)", "full", "fault"),
    "map not acquired": (backward_tiles, "acquire(d_output_map)", "pass", "full", "fault"),
    "no fence before scores": (hopper_backward, f"of_left = begin_products(of_left)\n{LOOP}scores", "scores", "full", "fault"),
    "no fence before sums": (hopper_backward, f"{LOOP}of_left = begin_products(of_left)\n{LOOP}of_left", f"{LOOP}of_left", "full", "fault"),
    "no fence before sums of values": (hopper_backward, "of_values = begin_products(of_values)", "pass", "full", "fault"),
    "scores not waited for": (hopper_backward, "scores = wait_scores(scores)", "pass", "full", "fault"),
    "weights' cotangents not waited for by keys": (hopper_backward, f"d_weights = wait_d_weights(d_weights)\n{LOOP}    d_scores = pack(d_by_column", "d_scores = pack(d_by_column", "full", "fault"),
    "weights' cotangents not waited for by queries": (hopper_backward, f"d_weights = wait_d_weights(d_weights)\n{LOOP}    d_scores = pack(d_by_row", "d_scores = pack(d_by_row", "full", "fault"),
    "waits for too little": (hopper_backward, "running in (1, int(of_keys))", "running in (2, int(of_keys))", "full", "fault"),
    "last sums not waited for": (hopper_backward, "running in (0, 1))", "running in (1, 1))", "full", "fault"),
    "same rows for all groups": (hopper_backward, "kept + of_rows * group_bytes", "kept", "causal", "wrong"),
    "edge of another group": (hopper_backward, "there + in_tile - 1 - top > highest", "there - top > highest", "causal", "wrong"),
    "limits not turned round": (hopper_backward, "-(high + shift), -(low + shift)", "low - shift, high - shift", "causal", "wrong"),
    "alignment ignored": (hopper_backward, "align_right * (others - rows)", "0", "causal", "wrong"),
    "one head of a group for all": (backward_tiles, "coordinate(head + member, query_head)", "coordinate(head, query_head)", "grouped", "wrong"),
    "numbers of one head for all": (backward_tiles, "at = member * lse_head * 4", "at = 0", "grouped", "wrong"),
    "last tile left out": (hopper_backward, "+ in_tile - 1) // in_tile", ") // in_tile", "full", "wrong"),
    "weights where their cotangents belong": (hopper_backward, "d_scores = pack(d_by_row(weights, d_weights, deltas))", "d_scores = pack(weights)", "full", "wrong"),
    "queries where cotangents belong": (hopper_backward, "start_sums(of_values, packed, right_values +", "start_sums(of_values, packed, right +", "full", "wrong"),
    "scale left out": (hopper_backward, "of_left = scale_sums(of_left, all_rows(scale))\n                    store_rows(of_left, d_query_at", "store_rows(of_left, d_query_at", "full", "wrong"),
    "factor 2 in place of e": (hopper_backward, "factor = scale * log2_e", "factor = scale", "full", "wrong"),
    "part of the columns": (hopper_backward, "of_left = start_sums(of_left, d_scores, right + part * part_bytes)", "of_left = start_sums(of_left, d_scores, right)", "shared", "wrong"),
    "part that is stored": (hopper_backward, "store_rows(of_values, d_value_at + offset * width", "store_rows(of_values, d_value_at", "shared", "wrong"),
    "not finite not looked for": (hopper_backward, "is_spoilt = has_not_finite(of_left)", "is_spoilt = 0", "hidden", "wrong"),
    "masked rows looked at": (exact_gradients, "max(begin, row + low)", "begin", "hidden", "wrong"),
    "delta of another query": (exact_gradients, "delta + (numbers + query) * 4", "delta + numbers * 4", "hidden", "wrong"),
    "delta left out by rows": (row_numbers, "w * (d - deltas[r])", "w * d", "full", "wrong"),
    "delta left out by columns": (row_numbers, "weights[i] * (d_weights[i] - x)", "weights[i] * d_weights[i]", "full", "wrong"),
    "delta where the log-sum-exp belongs": (row_numbers, "(here + j * columns) * 4", "(here + (1 - j) * columns) * 4", "full", "wrong"),
    "numbers of another column": (row_numbers, "pair[j % 2]", "pair[0]", "full", "wrong"),
    "numbers past the last query": (row_numbers, "is_there, at = is_mine & (place < count)", "is_there, at = is_mine & (place < count + 1)", "odd", "fault or wrong"),
    "rows for columns": (warpgroups, "is_new=False, right_is_rows=False", "is_new=False, right_is_rows=True", "full", "fault or wrong"),
    "sums begin anew": (warpgroups, "is_new=False, right_is_rows=False", "is_new=True, right_is_rows=False", "full", "fault or wrong"),
    "next columns too near": (warpgroups, "depth * BLOCK_BYTES)", "16)", "wide", "fault or wrong"),
}  # fmt: skip
"""Module, text and what takes its place, the problem that shows it, and how."""


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    module, old, new, on, how = FAULTS[name]
    record_property("emulated", "fault")
    faulty = mutated(module, old, new)
    if module in (warpgroups, row_numbers):
        for user in (hopper_backward, backward_tiles):
            monkeypatch.setattr(user, module.__name__.rpartition(".")[2], faulty)
    elif module is backward_tiles:
        monkeypatch.setattr(hopper_backward, "copies", faulty.copies)
        monkeypatch.setattr(hopper_backward, "barriers", faulty.barriers)
    elif module is exact_gradients:
        monkeypatch.setattr(hopper_backward, "exact_gradients", faulty.exact_gradients)
    else:
        monkeypatch.setattr(hopper_backward, "backward", faulty.backward)
    given: dict[str, Any] = {}
    if on == "hidden":
        case, given["d_output"] = hidden()
    else:
        case = problem(**PROBLEMS.get(on, PROBLEMS["full"]))
    kernels = small(size=128 if on in {"wide", "shared"} else 64, shares_rows=on == "shared")
    with pytest.raises((Fault, AssertionError)) as caught:
        for order in ("late", "at once"):
            compare(case.element, *both(kernels, case, **given, **ORDERS[order]))
    assert ("fault" if isinstance(caught.value, Fault) else "wrong") in how


def test_no_fault_without_one() -> None:
    """What is planted is what is caught: the problems themselves pass."""
    case, d_output = hidden()
    compare(case.element, *both(small(), case, d_output=d_output))
    for how in PROBLEMS.values():
        case = problem(**how)
        size = 64 if case.operands[0].shape[-1] <= 64 else 128
        compare(case.element, *both(small(size=size, shares_rows=how is PROBLEMS["shared"]), case))
