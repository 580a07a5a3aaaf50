"""The command that measures on a GPU, where there is none: what it says, its tables, its file, and that a row costs itself alone."""

import json
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("numba")

from benchmarks import gpu, gpu_battery, gpu_conv_timing, gpu_decode, gpu_rows, gpu_timing, gpu_triton
from refattn_numba.cuda import CudaError, cache, configurations, conv_configurations, conv_small_configurations, driver, hopper
from refattn_numba.cuda.kernel import Cubin
from tests.cuda import standins

TIMES = {"ms": 2.0, "spread": 0.01, "rounds": 9, "tflops": 300.0}
FOUND = {
    "battery bfloat16": {"ok": True, "compared": 400, "failed": 0, "skipped": 9, "worst": 0.61, "failures": [], "seconds": 41.0},
    "battery float16": {"ok": False, "compared": 400, "failed": 1, "skipped": 9, "worst": 3.0, "failures": ["f, causal, d_key: 3.0"], "seconds": 40.0},
    "limits": {"ok": True, "copy_tb_per_s": 4.25, "matmul_tflops": 770.0, "seconds": 9.0},
    "decode": {
        "ok": True, "seconds": 9.0,
        "shapes": {"bfloat16 16 x 32/8 x 8192 x 128": {
            "times": {"ours": {**TIMES, "tb_per_s": 4.0}, "copy": {**TIMES, "tb_per_s": 4.25}}, "share_of_copy": {"ours": 0.94}, "host_us": 90.0, "ok": True,
        }},
    },
    "attention bfloat16 4 x 16 x 4096 x 128": {
        "ok": True, "forward": {"ours": TIMES, "flash": {**TIMES, "ms": 3.0, "tflops": 200.0}}, "backward": {"ours": TIMES, "flash": TIMES}, "seconds": 20.0,
    },
    "attention bfloat16 1 x 16 x 16384 x 128": {"ok": False, "error": "hung: not done after 60 seconds", "seconds": 60},
}  # fmt: skip


def no_gpu(monkeypatch):
    def refuse():
        raise CudaError("no driver of CUDA was found")

    monkeypatch.setattr(driver, "current", refuse)


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    no_gpu(monkeypatch)
    assert gpu.main([]) == gpu.NO_GPU == 2
    assert capsys.readouterr().err == "no GPU: no driver of CUDA was found\n"


@pytest.mark.parametrize(("capability", "devices", "match"), [((9, 0), 0, "no device of CUDA"), ((7, 5), 1, "compute capability 7.5")])
def test_without_a_device_that_will_do_it_says_so(monkeypatch, capsys, capability, devices, match):
    with standins.pretending(monkeypatch, capability=capability, devices=devices):
        assert gpu.main(["--quick"]) == 2
    assert match in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--triton", "/nowhere"], "--triton is /nowhere, which is no file"),
        (["--only", "nothing is named so"], "no row's name contains"),
        (["--carry", "/nowhere"], "--carry is /nowhere, which is no folder"),
    ],
)
def test_arguments_that_are_refused(capsys, arguments, match):
    with pytest.raises(SystemExit) as stopped:
        gpu.main(arguments)
    assert stopped.value.code == 2
    assert match in capsys.readouterr().err


def test_rows_have_names_of_their_own_and_fit_in_the_time():
    found = gpu_rows.rows()
    assert len({row.name for row in found}) == len(found)
    assert [row.name for row in found[:4]] == ["battery bfloat16", "battery float16", "battery float32", "battery float8_e4m3fn"]
    assert any("causal" in row.name for row in found)
    of_row = 10 + 2 * (1 + len(gpu_timing.BACK_ENDS)) * gpu_timing.SECONDS  # to start, and for each contender forward and backward
    usual = max(row.seconds for row in found if not row.alone) + sum(of_row for row in found if row.alone)
    assert usual < 60 * gpu._parser().parse_args([]).minutes
    assert {row.name for row in found if row.quick} < {row.name for row in found}
    assert all(row.alone for row in found if not row.name.startswith("battery"))


