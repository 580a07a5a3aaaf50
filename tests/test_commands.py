"""Programs in other languages: checked by the command interface, and tested with golden files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn.__main__ import main
from refattn.testing.bits import stored
from refattn.testing.checking import compare_case
from refattn.testing.precision import named_format
from refattn.testing.results import read_results
from refattn.testing.safetensors import write_safetensors

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
ATTENTION = refattn.scaled_dot_product_attention
posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")


def compiler(*names):
    """The first of these that is installed. In CI, where a C compiler is everywhere, its absence is an error."""
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        (pytest.fail if os.environ.get("CI") and "cc" in names else pytest.skip)(f"none of {', '.join(names)} is installed")
    return found


@pytest.fixture(scope="module")
def attention(tmp_path_factory):
    """`docs/examples/attention.c` as a command, honest or with one of its faults."""
    cc, folder = compiler("cc", "gcc", "clang"), tmp_path_factory.mktemp("attention")

    def command(fault=0):
        program = folder / f"attention{fault}"
        if not program.exists():
            warnings = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
            subprocess.run([cc, *warnings, "-O2", f"-DFAULT={fault}", "-o", program, EXAMPLES / "attention.c", "-lm"], check=True)
        return f"'{program}' {{case}} {{out}}"

    return command


def test_a_kernel_in_c_is_right(attention, capsys):
    assert main(["check", "--command", attention(), "scaled_dot_product_attention", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    passed = [r for r in results if r["passed"]]
    assert {r["what"] for r in passed} == {"output", "d_query", "d_key", "d_value"}
    assert len(passed) > 120
    assert max(r["error_over_budget"] for r in passed) < 0.95
    reasons = {r["reason"] for r in results if r["status"] == "skipped"}
    assert reasons >= {f"{what}: not supported" for what in ("bias", "sinks", "softcap", "window", "masked_rows", "dropout_rate")}


@pytest.mark.parametrize(
    ("fault", "case", "wrong"),
    [
        (1, "exact scores, 131x200", "output"),
        (2, "causal edge, 131x200", "output"),
        (3, "exact scores, 131x200", "output"),
        (4, "exact scores, 131x200", "d_query"),
        (5, "exact scores, 131x200", "output"),
    ],
)
def test_a_fault_planted_in_c_is_found(attention, fault, case, wrong):
    chosen = next(c for c in testing.cases(ATTENTION) if c.name == case)
    for planted in (fault, 0):
        results = list(compare_case(testing.command_candidate(attention(planted), ATTENTION), ATTENTION, chosen, named_format("float32")))
        assert (wrong in {r.what for r in results if r.status == "fail"}) == bool(planted)
        assert ("fail" in {r.status for r in results}) == bool(planted)


def test_a_wrong_program_is_status_1_and_its_folders_stay(attention, tmp_path, capsys):
    options = ["--supports", "scale", "--keep", str(tmp_path), "--format", "bin"]
    assert main(["check", "--command", attention(1), "scaled_dot_product_attention", *options]) == 1
    out = capsys.readouterr().out
    assert "causal: not supported" in out
    assert out.rstrip().endswith(": wrong")
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert kept[0] == "scaled_dot_product_attention-float32-001-grouped"
    assert (tmp_path / kept[0] / "case" / "manifest.json").is_file()
    assert (tmp_path / kept[0] / "out" / "d_key.bin").is_file()


def test_a_type_that_a_program_has_not_is_skipped(attention, capsys):
    assert main(["check", "--command", attention(), "scaled_dot_product_attention", "--dtype", "bfloat16", "--supports", ""]) == 2
    captured = capsys.readouterr()
    assert "bfloat16: not supported" in captured.out
    assert captured.err == "refattn: nothing was compared\n"


def test_the_kernel_in_c_reads_golden_files_too(attention, tmp_path):
    assert (
        main(["golden", "scaled_dot_product_attention", "--case", "causal", "--format", "safetensors", "--out", str(tmp_path / "g")]) == 0
    )
    case, out = tmp_path / "g" / "float32" / "causal", tmp_path / "out"
    out.mkdir()
    program = attention().split(" {")[0].strip("'")
    subprocess.run([program, case, out], check=True)  # the offsets of the index are those in the safetensors file
    expected = testing.read_case(case).expected
    for name in ("output", "d_query", "d_key", "d_value"):
        got, want = np.fromfile(out / f"{name}.bin", "<f4"), expected[name].values()
        assert (np.abs(got.reshape(want.shape) - want) <= expected[f"{name}.budget"].values()).all()


def change_input(case, storage):
    """Another number in x, so that what is expected is no longer what it gives."""
    inputs = testing.read_case(case).inputs
    x = inputs["x"].values().copy()
    x.flat[0] += 0.01
    if storage == "bin":
        x.tofile(case / "inputs" / "x.bin")
    else:
        write_safetensors(case / "inputs.safetensors", {**inputs, "x": stored(x)})


@pytest.mark.parametrize(
    ("source", "compilers", "options", "storage"),
    [
        ("loader.cpp", ("c++", "g++", "clang++"), ["-std=c++17", "-Wall", "-Wextra", "-Werror"], "safetensors"),
        ("loader.rs", ("rustc",), ["--edition", "2021", "-Dwarnings"], "bin"),
    ],
)
def test_a_loader_of_golden_files(source, compilers, options, storage, tmp_path):
    loader = tmp_path / "loader"
    subprocess.run([compiler(*compilers), *options, EXAMPLES / source, "-o", loader], check=True)
    assert main(["golden", "softmax", "--format", storage, "--out", str(tmp_path / "golden")]) == 0

    def run(folder):
        done = subprocess.run([loader, folder], capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    plain = tmp_path / "golden" / "float32" / "plain"
    for case in plain.parent.iterdir():
        assert run(case)[:2] == (0, f"0 of {testing.read_case(case).expected['output'].bits.size} wrong\n")
    change_input(plain, storage)
    assert run(plain)[:2] == (1, "5 of 30 wrong\n")  # the row of the changed number
    status, _, said = run(tmp_path)
    assert (status, said.startswith("loader: ")) == (2, True)


def in_shell(script, **options):
    """A shell script with $1 the case and $2 the results, as a candidate for softmax."""
    return testing.command_candidate(f"/bin/sh -c '{script}' sh {{case}} {{out}}", refattn.softmax, **options)


def only(candidate, what=None):
    """The status and reason of all that a candidate's first case gives, which must be the same."""
    case = next(iter(testing.cases(refattn.softmax)))
    results = list(compare_case(candidate, refattn.softmax, case, named_format("float32")))
    found = {(r.what, r.status, r.reason) for r in results if what in {None, r.what}}
    assert len(found) == 1, found
    return found.pop()


