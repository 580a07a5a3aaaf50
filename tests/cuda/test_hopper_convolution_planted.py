"""Faults planted in convolution on compute capability 9.0 are caught: by the emulator's checks, or by a wrong result."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("numba")

from refattn_numba.cuda import pixels, swizzled
from refattn_numba.cuda.kernels import hopper_convolution, hopper_convolution_weight
from tests.cuda.emulator import Fault
from tests.cuda.test_hopper_convolution import ORDERS, check, check_weights
from tests.cuda.test_planted import mutated

FAULTS: dict[str, tuple[ModuleType, str, str, str, str, str]] = {
    "copies not shown": (hopper_convolution, "                    show()\n", "", "forward", "plain", "fault"),
    "copies not waited for": (hopper_convolution, "ops(memory.wait(ahead))", "ops(memory.wait(ahead + 1))", "forward", "plain", "fault"),
    "slot not waited for": (hopper_convolution, "wait_phase(is_empty + BARRIER_BYTES * slot, parity)", "pass", "forward", "plain", "fault"),
    "slot never empty": (hopper_convolution, "arrive(is_empty + BARRIER_BYTES * slot)", "pass", "forward", "plain", "fault"),
    "empty before it is read": (hopper_convolution, "                sums = wait_sums(sums)\n                arrive(is_empty + BARRIER_BYTES * slot)\n", "                arrive(is_empty + BARRIER_BYTES * slot)\n                sums = wait_sums(sums)\n", "forward", "plain", "fault"),
    "full not waited for": (hopper_convolution, "wait_phase(is_full + BARRIER_BYTES * slot, parity)", "pass", "forward", "plain", "fault"),
    "phases of the copies": (hopper_convolution, "0, 0, 0, 0, 0, 1, 0", "0, 0, 0, 0, 0, 0, 0", "forward", "plain", "fault"),
    "phases of the products": (hopper_convolution, "sums, slot, parity = no_sums(), 0, 0", "sums, slot, parity = no_sums(), 0, 1", "forward", "plain", "fault"),
    "another slot is full": (hopper_convolution, "full = full + 1 if full + 1 < stages else 0", "full = full + 1 if full + 2 < stages else 0", "forward", "plain", "fault"),
    "too few arrivals": (hopper_convolution, "barrier_init(WARPS * config.groups)", "barrier_init(WARPS)", "forward", "plain", "fault"),
    "last tiles not shown": (hopper_convolution, "range(steps + ahead)", "range(steps)", "forward", "plain", "fault"),
    "barriers not made": (hopper_convolution, "            made_barriers()\n", "", "forward", "plain", "fault"),
    "same positions for all groups": (hopper_convolution, "operands + of_group * (ROWS * BLOCK_BYTES)", "operands", "forward", "padding", "wrong"),
    "rows of a warp": (hopper_convolution, "(warp & 3) * 16", "(warp & 3) * 8", "forward", "plain", "fault or wrong"),
    "no swizzle": (pixels, "chunks.place(thread) ^ (chunks.row(thread) & 7)", "chunks.place(thread)", "forward", "plain", "wrong"),
    "weights: no swizzle": (swizzled, "to + swizzled_place(chunks, thread)", "to + row * 128 + place * 16", "forward", "plain", "wrong"),
    "channels past the last": (swizzled, "(row + down < count) & ((place", "(row + down < count + 99) & ((place", "forward", "plain", "fault"),
    "weights past the last": (swizzled, "block * BLOCK_COLUMNS) < width)", "block * BLOCK_COLUMNS) < width + 8)", "input", "wide", "fault or wrong"),
    "blocks of columns": (swizzled, "(block * rows + down)", "(block * size + down)", "input", "wide", "fault or wrong"),
    "next block of columns": (swizzled, "BLOCK_COLUMNS * BLOCK_BYTES if is_deep else 16", "16", "input", "wide", "fault or wrong"),
    "right operand not turned": (swizzled, "right_is_rows=not is_right_deep", "right_is_rows=True", "input", "plain", "fault or wrong"),
    "sums begin anew": (swizzled, "is_new=False", "is_new=True", "forward", "plain", "fault or wrong"),
    "group of what is read": (hopper_convolution, "source + group * summed * width", "source", "forward", "groups", "wrong"),
    "group of the weights": (hopper_convolution, "weight + group * c_out * weight_step", "weight", "input", "groups", "wrong"),
    "order of taps": (hopper_convolution, "(plane * kernel_w + tap_of[2] + k * apart[2])", "((tap_of[2] + k * apart[2]) * kernel_h + plane)", "forward", "plain", "wrong"),
    "weight: copies not shown": (hopper_convolution_weight, "                    show()\n", "", "weight", "padding", "fault"),
    "weight: slot not waited for": (hopper_convolution_weight, "wait_phase(is_empty + BARRIER_BYTES * slot, parity)", "pass", "weight", "many steps", "fault"),
    "weight: empty before it is read": (hopper_convolution_weight, "                sums = wait_sums(sums)\n                arrive(is_empty + BARRIER_BYTES * slot)\n", "                arrive(is_empty + BARRIER_BYTES * slot)\n                sums = wait_sums(sums)\n", "weight", "many steps", "fault"),
    "weight: left operand not turned": (swizzled, "left_is_rows=not is_left_deep", "left_is_rows=True", "weight", "padding", "fault or wrong"),
    "weight: same channels for all groups": (hopper_convolution_weight, "operands + of_group * block_bytes", "operands", "weight", "wide", "wrong"),
    "weight: blocks of channels": (pixels, "(block * chunks.rows + i * chunks.apart)", "(block * 8 + i * chunks.apart)", "weight", "wide", "fault or wrong"),
    "weight: positions do not go on": (hopper_convolution_weight, "at = later_positions(at, more, out_sizes)", "pass", "weight", "many steps", "wrong"),
    "weight: split of the workspace": (hopper_convolution_weight, "(((split * groups + group) * c_out", "(((group * groups + group) * c_out", "weight", "padding", "wrong"),
}  # fmt: skip
"""Module, text and what takes its place, the kernel and the convolution that show it, and how."""


def check_in_both_orders(face: str, on: str) -> None:
    more = {"columns": 128} if on == "wide" else {}
    for order in ORDERS:
        if face == "weight":
            check_weights(on, order, **more)
        else:
            check(face, on, order, **more)


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    module, old, new, face, on, how = FAULTS[name]
    record_property("emulated", "fault")
    faulty = mutated(module, old, new)
    for user, builder in ((hopper_convolution, "hopper_convolution"), (hopper_convolution_weight, "hopper_weight_gradient")):
        if module is user:
            monkeypatch.setattr(user, builder, getattr(faulty, builder))
        elif module in (swizzled, pixels):
            monkeypatch.setattr(user, module.__name__.rpartition(".")[2], faulty)
    with pytest.raises((Fault, AssertionError)) as caught:
        check_in_both_orders(face, on)
    assert ("fault" if isinstance(caught.value, Fault) else "wrong") in how


@pytest.mark.parametrize(("face", "on"), sorted({(face, on) for *_, face, on, _ in FAULTS.values()}))
def test_no_fault_without_one(face: str, on: str) -> None:
    """What is planted is what is caught."""
    check_in_both_orders(face, on)