def test_the_tables():
    text = gpu.tables(FOUND)
    lines = [line.split() for line in text.splitlines()]
    assert ["battery", "bfloat16", "400", "0", "9", "0.61", "41"] in lines
    assert "limits: a copy moves 4.25 TB/s, a product of matrices makes 770 TFLOP/s (bfloat16)" in text
    assert ["bfloat16", "16", "x", "32/8", "x", "8192", "x", "128", "4.00", "4.25", "94", "90", "yes"] in lines
    assert ["bfloat16", "4", "x", "16", "x", "4096", "x", "128", "300", "200", "1.50", "yes"] in lines
    assert "attention bfloat16 1 x 16 x 16384 x 128: hung: not done after 60 seconds" in text
    assert "    f, causal, d_key: 3.0" in text.splitlines()
    assert gpu.tables({}) == ""


def test_the_whole_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu, "in_a_process", lambda row, *, limit: dict(FOUND.get(row.name, FOUND["limits"])))
    monkeypatch.setattr(gpu, "_driver_version", lambda: "580.1")
    with standins.pretending(monkeypatch):
        assert gpu.main(["--quick", "--out", str(tmp_path)]) == gpu.WRONG
        assert gpu.main(["--only", "limits", "--out", str(tmp_path)]) == 0
        assert gpu.main(["--minutes", "0", "--only", "limits", "--out", str(tmp_path / "late")]) == 1
    (path,) = tmp_path.glob("*.json")
    held = json.loads(path.read_text())
    assert path.name == f"{held['date'][:10]}-stand-in.json"
    assert held["driver"] == "580.1"
    assert held["architecture"] == "sm_90a"
    assert "numpy" in held["versions"]
    assert held["rows"] == {"limits": FOUND["limits"]}
    out = capsys.readouterr()
    assert "capability" in out.out
    assert "battery float16: wrong" in out.out
    assert "not started: the time is over" in out.out


ROW = gpu_rows.Row("a row", 1, lambda torch: {})


@pytest.mark.parametrize(
    ("program", "wanted"),
    [
        (f"print('a note'); print('{gpu.MARK}' + '{{\"ok\": true}}')", {"ok": True, "notes": ["a note"]}),
        ("import time; time.sleep(60)", {"ok": False, "error": "hung: not done after 1 seconds"}),
        ("raise SystemExit('the device is gone')", {"ok": False, "error": "exit status 1: the device is gone"}),
        ("import os; os._exit(3)", {"ok": False, "error": "exit status 3: no output"}),
    ],
)
def test_a_row_costs_itself_alone(program, wanted):
    program = program.replace("{{", "{").replace("}}", "}")
    limit = 1 if "sleep" in program else 60
    found = gpu.in_a_process(ROW, limit=limit, command=[sys.executable, "-c", program])
    assert found.pop("seconds") >= 0
    assert found == wanted


def test_errors_of_a_row_are_its_result(monkeypatch, capsys):
    def fails(torch):
        raise RuntimeError("no luck")

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    monkeypatch.setattr(gpu_rows, "rows", lambda: (ROW._replace(work=fails),))
    assert gpu.main(["--row", "a row"]) == 0
    assert capsys.readouterr().out == gpu.MARK + '{"ok": false, "error": "RuntimeError: no luck"}\n'
    with pytest.raises(ValueError, match="no row is named 'another'"):
        gpu_rows.run("another")