@posix
@pytest.mark.parametrize(
    ("script", "status", "reason"),
    [
        ("exit 0", "fail", "wrote no output: expected output.bin of 120 bytes (float32, [2, 3, 5])"),
        ("echo no kernel for this machine >&2; exit 77", "skipped", "no kernel for this machine"),
        ("exit 77", "skipped", "not supported"),
        ("echo one >&2; echo >&2; echo two >&2; exit 3", "fail", "exit status 3: one | two"),
        ("kill -SEGV $$", "fail", "ended by SIGSEGV"),
        ("printf abc >$2/output.bin", "fail", "output.bin: float32 of shape (2, 3, 5) has 120 bytes, here are 3"),
        (": >$2/output.bin", "fail", "has 120 bytes, here are 0"),
        ("mkdir $2/output.bin", "fail", "wrote no output"),
        ("mkfifo $2/output.bin", "fail", "wrote no output"),
        ("echo {} >$2/x.safetensors", "fail", "x.safetensors: the header should have"),
        ("echo PK >$2/x.npz", "fail", "x.npz: File is not a zip file"),
        ("echo 1 >$2/output.npy", "fail", "output.npy: no .npy file"),
        ("head -c 3000000 /dev/zero >$2/output.bin", "fail", "wrote 3000000 bytes, but results have at most"),
        ("echo tensor output output float32 >$2/index.txt", "fail", "is no tensor ROLE NAME DTYPE FILE OFFSET NDIM DIMS..."),
        ("echo tensor output output float32 x 0 1 5 >$2/index.txt", "fail", "is no file"),
        ("echo tensor output output float32 ../stderr 0 1 0 >$2/index.txt", "fail", "is not within"),
        ("echo >$2/x; echo tensor output output float32 x 0 1 5 >$2/index.txt", "fail", "ends at byte 20 of x, which has 1"),
        ("echo >$2/x; echo tensor output output int8 x 0 1 1 >$2/index.txt", "fail", "what was written is int8"),
        ("echo >$2/x; echo tensor output output object x 0 1 1 >$2/index.txt", "fail", "dtype is"),
        ("printf \\\\377 >$2/index.txt", "fail", "codec can"),
        ("echo what is this >$2/index.txt", "fail", "wrote no output"),
    ],
)
def test_what_a_program_does_is_a_finding(script, status, reason):
    what, found, said = only(in_shell(script))
    assert (what, found) == ("all", status)
    assert reason in said


