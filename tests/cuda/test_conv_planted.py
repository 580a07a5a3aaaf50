"""Faults planted in the source of kernels for convolution are caught: by the emulator's checks, or by a wrong result."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("numba")

from refattn_numba.cuda import finishing, pixels, products
from refattn_numba.cuda.conv_configurations import choose
from refattn_numba.cuda.kernels import convolution, convolution_odd, convolution_sums, convolution_weight, convolution_weight_odd, geometry
from tests.cuda.conv_calls import bias_gradient, case, compare, gathered, weight_gradient
from tests.cuda.emulator import Fault
from tests.cuda.test_conv_kernels import CASES, ODD, sizes_of, small, small_odd, small_odd_weight, small_weight
from tests.cuda.test_planted import mutated

WAIT = "            wait()\n            barrier()\n"
NO_WAIT, NO_BARRIER = "            barrier()\n", "            wait()\n"
TURN = "            store_weights(weights_to + slot, weights)\n            barrier()\n"
WEIGHT_TURN = "            store_bits(to + slot + tile_bytes, of_x)\n            barrier()\n"

FAULTS: dict[str, tuple[ModuleType, str, str, str, str, str]] = {
    "copies not waited for": (convolution, WAIT, NO_WAIT, "forward", "plain", "fault"),
    "no barrier": (convolution, WAIT, NO_BARRIER, "forward", "plain", "fault"),
    "slot of the ring": (convolution, "left_of_warp + slot, right", "left_of_warp + (step + 1) % stages * stage_bytes, right", "forward", "plain", "fault"),
    "fetched one too early": (convolution, "fetch(step + stages - 1, part", "fetch(step + stages, part", "forward", "plain", "fault"),
    "order of taps": (convolution, "(plane * kernel_w + tap_of[2] + k * apart[2])", "((tap_of[2] + k * apart[2]) * kernel_h + plane)", "forward", "plain", "wrong"),
    "taps along the height": (convolution, "if j == taps_h", "if j == taps_w", "forward", "plain", "fault or wrong"),
    "last channels left out": (convolution, "(summed + depth - 1) // depth", "summed // depth", "forward", "many channels", "wrong"),
    "group of what is read": (convolution, "source + group * summed * width", "source", "forward", "groups", "wrong"),
    "group of the weights": (convolution, "weight + group * c_out * weight_step", "weight", "forward", "groups", "wrong"),
    "group of what is written": (convolution, "channel = group * made + column_start", "channel = column_start", "forward", "groups", "wrong"),
    "input: order of taps": (convolution, "tap_of[2] + k * apart[2]", "tap_of[2] - k * apart[2] + kernel_w - 1", "input", "plain", "wrong"),
    "input: group of the weights": (convolution, "weight + group * c_out * weight_step", "weight + group * c_in * weight_step", "input", "groups", "wrong"),
    "dilation ignored": (geometry, "return out, -pad, stride, dilation,", "return out, -pad, stride, 1,", "forward", "dilation", "wrong"),
    "stride ignored": (geometry, "return out, -pad, stride, dilation,", "return out, -pad, 1, dilation,", "forward", "stride", "wrong"),
    "one position off": (geometry, "return out, -pad, stride", "return out, 1 - pad, stride", "forward", "padding", "wrong"),
    "input: pad ignored": (geometry, "start = of_any(phase + pad - first", "start = of_any(phase - first", "input", "stride", "wrong"),
    "input: direction of taps": (geometry, "start, 1, -quotient(", "start, 1, quotient(", "input", "stride in float32", "wrong"),
    "input: taps that do not divide": (geometry, "while quotient(apart", "while apart < 1 and quotient(apart", "input", "stride in float32", "wrong"),
    "input: first tap": (geometry, "while first < kernel and", "while first < 0 and", "input", "stride", "wrong"),
    "padding off by one": (pixels, "(e.below(x, size) for", "(e.below(x, size + 1) for", "forward", "padding", "fault or wrong"),
    "padding before off by one": (pixels, "(e.below(x, size) for", "(e.below(x + 1, size + 1) for", "forward", "padding", "fault or wrong"),
    "channels past the last": (pixels, "chunks.place(thread) * per_chunk < left\n        for i in range(chunks.count):\n            place = [origins", "chunks.place(thread) * per_chunk <= left\n        for i in range(chunks.count):\n            place = [origins", "forward", "many channels", "fault"),
    "positions past the last": (finishing, "(index < count) & is_inside(e, place, sizes_of_array)", "is_inside(e, place, sizes_of_array)", "forward", "plain", "fault or wrong"),
    "order of the axes": (pixels, "for size in (sizes[2], sizes[1], sizes[0]):", "for size in (sizes[2], sizes[0], sizes[1]):", "forward", "plain", "fault or wrong"),
    "columns of the bias": (finishing, "found[right // 8 * 2 + right % 2]", "found[right // 8 * 2]", "forward", "padding", "wrong"),
    "weights not turned": (products, "left_offset(e, lane, stride) + (k * stride + n * width), transposed=True", "left_offset(e, lane, stride) + (k * stride + n * width), transposed=False", "input", "plain", "wrong"),
    "halves of the depth": (products, "4 * (i % 2) * stride + 8 * (i // 2)", "4 * (i // 2) * stride + 8 * (i % 2)", "input", "float32", "wrong"),
    "weight: copies not waited for": (convolution_weight, WAIT, NO_WAIT, "weight", "plain", "fault"),
    "weight: no barrier": (convolution_weight, WAIT, NO_BARRIER, "weight", "plain", "fault"),
    "weight: every split from the start": (convolution_weight, "begin = min(split * in_split, all_steps)", "begin = 0", "weight", "plain", "wrong"),
    "weight: rest of the splits": (convolution_weight, "quotient(all_steps + splits - 1, splits)", "quotient(all_steps, splits)", "weight", "sequence", "wrong"),
    "weight: split of the workspace": (convolution_weight, "((split * groups + group) * c_out", "((group * groups + group) * c_out", "weight", "plain", "wrong"),
    "weight: dilation ignored": (convolution_weight, "tap_w * dilation[2] - pad[2]", "tap_w - pad[2]", "weight", "dilation", "wrong"),
    "weight: group of the cotangent": (convolution_weight, "y + (group * c_out + first_out)", "y + (group * c_in + first_out)", "weight", "groups", "wrong"),
    "weight: no carry": (pixels, "x = place[a] + more[a + 1] + carry", "x = place[a] + more[a + 1]", "weight", "dilation", "fault or wrong"),
    "weight: positions past the last": (pixels, "(batch < batches) & is_inside", "is_inside", "weight", "sequence", "fault"),
    "weight: cotangents not turned": (products, "right_offset(e, lane, stride) + (k * stride + m * width), transposed=True", "right_offset(e, lane, stride) + (k * stride + m * width), transposed=False", "weight", "plain", "wrong"),
    "odd: no barrier": (convolution_odd, TURN, TURN.replace("            barrier()\n", ""), "odd forward", "two warps", "fault"),
    "odd: one slot": (convolution_odd, "slot, after = step % 2", "slot, after = step % 1", "odd forward", "two warps", "fault"),
    "odd: rows of taps": (convolution_odd, "apart[1] * kernel_w * of_tap", "apart[1] * of_tap", "odd input", "odd channels", "wrong"),
    "odd: channels past the last": (pixels, "inside & (first + i < total)", "inside", "odd forward", "odd channels", "fault or wrong"),
    "odd: no carry": (pixels, "number[0] = number[0] + carry", "pass", "odd forward", "odd volume", "wrong"),
    "odd weight: no barrier": (convolution_weight_odd, WEIGHT_TURN, WEIGHT_TURN.replace("            barrier()\n", ""), "odd weight", "two warps", "fault"),
    "odd weight: split": (convolution_weight_odd, "end = min(begin + in_split, count)", "end = count", "odd weight", "odd channels", "wrong"),
    "odd weight: pad": (convolution_weight_odd, "(-pad_d, -pad_h, -pad_w)", "(-pad_d, -pad_h, pad_w)", "odd weight", "odd channels", "fault or wrong"),
    "sum: first split alone": (convolution_sums, "(split * count + index) * 4, is", "index * 4, is", "weight", "plain", "wrong"),
    "bias: rows of a plane": (convolution_sums, "if h == out_h", "if h == out_h + 1", "bias", "padding", "fault or wrong"),
    "bias: part of the positions": (convolution_sums, "min(first + in_split, count) - first", "in_split - 1", "bias", "padding", "wrong"),
}  # fmt: skip
"""Module, text and what takes its place, the kernel and the convolution that show it, and how."""


def check(kernel: str, name: str) -> None:
    """Run a small kernel on a convolution and compare."""
    warps = 2 if name == "two warps" else 1
    given = case(**{**CASES, **ODD, "two warps": ODD["odd channels"]}[name])
    (y, grads), (sizes, of_grads) = given.reference(), sizes_of(given)
    sums = dataclasses.replace(choose("conv_sum", given.element, 1, 1), builder=convolution_sums.sum_splits)
    if kernel.endswith(("forward", "input")):
        is_input = kernel.endswith("input")
        made = small_odd(given.element, is_input=is_input, row_warps=warps) if "odd" in kernel else small(given.element, is_input=is_input)
        got, expected, allowed = gathered(made, given), *((grads["x"], of_grads["x"]) if is_input else (y, sizes))
    elif kernel == "bias":
        of_bias = dataclasses.replace(choose("conv_bias", given.element, 1, 1), builder=convolution_sums.bias_gradient)
        got = bias_gradient(of_bias, sums, given, splits=3)
        expected, allowed = grads["bias"], of_grads["bias"]
    else:
        made = small_odd_weight(given.element, row_warps=warps) if "odd" in kernel else small_weight(given.element)
        got, expected, allowed = weight_gradient(made, sums, given, splits=3), grads["weight"], of_grads["weight"]
    compare(got, expected, allowed, given.element)


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    module, old, new, kernel, on, how = FAULTS[name]
    record_property("emulated", "fault")
    faulty = mutated(module, old, new)
    for user in (convolution, convolution_odd, convolution_weight, convolution_weight_odd, convolution_sums):
        for part, now in vars(user).items():
            if now is module:
                monkeypatch.setattr(user, part, faulty)
            elif callable(now) and getattr(now, "__module__", "") == module.__name__ and not isinstance(now, type):
                monkeypatch.setattr(user, part, getattr(faulty, part))
    with pytest.raises((Fault, AssertionError)) as caught:
        check(kernel, on)
    assert ("fault" if isinstance(caught.value, Fault) else "wrong") in how


@pytest.mark.parametrize(("kernel", "on"), sorted({(kernel, on) for *_, kernel, on, _ in FAULTS.values()}))
def test_no_fault_without_one(kernel: str, on: str) -> None:
    """What is planted is what is caught."""
    check(kernel, on)