def test_build_and_carry(monkeypatch, capsys, tmp_path):
    from refattn_numba.cuda import toolchain

    monkeypatch.setattr(toolchain, "compile", lambda kernel, architecture: Cubin(b"code", kernel.name, architecture, 100, 0, 0))
    assert gpu.main(["--build", str(tmp_path / "made"), "--architecture", "sm_80", "--jobs", "1"]) == 0
    count = sum(len(list(part.shipped())) for part in (configurations, conv_configurations, conv_small_configurations))
    assert capsys.readouterr().out.startswith(f"{count} kernels for sm_80, ")
    assert len(list((tmp_path / "made").iterdir())) == count
    no_gpu(monkeypatch)
    monkeypatch.setenv("REFATTN_PREBUILT", "")
    assert gpu.main(["--carry", str(tmp_path / "made")]) == 2
    assert cache.prebuilt_folder() == tmp_path / "made"
    kernel = next(configurations.shipped())
    assert cache.cubin_of(kernel, "sm_80").entry == kernel.name


class Clock:
    """PyTorch's events, on a clock that goes on by what a call takes."""

    def __init__(self):
        self.now = 0.0
        self.cuda = SimpleNamespace(Event=self.event, synchronize=lambda: None)

    def event(self, enable_timing):
        made = SimpleNamespace(at=0.0)
        made.record = lambda: vars(made).update(at=self.now)
        made.elapsed_time = lambda other: other.at - made.at
        return made


def test_contenders_take_turns(capsys):
    clock, turns = Clock(), []

    def takes(name, *times):
        def call():
            turns.append(name)
            clock.now += times[len([t for t in turns if t == name]) % len(times)]

        return call

    def unable():
        raise RuntimeError("No available kernel.\nAborting.")

    found = gpu_timing.medians(clock, {"ours": takes("ours", 1.0, 2.0, 3.0), "theirs": takes("theirs", 5.0), "none": unable}, rounds=9)
    assert found["ours"] == {"ms": 2.0, "spread": pytest.approx(0.5), "rounds": 9}
    assert found["theirs"]["ms"] == 5.0
    assert set(found) == {"ours", "theirs"}
    assert turns[6:10] == ["ours", "theirs", "ours", "theirs"]
    assert "none: No available kernel." in capsys.readouterr().out


def test_operations_are_of_visible_pairs():
    shape = gpu_timing.Shape("bfloat16", 2, 4, 2, 8, 16, causal=False)
    assert shape.operations == 4 * 2 * 4 * 64 * 16
    assert shape._replace(causal=True).operations == 4 * 2 * 4 * 36 * 16
    assert str(shape) == "bfloat16 2 x 4/2 x 8 x 16"


