"""Laws that need the kernel itself: what it returns for other inputs must follow from what it returned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from refattn._core import Array, Integers, Mechanism
from refattn._core.arrays import as_array
from refattn._core.mechanism import outputs
from refattn.convolution.rule import border, per_axis
from refattn.testing.arithmetic import disturbed
from refattn.testing.attention_budget import growth
from refattn.testing.budget import MEASURED, RUNS
from refattn.testing.precision import Format
from refattn.testing.report import compare

Call = Callable[..., Any]
Found = Iterator[tuple[str, dict[str, Any]]]
LAST = 61
"""Positions of the second part of a sequence that is split: no multiple of any chunk."""


def made(kernel: Call, inputs: Mapping[str, Any], target: Format) -> list[Array]:
    """The kernel's outputs as float64, from NumPy arrays of its own precision."""
    given = {n: target.array(x) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for n, x in inputs.items()}
    return [as_array(y, "what the kernel returned").astype(np.float64) for y in outputs(kernel(**given))]


def as_numpy(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same inputs, tensors as NumPy arrays in float64, which holds them exactly."""

    def one(x: Any) -> Any:
        if not hasattr(x, "shape") or callable(x):
            return x
        array = as_array(x)
        return array if array.dtype.kind in "biu" else array.astype(np.float64)

    return {n: one(x) for n, x in inputs.items()}


def token_axis(x: Array, key: Array) -> int:
    """Which axis of an array counts tokens: of one number for each token the last, else the one before."""
    return -2 if x.ndim == key.ndim else -1


def changed_after(inputs: Mapping[str, Any], names: tuple[str, ...], position: int) -> dict[str, Any]:
    """The same inputs with the tokens from a position on in reverse order."""
    key = inputs["key"]
    order = np.concatenate([np.arange(position), np.arange(position, key.shape[-2])[::-1]])
    return {**inputs, **{n: np.take(inputs[n], order, axis=token_axis(inputs[n], key)) for n in names}}


def same_bits(got: Array, again: Array, what: str) -> dict[str, Any]:
    """Whether two results agree in every bit."""
    fields = compare(again, got, np.full_like(got, np.finfo(float).tiny))
    return {**fields, "reason": what if fields["status"] == "fail" else ""}


def attention(kernel: Call, inputs: Mapping[str, Any], last: Integers, mass: Array | None, slack: Array | None, target: Format) -> Found:
    """Sums of weights, from values of 1, and causality."""
    given = as_numpy(inputs)
    name = "values of 1 give the sum of the weights"
    if mass is None or slack is None:
        yield (
            name,
            {"status": "skipped", "reason": "does not hold with dropout; needs lse, where a sink, a mask or a bias may take from the sum"},
        )
    else:
        output = made(kernel, {**given, "value": np.ones_like(given["value"])}, target)[0]
        expected = np.broadcast_to(mass[..., None], output.shape)
        yield name, compare(output, expected, np.broadcast_to(slack[..., None], output.shape))
    name, key_len = "later keys change no earlier output", given["key"].shape[-2]
    position = key_len * 2 // 3
    early = np.flatnonzero(last < position)
    if not early.size or position >= key_len - 1:
        yield name, {"status": "skipped", "reason": "every query may see the last keys"}
        return
    before = made(kernel, given, target)[0][..., early, :]
    after = made(kernel, changed_after(given, ("key", "value"), position), target)[0][..., early, :]
    yield name, same_bits(before, after, f"keys and values from {position} on were put in reverse order")


def linear(mechanism: Mechanism[..., Any], kernel: Call, inputs: Mapping[str, Any], target: Format) -> Found:
    """Linearity in values and state, causality, and splitting with the carried state."""
    given = as_numpy(inputs)
    length, names = given["key"].shape[-2], mechanism.spec.output_names
    whole = dict(zip(names, made(kernel, given, target), strict=True))
    linear_in = [n for n in ("value", "state") if given.get(n) is not None]
    twice = dict(zip(names, made(kernel, {**given, **{n: 2 * given[n] for n in linear_in}}, target), strict=True))
    for name in ("output", "state"):
        yield f"{name} of doubled values is doubled", compare(twice[name], 2 * whole[name], np.full_like(whole[name], 2 * target.floor))
    if mechanism.spec.defaults.get("causal", True) is False and not given.get("causal"):
        yield "later tokens change no earlier output", {"status": "skipped", "reason": "is not causal"}
        return
    position = max(1, length * 2 // 3)
    tokens = tuple(n for n in ("query", "key", "value", "log_decay", "beta") if given.get(n) is not None)
    other = changed_after(given, tokens, position)
    after = made(kernel, other, target)[names.index("output")][..., :position, :]
    yield (
        "later tokens change no earlier output",
        same_bits(whole["output"][..., :position, :], after, f"tokens from {position} on were reversed"),
    )
    if length <= LAST:
        yield "two parts with the carried state", {"status": "skipped", "reason": f"needs more than {LAST} tokens"}
        return
    yield from _split(mechanism, kernel, given, whole, tokens, target)


def _split(
    mechanism: Mechanism[..., Any],
    kernel: Call,
    given: Mapping[str, Any],
    whole: Mapping[str, Array],
    tokens: tuple[str, ...],
    target: Format,
) -> Found:
    """The last tokens by themselves, from the state that the others leave; both may err as the reference does when it is disturbed."""
    names, length = mechanism.spec.output_names, given["key"].shape[-2]

    def cut(at: slice) -> dict[str, Any]:
        return {n: given[n][..., at, :] if token_axis(given[n], given["key"]) == -2 else given[n][..., at] for n in tokens}

    first = dict(zip(names, made(kernel, {**given, **cut(slice(0, length - LAST))}, target), strict=True))
    carried = {n: x for n, x in first.items() if n != "output"}
    rest = {**given, **cut(slice(length - LAST, length)), **carried}
    second = dict(zip(names, made(kernel, rest, target), strict=True))
    exact = dict(zip(names, outputs(mechanism(**rest)), strict=True))
    runs = []
    for seed in range(RUNS):
        with disturbed(target, seed), np.errstate(all="ignore"):
            runs.append(dict(zip(names, outputs(mechanism(**rest)), strict=True)))
    for name in ("output", "state"):
        square = sum((np.asarray(run[name]) - exact[name]) ** 2 for run in runs)
        budget = 2 * (target.unit * np.abs(exact[name]) + MEASURED * np.sqrt(square / RUNS) + target.floor)
        before = whole[name][..., length - LAST :, :] if name == "output" else whole[name]
        yield f"{name} of two parts with the carried state", compare(second[name], before, budget)


def convolution(mechanism: Mechanism[..., Any], kernel: Call, inputs: Mapping[str, Any], target: Format) -> Found:
    """Linearity in x, and what a shift of x by one stride makes."""
    given = {n: x for n, x in as_numpy(inputs).items() if n != "bias"}
    whole, x, weight = made(kernel, given, target)[0], given["x"], given["weight"]
    twice = made(kernel, {**given, "x": 2 * x}, target)[0]
    yield "output of doubled x is doubled", compare(twice, 2 * whole, np.full_like(whole, 2 * target.floor))
    name = "a shift of x shifts the output"
    if "transpose" in mechanism.spec.name:
        yield name, {"status": "skipped", "reason": "is not tried of a transposed convolution"}
        return
    size, kernel_size, axes = x.shape[2:], weight.shape[2:], x.ndim - 2
    stride, dilation = (per_axis(n, given.get(n, 1), axes) for n in ("stride", "dilation"))
    before = border(given.get("padding", 0), size, kernel_size, stride, dilation)[-1][0]
    step, reach = stride[-1], dilation[-1] * (kernel_size[-1] - 1) + 1
    first = -(-before // step) + 1  # the first output position whose window, and that of the one before it, begins inside x
    stop = min(whole.shape[-1], (size[-1] - reach + before) // step + 1)
    if stop <= first:
        yield name, {"status": "skipped", "reason": "no window lies inside x"}
        return
    moved = np.concatenate([np.zeros_like(x[..., :step]), x[..., :-step]], axis=-1)
    shifted = made(kernel, {**given, "x": moved}, target)[0][..., first:stop]
    expected = whole[..., first - 1 : stop - 1]
    magnitude = mechanism(**{**given, "x": np.abs(x), "weight": np.abs(weight)})[..., first - 1 : stop - 1]
    terms = growth(np.prod(weight.shape[1:]))
    yield name, compare(shifted, expected, 2 * (target.unit * np.abs(expected) + terms * target.accumulator * magnitude + target.floor))
