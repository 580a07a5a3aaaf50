"""Kernels for convolutions of single channels, for layouts and borders, and for activations: emulated, compiled, and not run on a GPU."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
from benchmarks.gpu_conv_battery import candidate
from refattn.testing import Case
from refattn.testing.checking import compare_case
from refattn.testing.precision import named_format
from refattn_numba._activations import CODES
from refattn_numba.cuda import conv_linear, conv_small_configurations
from refattn_numba.cuda.conv_small_configurations import choose, shipped
from refattn_numba.cuda.kernels import conv_place, depthwise, depthwise_weight
from tests.cuda import conv_by_numpy, emulator, sass, standins
from tests.cuda.calls import address, numbers, stored
from tests.cuda.emulator import Fault
from tests.cuda.test_conv_host import lying_last
from tests.cuda.test_host import StandIn

OURS = tuple(conv_small_configurations.FACES)
ARCHITECTURES = "sm_80", "sm_90a"

CALLS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3x3": ("depthwise_conv2d", (2, 16, 5, 6), (16, 1, 3, 3), {"padding": 1}),
    "strides, taps apart": (
        "depthwise_conv2d",
        (1, 8, 9, 8),
        (8, 1, 3, 2),
        {"padding": ((2, 0), (1, 3)), "stride": (2, 3), "dilation": (1, 2)},
    ),
    "taps on padding alone": ("depthwise_conv2d", (1, 8, 2, 3), (8, 1, 5, 3), {"padding": (4, 2)}),
    "two for each": ("depthwise_conv2d", (2, 3, 4, 5), (6, 1, 2, 3), {"padding": (1, 2), "stride": (1, 2)}),
    "five channels": ("depthwise_conv2d", (1, 5, 4, 5), (5, 1, 3, 3), {"padding": "same"}),
    "along a line": ("conv1d", (2, 8, 75), (8, 1, 4), {"padding": ((3, 0),), "groups": 8}),
    "in a volume": ("conv3d", (1, 8, 3, 4, 2), (8, 1, 2, 3, 2), {"padding": 1, "stride": (1, 2, 1), "groups": 8}),
    "transposed": ("conv_transpose2d", (1, 8, 3, 4), (8, 1, 3, 3), {"stride": (2, 1), "padding": 1, "groups": 8}),
    "a border around": ("depthwise_conv2d", (1, 8, 4, 5), (8, 1, 3, 3), {"padding": ((2, 1), (0, 3)), "padding_mode": "circular"}),
    "a border reflected": ("depthwise_conv2d", (1, 3, 4, 5), (3, 1, 3, 3), {"padding": ((3, 1), (0, 4)), "padding_mode": "reflect"}),
    "a border of copies": ("depthwise_conv2d", (1, 3, 2, 4), (3, 1, 3, 3), {"padding": ((3, 1), (0, 4)), "padding_mode": "replicate"}),
}


def case(name: str) -> tuple[str, Case]:
    mechanism, shape, kernel, options = CALLS[name]
    random = np.random.default_rng(0)
    outputs = shape[1] if "transpose" in mechanism else kernel[0]
    given = {"x": random.normal(size=shape), "weight": random.normal(size=kernel), "bias": random.normal(size=outputs)}
    return mechanism, Case(name, {**given, **options})


def launch(kernel, blocks, arguments, buffers):
    """Our kernels under the emulator; those of others by NumPy, which is faster."""
    ours = kernel.name.startswith(OURS)
    (emulator if ours else conv_by_numpy).launch(kernel, blocks, arguments, buffers)


def judge(monkeypatch: pytest.MonkeyPatch, name: str, dtype: str) -> set[str]:
    """Compare a call with the reference; the kernels that it took."""
    mechanism, given = case(name)
    prepare = (lambda x: x) if dtype == "float32" else lying_last
    with standins.pretending(monkeypatch, launch) as recorder:
        found = list(compare_case(candidate(mechanism, StandIn("torch"), prepare), getattr(refattn, mechanism), given, named_format(dtype)))
    assert [(r.what, r.error_over_budget, r.reason) for r in found if r.status == "fail"] == []
    assert sum(r.status == "pass" for r in found) == 4
    return {x.kernel.name for x in recorder.launches if x.kernel.name.startswith(OURS)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", CALLS)
def test_against_the_reference(monkeypatch, record_property, name, dtype):
    taken = judge(monkeypatch, name, dtype)
    record_property("emulated", f"{name} {dtype}")
    is_wide = CALLS[name][1][1] % 8 == 0
    assert {f"depthwise_{face}_{dtype}{'' if is_wide else '_single'}" for face in ("forward", "input", "weight")} <= taken


@pytest.mark.parametrize("splits", [1, 2])
def test_parts_of_a_sum_take_several_rows(monkeypatch, splits):
    monkeypatch.setattr(conv_linear, "MOST_SPLITS", splits)
    judge(monkeypatch, "strides, taps apart", "bfloat16")
    judge(monkeypatch, "along a line", "float32")


SMALLEST = 1e-37
"""About the smallest float32, below which results are 0."""

LINE = np.concatenate([np.linspace(-14, 14, 701), [-np.inf, np.inf, np.nan, -1e30, 1e30, -0.0], np.linspace(-100, -14, 61)])


@pytest.mark.parametrize("is_wide", [True, False])
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_activations(activation, is_wide, record_property):
    """To some units in the last place of float32, and in tails by what their exponent is rounded to; what is not finite has its limits."""
    x = stored(LINE[:768].reshape(16, 48), "float32")
    dy = stored(np.random.default_rng(0).normal(size=x.shape), "float32")
    made, back = (stored(np.full(x.shape, np.nan), "float32") for _ in range(2))
    shared = {"rows": 16, "channels": 48, "activation": CODES[activation], "before": address(x), "of_before": 48, "of_target": 48}
    for face, target, more in (("conv_finish", made, {"bias": 0}), ("conv_finish_back", back, {"d_after": address(dy), "of_d_after": 48})):
        kernel = choose(face, "float32", is_wide=is_wide)
        blocks = -(-x.size // kernel.config.vector // kernel.tile)
        emulator.launch(kernel, blocks, {**shared, **more, "target": address(target)}, [x, dy, made, back])
    with np.errstate(all="ignore"):
        wanted, pullback = getattr(refattn, activation).vjp(numbers(x))
        of_x = pullback(numbers(dy))["x"]
    far = np.minimum(np.abs(numbers(x)), 15 if activation == "gelu" else 104)
    of_tail = 2.0**-20 + 2.0**-22 * far * (far if activation == "gelu" else 1)  # the exponent of a tail, rounded a few times
    for got, exact, allowed in ((made, wanted, of_tail * np.abs(wanted)), (back, of_x, 2.0**-21 * np.abs(numbers(dy)))):
        rest = np.isfinite(exact)
        assert np.array_equal(got[~rest], exact[~rest], equal_nan=True)
        assert (np.abs(got[rest] - exact[rest]) <= allowed[rest] + SMALLEST).all()
    record_property("emulated", activation)


KERNELS = {kernel.name: kernel for kernel in shipped()}
COMPILED = [
    pytest.param(name, ARCHITECTURES[i % 2], marks=[pytest.mark.slow] if "float16" in name.replace("bfloat16", "") else [])
    for i, name in enumerate(KERNELS)
]


@pytest.mark.parametrize(("name", "architecture"), COMPILED)
def test_code_is_what_was_meant(name, architecture, record_property):
    """Nothing is spilled, nothing is in float64, and what is wide reads 16 bytes at a time."""
    pytest.importorskip("numba_cuda", reason="numba-cuda compiles kernels, and is not installed")
    if sass.folder() is None:
        pytest.skip("cuobjdump is not installed")
    from refattn_numba.cuda import toolchain

    kernel = KERNELS[name]
    cubin = toolchain.compile(kernel, architecture)
    found = sass.listing(cubin.code)
    record_property("compiled", f"{name} {architecture}")
    of = {instruction.partition(".")[0] for instruction in found}
    assert cubin.stack_bytes == 0
    assert not {"STL", "LDL", "DADD", "DMUL", "DFMA", "RET"} & of
    assert cubin.registers <= 128
    if name.startswith("conv_fold"):
        return
    is_wide = kernel.config.vector > 1
    assert any(i.startswith("LDG.E.128") for i in found) == is_wide
    assert any(i.startswith("STG.E.128") for i in found) == (is_wide and not name.startswith("depthwise_weight"))


def test_shipped_kernels_have_names_of_their_own():
    assert len(KERNELS) == len(list(shipped())) == 36
    with pytest.raises(ValueError, match="dtype is float64, but must be one of bfloat16, float16, float32"):
        choose("conv_place", "float64")


FAULTS: dict[str, tuple[ModuleType, str, str, str, str]] = {
    "one tap too few": (depthwise, "for m in range(kernel_w)", "for m in range(kernel_w - 1)", "3x3", "wrong"),
    "dilation ignored": (depthwise, "first * stride_w + m * dilation_w - pad_w", "first * stride_w + m - pad_w", "strides, taps apart", "wrong"),
    "pad on the other side": (depthwise, "at = first + pad_w - m", "at = first - pad_w - m", "3x3", "wrong"),
    "positions past the last": (depthwise, "smaller(target_w - first, there * positions)", "there * positions", "3x3", "fault or wrong"),
    "examples past the last": (depthwise, "there = batch - b", "there = batch - b + 1", "3x3", "fault or wrong"),
    "outputs of a channel summed": (depthwise, "channel * multiplier + j if", "channel * multiplier if", "two for each", "wrong"),
    "channel of an output": (depthwise, "quotient(channel, multiplier)", "quotient(channel * multiplier, multiplier)", "two for each", "fault or wrong"),
    "bias of the first channels": (depthwise, "load(bias + channel * width", "load(bias + channel * 0", "3x3", "wrong"),
    "a part of the rows left out": (depthwise_weight, "quotient(whole + splits - 1, splits)", "quotient(whole, splits)", "along a line", "wrong"),
    "rows taken twice": (depthwise_weight, "here = split + turn * splits", "here = split + turn * (splits - 1)", "along a line", "wrong"),
    "tap of a row": (depthwise_weight, "tap - of_plane * kernel_w", "0", "3x3", "wrong"),
    "border on the other side": (conv_place, "border(w - low_w, source_w, mode)", "border(w - high_w, source_w, mode)", "a border around", "wrong"),
    "border not folded": (conv_place, "for k in range(1 + low_w + high_w)", "for k in range(1)", "a border around", "wrong"),
    "channels past the last": (conv_place, "smaller(channels - chunk * count, (positions", "smaller(count, (positions", "five channels", "fault or wrong"),
}  # fmt: skip
"""Module, text and what takes its place, the call that shows it, and how."""


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_caught(monkeypatch, record_property, name):
    module, old, new, on, how = FAULTS[name]
    record_property("emulated", "fault")
    text = inspect.getsource(module)
    assert text.count(old) == 1, f"{module.__name__} has {old!r} {text.count(old)} times"
    faulty = ModuleType(module.__name__)
    exec(compile(text.replace(old, new), str(module.__file__), "exec"), vars(faulty))
    faces = {
        face: (configured, getattr(faulty, builder.__name__) if builder.__module__ == module.__name__ else builder, parameters)
        for face, (configured, builder, parameters) in conv_small_configurations.FACES.items()
    }
    monkeypatch.setattr(conv_small_configurations, "FACES", faces)
    monkeypatch.setattr(conv_linear, "MOST_SPLITS", 3)
    with pytest.raises((Fault, AssertionError)) as caught:
        judge(monkeypatch, on, "float32")
    assert ("fault" if isinstance(caught.value, Fault) else "wrong") in how
