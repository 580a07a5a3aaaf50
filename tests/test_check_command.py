"""`refattn check`: tables, JSON and exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from refattn.__main__ import main, parser
from refattn.testing import adapters
from refattn.view import check_command

KEYS = {"mechanism", "case", "what", "dtype", "status", "passed", "worst_error", "error_over_budget", "reason"}


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def renamed(scores):
    return softmax(scores)


def wrong(x):
    return softmax(x) * 1.001


def unwilling(x):
    raise NotImplementedError("no kernel for this machine")


def test_a_right_function_is_status_0(capsys):
    assert main(["check", f"{__name__}:softmax"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == [
        f"{__name__}:softmax",
        "dtype",
        "right",
        "known",
        "difference",
        "wrong",
        "skipped",
        "worst",
        "error/budget",
    ]
    assert out.rstrip().endswith("softmax: right")


def test_a_wrong_function_is_status_1_and_says_where(capsys):
    assert main(["check", f"{__name__}:wrong", "softmax", "--dtype", "float32"]) == 1
    out = capsys.readouterr().out
    assert "30 of 30 wrong, worst at (" in out
    assert out.rstrip().endswith("wrong: wrong")


def test_nothing_compared_is_status_2(capsys):
    assert main(["check", f"{__name__}:unwilling", "softmax"]) == 2
    captured = capsys.readouterr()
    assert [line.split(maxsplit=1) for line in captured.out.splitlines() if "no kernel" in line] == [["15", "no kernel for this machine"]]
    assert captured.err == "refattn: nothing was compared\n"


def test_json_is_a_list_of_objects(capsys):
    assert main(["check", f"{__name__}:softmax", "--json", "--dtype", "float64", "--dtype", "float32"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert {r["dtype"] for r in results} == {"float64", "float32"}
    for r in results:
        assert r.keys() >= KEYS
        assert (r["status"], r["passed"]) == ("pass", True)
        assert r["error_over_budget"] < 1


def test_names_of_arguments_are_mapped(capsys):
    assert main(["check", f"{__name__}:renamed", "softmax", "--argument", "scores=x", "--dtype", "float32"]) == 0
    assert main(["check", f"{__name__}:renamed", "softmax", "--dtype", "float32"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_peer"], "no adapter is named 'no_such_peer'"),
        (["no_such_module:f", "softmax"], "No module named 'no_such_module'"),
        ([f"{__name__}:unheard_of", "softmax"], "has no attribute 'unheard_of'"),
        ([f"{__name__}:wrong"], "no mechanism is named 'wrong': say which one"),
        ([f"{__name__}:softmax", "--argument", "scores"], "--argument is 'scores', but must be THEIRS=OURS"),
        ([f"{__name__}:softmax", "--layout", "zyx"], "layout is 'zyx'"),
        ([f"{__name__}:KEYS", "softmax"], "candidate is a set, but must be callable"),
    ],
)
def test_what_cannot_run_is_status_2_and_one_line(arguments, message, capsys):
    assert main(["check", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_peer_that_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(adapters.ADAPTERS, "absent", ("no_such_package", dict))
    assert main(["check", "absent"]) == 2
    assert capsys.readouterr().err == "refattn: absent is not installed\n"


def test_without_a_target_it_checks_what_is_installed(monkeypatch, capsys):
    monkeypatch.setattr(adapters, "ADAPTERS", {"one": ("numpy", lambda: {"softmax": adapters.Candidate(softmax)})})
    assert main(["check", "--dtype", "float32"]) == 0
    assert "one: right" in capsys.readouterr().out


def test_a_module_beside_the_caller_is_found(tmp_path):
    (tmp_path / "my_kernels.py").write_text("import numpy as np\ndef relu(x):\n    return np.maximum(x, 0)\n")
    done = subprocess.run(
        [sys.executable, "-m", "refattn", "check", "my_kernels:relu", "--dtype", "float32", "--verbose"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "pass" in done.stdout


def test_a_module_that_cannot_be_imported_is_status_2(tmp_path, monkeypatch, capsys):
    (tmp_path / "unfinished.py").write_text("def softmax(x:\n")
    (tmp_path / "unlucky.py").write_text("raise RuntimeError('no driver')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module, said in (("unfinished", "unfinished: SyntaxError: "), ("unlucky", "unlucky: RuntimeError: no driver")):
        assert main(["check", f"{module}:softmax", "softmax"]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        (["refattn_numba"], min(os.cpu_count(), check_command.MOST)),
        (["refattn_numba", "--jobs", "1"], 1),
        (["refattn_numba", "softmax"], 1),
        (["refattn_numba", "--report", "page.html"], 1),
        (["torch"], 1),
        (["torch", "--jobs", "3"], 3),
    ],
)
def test_all_of_a_peer_that_has_to_be_prepared_is_checked_on_all_cores(arguments, jobs):
    args = parser().parse_args(["check", *arguments])
    assert check_command._jobs(args.target, args) == jobs


def test_a_peer_is_prepared_by_the_processes_that_check_all_of_it(monkeypatch, capsys):
    calls, makers = [], []
    monkeypatch.setitem(adapters.PREPARED, "onnx", lambda *given: calls.append(given))
    monkeypatch.setattr(check_command.sweep_command, "swept", lambda job, work, make, ledger: makers.append(make) or iter(()))
    monkeypatch.setattr(adapters, "resolve", lambda *given, **named: [])
    main(["check", "onnx", "--jobs", "2"])
    main(["check", "onnx", "softmax", "--jobs", "2"])
    ((formats, level, processes),) = calls
    assert (formats, level, processes._max_workers) == ([], "quick", 2)
    assert makers[0]() is processes
    assert makers[0]() is not processes  # after a kernel has ended one of them
    capsys.readouterr()
