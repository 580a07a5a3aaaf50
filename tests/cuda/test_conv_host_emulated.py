"""Whole public calls of convolutions whose launches the emulator makes from the kernels' own source: host side and kernels together."""

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
import refattn_numba
from benchmarks.gpu_conv_battery import candidate
from refattn.testing import Case
from refattn.testing.checking import compare_case
from refattn.testing.precision import named_format
from tests.cuda import emulated_hopper, emulator, standins
from tests.cuda.test_conv_host import lying_last
from tests.cuda.test_host import StandIn

CALLS = {
    "3x3, 16 channels": ("conv2d", (2, 16, 5, 6), (24, 16, 3, 3), {"padding": 1, "stride": (2, 1)}),
    "odd channels, in groups": ("conv2d", (1, 6, 5, 4), (10, 3, 3, 2), {"padding": ((0, 2), (1, 0)), "groups": 2, "dilation": (1, 2)}),
    "a border of copies": ("conv2d", (1, 5, 4, 5), (3, 5, 3, 3), {"padding": ((2, 0), (1, 3)), "padding_mode": "replicate"}),
    "transposed": ("conv_transpose2d", (1, 8, 3, 4), (8, 16, 3, 3), {"stride": 2, "padding": 1, "output_padding": (1, 0)}),
    "three dimensions": ("conv3d", (1, 8, 3, 4, 3), (8, 8, 2, 2, 3), {"padding": 1}),
    "positions first": ("separable_conv2d", (1, 8, 5, 4), (8, 1, 3, 3), {"padding": "same", "padding_mode": "circular"}),
}


def call(name):
    mechanism, shape, kernel, options = CALLS[name]
    random = np.random.default_rng(0)
    given = {"x": random.normal(size=shape), "weight": random.normal(size=kernel)}
    given["bias"] = random.normal(size=kernel[1] * options.get("groups", 1) if "transpose" in mechanism else kernel[0])
    if mechanism == "separable_conv2d":
        given = {"x": given["x"], "w_depthwise": given["weight"], "w_pointwise": random.normal(size=(6, 8, 1, 1))}
    return mechanism, Case(name, {**given, **options})


def launch(kernel, blocks, arguments, buffers):
    (emulated_hopper if "hopper" in kernel.name else emulator).launch(kernel, blocks, arguments, buffers)


@pytest.mark.parametrize(("dtype", "capability"), [("float32", (9, 0)), ("bfloat16", (9, 0)), ("float16", (8, 0))])
@pytest.mark.parametrize("name", CALLS)
def test_public_calls(monkeypatch, record_property, name, dtype, capability):
    mechanism, case = call(name)
    prepare = lying_last if dtype == "bfloat16" else lambda x: x
    with standins.pretending(monkeypatch, launch, capability=capability) as recorder:
        found = list(compare_case(candidate(mechanism, StandIn("torch"), prepare), getattr(refattn, mechanism), case, named_format(dtype)))
    assert [(r.what, r.error_over_budget, r.reason) for r in found if r.status == "fail"] == []
    assert any(r.status == "pass" for r in found)
    taken = {x.kernel.name.partition(f"_{dtype}")[0] for x in recorder.launches}
    has_rows = name not in {"odd channels, in groups", "a border of copies", "positions first"}
    assert {"conv_forward", "conv_forward_hopper"} & taken
    assert ("conv_input_hopper" in taken) == (capability == (9, 0) and dtype == "bfloat16" and has_rows)
    record_property("emulated", name)


def test_the_environment_may_ask_for_portable_kernels(monkeypatch):
    monkeypatch.setenv("REFATTN_CUDA_PORTABLE", "1")
    _, case = call("3x3, 16 channels")
    x, weight = (standins.to_device(case.arguments[n], dtype="float16") for n in ("x", "weight"))
    with standins.pretending(monkeypatch) as recorder:
        refattn_numba.conv2d(x, weight)
    assert not any("hopper" in launch.kernel.name for launch in recorder.launches)