@pytest.mark.parametrize(
    ("errors", "right"), [({"output": 0.001}, True), ({"output": 0.5}, False), ({"output": np.nan}, False), ({}, False)]
)
def test_times_of_wrong_results_are_not_believed(errors, right):
    assert gpu_timing.is_right(errors, "bfloat16") is right


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
def test_what_pytorch_is_asked_for(heads):
    """Its own names and results, in main memory."""
    torch = pytest.importorskip("torch")
    shape = gpu_timing.Shape("float32", 1, *heads, 16, 8, causal=True)
    operands = [torch.randn(1, h, 16, 8) for h in (heads[0], heads[1], heads[1])]
    d = torch.randn_like(operands[0])
    peers = {"math": gpu_timing._peer(torch, "MATH", tuple(operands), d, shape)}
    forward, backward = peers["math"]
    errors = gpu_timing._errors(torch, peers, forward(), dict(zip(("query", "key", "value"), backward(), strict=True)))
    assert set(errors) == {"output", "query", "key", "value"}
    assert gpu_timing.is_right(errors, "float32")
    assert all(hasattr(torch.nn.attention.SDPBackend, name) for name in gpu_timing.BACK_ENDS.values())


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (1.1, False)])
def test_float8_is_timed_and_compared_with_bfloat16(monkeypatch, factor, right):
    torch = pytest.importorskip("torch")
    names = ("manual_seed", "float8_e4m3fn", "bfloat16")

    def randn(*shape, device):
        return torch.randn(*shape)

    def attend(q, k, v, causal):
        made = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=causal)
        return made * (factor if q.dtype == torch.float8_e4m3fn else 1)

    monkeypatch.setattr(gpu_timing.refattn_numba, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(gpu_timing, "medians", lambda torch, calls: {name: dict(TIMES) for name in calls})
    monkeypatch.setattr(gpu_timing, "host_microseconds", lambda torch, call: 5.0)
    on_cpu = SimpleNamespace(randn=randn, **{name: getattr(torch, name) for name in names})
    found = gpu_timing.float8_forward(on_cpu, gpu_timing.Shape("float8_e4m3fn", 1, 2, 1, 16, 8, causal=True))
    assert list(found["forward"]) == ["ours", "ours, bfloat16"]
    assert found["ok"] is right
    assert "ours over ours, bfloat16" in gpu.tables({"attention x": found})


def anywhere(make):
    def made(*given, device, **more):
        return make(*given, **more)

    return made


def test_decoding_beside_pytorch():
    """Its own names and results, in main memory; graphs are of a device alone."""
    torch = pytest.importorskip("torch")
    shape = gpu_decode.CacheShape("float32", 2, 4, 2, 48, 8)
    made = {n: torch.randn(2, h, m, 8) for n, h, m in (("query", 4, 1), ("key", 2, 48), ("value", 2, 48))}
    on_host = SimpleNamespace(full=anywhere(torch.full), randperm=anywhere(torch.randperm), int32=torch.int32)
    calls = {**gpu_decode._ours(on_host, made), "math": gpu_decode._peer(torch, "MATH", made)}
    errors = gpu_decode._errors(calls)
    assert set(errors) == {"ours", "ours, pages"}
    assert all(x < 1e-5 for x in errors.values())
    assert shape.bytes == 2 * 2 * 2 * 48 * 8 * 4
    assert str(shape) == "float32 2 x 4/2 x 48 x 8"


TUTORIAL = """
import torch
def attention(q, k, v, causal, scale):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
"""


def test_beside_triton(monkeypatch, tmp_path, capsys):
    """A tutorial of that signature, and PyTorch in main memory; who fails is left out."""
    torch = pytest.importorskip("torch")
    (tmp_path / "tutorial.py").write_text(TUTORIAL)
    monkeypatch.setenv(gpu_triton.FILE, str(tmp_path / "tutorial.py"))
    monkeypatch.setattr(gpu_triton, "_flex", lambda torch, shape: lambda *given: 1 // 0)
    monkeypatch.setattr(gpu_triton, "medians", lambda torch, calls: {name: {"ms": float(len(call()))} for name, call in calls.items()})
    names = {name: getattr(torch, name) for name in ("float32", "manual_seed", "autograd")}
    found = gpu_triton.beside_triton(
        SimpleNamespace(randn=anywhere(torch.randn), **names), gpu_timing.Shape("float32", 1, 2, 2, 16, 8, causal=True)
    )
    assert found["ok"]
    assert set(found["errors"]) == {f"{name}, triton" for name in ("output", "query", "key", "value")}
    assert set(found["forward"]) == set(found["backward"]) == {"ours", "triton"}
    assert "flex: ZeroDivisionError" in capsys.readouterr().out


def test_calls_that_no_graph_holds_are_left_out(capsys):
    class Graph:
        replay = "replayed"

    def refuses():
        raise RuntimeError("No available kernel.")

    torch = SimpleNamespace(cuda=SimpleNamespace(CUDAGraph=Graph, graph=lambda graph: nullcontext(), synchronize=lambda: None))
    assert gpu_decode._captured(torch, {"ours": lambda: None, "theirs": refuses}) == {"ours": "replayed"}
    assert "theirs: No available kernel." in capsys.readouterr().out


def test_the_batterys_summary():
    result = gpu_battery.Result
    found = [
        result("f", "a", "output", "float32", "pass", 1.0, 0.5),
        result("f", "b", "output", "float32", "fail", 1.0, 2.5),
        result("f", "c", "all", "float32", "skipped", reason="not offered"),
    ]
    assert gpu_battery.summary(found) == {"compared": 2, "failed": 1, "skipped": 1, "worst": 2.5, "failures": ["f, b, output: 2.5"]}


def test_tensors_of_the_battery_keep_their_numbers():
    torch = pytest.importorskip("torch")
    from refattn.testing.precision import named_format

    made = gpu_battery.OnCuda(torch)
    torch_on_cpu = SimpleNamespace(from_numpy=lambda x: SimpleNamespace(cuda=lambda: torch.from_numpy(x)), bfloat16=torch.bfloat16)
    made.torch = torch_on_cpu
    x = made.make(np.array([1.0, 2.5]), named_format("bfloat16"))
    assert x.dtype == torch.bfloat16
    assert made.make(np.array([True]), named_format("bfloat16")).dtype == torch.bool
    assert np.array_equal(made.plain(x), [1.0, 2.5])


def test_the_portable_battery_has_portable_kernels_alone(monkeypatch):
    monkeypatch.setenv("REFATTN_CUDA_PORTABLE", "")
    asked = []
    monkeypatch.setattr(
        gpu_rows, "battery", lambda torch, dtype: asked.append((dtype, hopper.fitting(dtype, 64, 64, has_limits=False))) or {}
    )
    gpu_rows.portable_battery(None)
    assert asked == [("bfloat16", None)]


LAYER = {
    "forward": {"ours": TIMES, "torch": {**TIMES, "ms": 1.0}},
    "backward": {"ours": {**TIMES, "ms": 5.0}},
    "operations": 4e11,
    "bytes": 1e9,
    "ok": True,
}


def test_the_table_of_convolutions():
    """The limit is the product, which takes 0.52 ms; a copy would take 0.24."""
    lines = [
        line.split() for line in gpu.tables({"limits": FOUND["limits"], "convolutions": {"layers": {"a": LAYER}, "ok": True}}).splitlines()
    ]
    assert ["a", "2.000", "1.000", "0.50", "26", "%", "yes"] in lines
    assert ["a", "5.000", "-", "-", "21", "%", "yes"] in lines
    assert gpu_conv_timing.table({"layers": {"a": LAYER}}, {}, "forward").split()[-2:] == ["-", "yes"]
    assert gpu_conv_timing.table({}, {}, "forward") == ""


def test_layers_have_names_of_their_own_and_pytorchs_sizes():
    torch = pytest.importorskip("torch")
    assert len({str(shape) for shape in gpu_conv_timing.SHAPES}) == len(gpu_conv_timing.SHAPES)
    for shape in gpu_conv_timing.SHAPES:
        x, w = (
            torch.empty(1, shape.c_in, shape.size, shape.size, device="meta"),
            torch.empty(shape.c_out, shape.c_in // shape.groups, shape.kernel, shape.kernel, device="meta"),
        )
        y = torch.nn.functional.conv2d(x, w, stride=shape.stride, padding=shape.padding, groups=shape.groups)
        assert y.shape[1:] == (shape.c_out, shape.out, shape.out)
        assert shape.operations == 2 * shape.batch * y.numel() * w[0].numel()
        assert shape.moved == 2 * (shape.batch * (x.numel() + y.numel()) + w.numel())


def test_a_layer_is_compared_with_pytorch(monkeypatch):
    """Its own names and results, in main memory, where ours is the twin."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(gpu_conv_timing, "DEVICE", "cpu")
    monkeypatch.setattr(
        gpu_conv_timing, "medians", lambda torch, contenders, seconds: {n: call() is not None for n, call in contenders.items()}
    )
    found = gpu_conv_timing._layer(torch, gpu_conv_timing.ConvShape(4, 6, 8, 3, 2, groups=2, batch=2))
    assert found["ok"]
    assert set(found["errors"]) == {"output", "x", "weight"}
    assert found["forward"] == found["backward"] == {"ours": True, "torch": True}