@posix
def test_a_program_that_does_not_end_is_ended_with_what_it_started():
    began = time.monotonic()
    assert "ended after 0.3 s without a result: waiting" in only(in_shell("echo waiting >&2; sleep 60 & sleep 60", timeout=0.3))[2]
    assert time.monotonic() - began < 20


KERNEL = """
import sys
from pathlib import Path
import numpy as np
case, out = map(Path, sys.argv[1:3])
index = [line.split() for line in (case / "index.txt").read_text().splitlines()]
arrays = {w[2]: np.fromfile(case / w[4], "<f4").reshape([*map(int, w[7:])]) for w in index if w[0] == "tensor"}
x, d = arrays["x"], arrays["d_output"]
y = np.exp(x - x.max(axis=-1, keepdims=True))
y /= y.sum(axis=-1, keepdims=True)
d_x = y * (d - (y * d).sum(axis=-1, keepdims=True))
"""
ENDINGS = {
    "bin": 'y.tofile(out / "output.bin"); d_x.tofile(out / "d_x.bin")',
    "npy": 'np.save(out / "output.npy", y.astype("f8")); np.save(out / "d_x.npy", d_x)',
    "npz": 'np.savez_compressed(out / "results.npz", output=y, d_x=d_x)',
    "index": """
(out / "all").write_bytes(b"before" + y.tobytes() + d_x.astype("<f8").tobytes())
shape = " ".join(map(str, (y.ndim, *y.shape)))
lines = [f"tensor output output float32 all 6 {shape}", f"tensor gradient d_x float64 all {6 + y.nbytes} {shape}"]
(out / "index.txt").write_text("\\n".join(lines))
""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_results_in_every_form_are_read(ending, tmp_path):
    (tmp_path / "kernel.py").write_text(KERNEL + ENDINGS[ending])
    command = f"'{sys.executable}' '{tmp_path / 'kernel.py'}' {{case}} {{out}}"
    report = testing.check(testing.command_candidate(command, refattn.softmax), refattn.softmax)
    report.raise_if_wrong()
    assert report.counts["pass"] >= 2 * len(list(testing.cases(refattn.softmax)))  # output and gradient


def test_gradients_that_were_not_written_are_listed(tmp_path):
    (tmp_path / "kernel.py").write_text(KERNEL + 'y.tofile(out / "output.bin")')
    command = f"'{sys.executable}' '{tmp_path / 'kernel.py'}' {{case}} {{out}}"
    report = testing.check(testing.command_candidate(command, refattn.softmax), refattn.softmax)
    report.raise_if_wrong()
    assert {(r.what, r.status, r.reason) for r in report.results if r.what != "output"} == {
        ("d_x", "skipped", "gradient of x: not supported")
    }


def test_a_gradient_that_cannot_be_read_leaves_the_output(tmp_path):
    (tmp_path / "kernel.py").write_text(KERNEL + 'y.tofile(out / "output.bin"); y[:1].tofile(out / "d_x.bin")')
    candidate = testing.command_candidate(f"'{sys.executable}' '{tmp_path / 'kernel.py'}' {{case}} {{out}}", refattn.softmax)
    assert only(candidate, "output")[1] == "pass"
    assert "d_x.bin: float32 of shape (2, 3, 5) has 120 bytes, here are 60" in only(candidate, "gradients")[2]


def test_other_cotangents_are_asked_for_anew(tmp_path):
    (tmp_path / "kernel.py").write_text(KERNEL + ENDINGS["bin"])
    candidate = testing.command_candidate(
        f"'{sys.executable}' '{tmp_path / 'kernel.py'}' {{case}} {{out}}", refattn.softmax, keep=tmp_path / "kept"
    )
    case, target = next(iter(testing.cases(refattn.softmax))), named_format("float32")
    d = np.linspace(-1, 1, case.arguments["x"].size).astype(np.float32).reshape(case.arguments["x"].shape)
    for ds, runs in ((None, 1), ((d,), 3)):
        results = list(compare_case(candidate, refattn.softmax, case, target, ds=ds))
        assert [r.status for r in results] == ["pass", "pass"]
        assert len(list((tmp_path / "kept").iterdir())) == runs


def test_bfloat16_results_need_no_library(tmp_path):
    write_safetensors(tmp_path / "r.safetensors", {"output": stored([1.5, -2.0], "bfloat16")})
    found = read_results(tmp_path, [{"name": "output", "dtype": "bfloat16", "shape": [2]}])
    np.testing.assert_array_equal(found.needed("output").values(), [1.5, -2.0])


def test_what_a_callable_supports_can_be_said(capsys):
    assert main(["check", "refattn:linear", "--supports", " ", "--verbose"]) == 0
    assert "bias: not supported" in capsys.readouterr().out
    assert main(["check", "refattn:linear", "--supports", "bias,mask"]) == 2
    assert capsys.readouterr().err == "refattn: supports names ['mask'], which linear does not have\n"


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("true {case}", {}, "must contain {out}"),
        ("true {case} '{out}", {}, "No closing quotation"),
        ("./no-such-program {case} {out}", {}, "'./no-such-program' is no program that can be run"),
        ("{case} {out}", {}, "is no program"),
        ("true {case} {out}", {"timeout": 0}, "timeout is 0"),
        ("true {case} {out}", {"timeout": float("nan")}, "timeout is nan"),
        ("true {case} {out}", {"storage": "pickle"}, "storage is 'pickle'"),
        ("true {case} {out}", {"supports": ["mask"]}, r"supports names \['mask'\], which softmax does not have"),
    ],
)
def test_commands_that_cannot_be_run(command, options, said):
    with pytest.raises(ValueError, match=said):
        testing.command_candidate(command, refattn.softmax, **options)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--command needs one NAME"),
        (["softmax", "linear"], "--command needs one NAME"),
        (["softmaks"], "did you mean 'softmax'"),
        (["softmax", "--framework", "torch"], "--command takes no --framework"),
        (["softmax", "--argument", "a=x"], "--command takes no --framework, --layout or --argument"),
        (["softmax", "--supports", "mask"], "supports names ['mask']"),
    ],
)
def test_a_command_line_that_cannot_run_is_status_2_and_one_line(arguments, said, capsys):
    assert main(["check", "--command", "true {case} {out}", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
