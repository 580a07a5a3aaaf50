"""The suite of airspeed velocity: it finds each benchmark once, leaves out what is not there, and its errors are errors."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import refattn

with mock.patch.dict(os.environ):  # the suite pins threads of whoever imports it
    from benchmarks.suite import attention, convolution, errors, gpu, linear, measured, memory, starting

BENCHMARKS = Path(measured.__file__).parent.parent
TIMED = (attention.Attention, attention.Caches, linear.Linear, convolution.Convolution)
PROCESSES = 150


def test_threads_are_pinned_before_numpy_is_imported():
    program = "import suite, os, sys; assert 'numpy' not in sys.modules; print(*(os.environ[p + '_NUM_THREADS'] for p in suite.POOLS))"
    told = {**os.environ, "OMP_NUM_THREADS": "7"}
    told.pop("REFATTN_BENCH_THREADS", None)
    done = subprocess.run([sys.executable, "-c", program], cwd=BENCHMARKS, env=told, stdout=subprocess.PIPE, text=True, check=True)
    assert set(done.stdout.split()) == {"1"}


def test_asv_finds_each_benchmark_once_and_needs_few_processes():
    discovery = pytest.importorskip("asv_runner.discovery")
    with mock.patch.dict(os.environ), mock.patch.object(sys, "path", [str(BENCHMARKS), *sys.path]):
        listed = list(discovery.disc_benchmarks(str(BENCHMARKS / "suite")))
    found = {b.name: math.prod(len(p) for p in b.params) for b in listed}
    for name in [n for n in sys.modules if n.split(".")[0] == "suite"]:
        del sys.modules[name]
    assert len(found) == len(listed)
    assert found.keys() == {
        *(f"{c.__module__.rpartition('.')[2]}.{c.__name__}.time_{way}" for c in TIMED for way in ("forward", "both")),
        "errors.Errors.track_over_budget",
        "memory.Memory.peakmem_both",
        "starting.Import.timeraw_import",
        "starting.FirstCall.track_compiling",
        "starting.FirstCall.track_cached",
        "gpu.Attention.time_call",
        "gpu.Convolution.time_call",
    }
    assert sum(found.values()) < PROCESSES  # of about a second each: `asv run --quick` has three minutes


@pytest.mark.parametrize("case", measured.problems_of(*measured.MODULES))
def test_every_problem_runs_both_ways_and_each_way_has_the_same_output(case):
    call = measured.Call("refattn", measured.problems_of(*measured.MODULES)[case])
    again, gradients = call.both()
    assert gradients
    for a, b in zip(*((y if isinstance(y, tuple) else (y,)) for y in (call.forward(), again)), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("kind", TIMED)
def test_each_way_is_timed_as_it_is_called(kind):
    parameters = "refattn", next(iter(kind.problems))
    one = kind()
    one.setup(*parameters)
    one.call = mock.Mock()
    one.time_forward(*parameters)
    one.time_both(*parameters)
    assert [name for name, *_ in one.call.method_calls] == ["forward", "both"]


def test_an_error_is_that_of_the_call_over_its_budget(monkeypatch):
    problem = convolution.Convolution.problems["1-D"]
    assert 0 < errors.over_budget("refattn", problem) < 1
    both = measured.Call.both
    monkeypatch.setattr(measured.Call, "both", lambda call: (both(call)[0], {n: g * (1 + 1e-9) for n, g in both(call)[1].items()}))
    assert errors.over_budget("refattn", problem) > 1


def test_errors_are_told_apart_from_what_is_not_there(monkeypatch):
    cases = {f"linear, {name}": measured.Problem(name, lambda random: {}) for name in ("right", "broken", "missing")}

    def answer(package, problem):
        if problem.mechanism == "right":
            return 0.5
        raise {"broken": ValueError, "missing": NotImplementedError}[problem.mechanism]("it said")

    monkeypatch.setattr(errors, "PROBLEMS", cases)
    monkeypatch.setattr(errors, "over_budget", answer)
    found = {("refattn", case): error for case, error in errors.found_of("refattn", "linear").items()}
    assert errors.found_of("refattn", "attention") == {}
    one = errors.Errors()
    one.setup(found, "refattn", "linear, right")
    assert one.track_over_budget(found, "refattn", "linear, right") == 0.5
    with pytest.raises(RuntimeError, match="ValueError: it said"):
        one.track_over_budget(found, "refattn", "linear, broken")
    with pytest.raises(NotImplementedError, match="refattn has no linear, missing"):
        one.setup(found, "refattn", "linear, missing")


def test_a_process_that_dies_takes_no_other_with_it():
    assert measured.apart(errors.cases_of, ["linear", "none"]) == [errors.cases_of("linear"), []]
    assert measured.apart(measured.offered, ["refattn", "math"], ["no name", "pi"]) == [None, np.pi]


def test_errors_of_a_process_that_dies_are_told_as_such(monkeypatch):
    monkeypatch.setattr(measured, "compile_kernels", lambda: None)
    monkeypatch.setattr(measured, "apart", lambda function, *tasks: [None, *({} for _ in tasks[0][1:])])
    found = errors.Errors().setup_cache()
    assert set(found.values()) == {"the process died, as is told above"}
    assert [case for _, case in found] == errors.cases_of("attention")


def test_what_is_not_there_is_left_out(monkeypatch):
    problem = convolution.Convolution.problems["1-D"]
    monkeypatch.setitem(convolution.Convolution.problems, "1-D", problem._replace(mechanism="conv4d"))
    monkeypatch.setitem(sys.modules, "refattn_numba", None)
    for package in measured.PRECISIONS:
        with pytest.raises(NotImplementedError, match=f"{package} has no conv4d"):
            convolution.Convolution().setup(package, "1-D")
    with pytest.raises(NotImplementedError):
        starting.FirstCall().setup({}, "attention")
    assert starting.FirstCall().setup_cache() == {}


def test_an_argument_that_a_commit_does_not_know_leaves_the_case_out():
    problem = convolution.Convolution.problems["1-D"]
    with pytest.raises(NotImplementedError, match=r"conv1d of refattn takes other arguments: .*'shuffle'"):
        measured.Call("refattn", problem._replace(arguments=lambda random: {**problem.arguments(random), "shuffle": 2}))


def test_what_takes_numpy_minutes_is_for_twins_alone(monkeypatch):
    problem = convolution.Convolution.problems["1-D"]
    monkeypatch.setitem(convolution.Convolution.problems, "1-D", problem._replace(twins_only=True))
    with pytest.raises(NotImplementedError, match="too long"):
        convolution.Convolution().setup("refattn", "1-D")


def test_memory_is_that_of_cases_that_there_are():
    assert set(memory.CASES) <= memory.Memory.problems.keys()


@pytest.mark.parametrize("kind", [gpu.Attention, gpu.Convolution])
def test_without_a_gpu_its_benchmarks_are_left_out(kind, monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    parameters = next(itertools.product(*kind.params))
    with pytest.raises(NotImplementedError):
        kind().setup(*parameters)


def test_a_first_call_compiles_and_the_next_process_reads(tmp_path):
    call = "refattn_numba.elu_plus_one(x)"
    pytest.importorskip("numba")
    stored = []
    for _ in range(2):
        assert starting._first_call(str(tmp_path), (8,), call) > 0
        stored.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")})
    assert stored[0]
    assert stored[0] == stored[1]


def test_large_problems_are_added_when_asked_for():
    program = "from suite import errors, measured; print(*(len(measured.problems_of(m)) for m in measured.MODULES), len(errors.PROBLEMS))"
    counts = []
    for size in ("", "large"):
        told = {**os.environ, "REFATTN_BENCH": size, "PYTHONPATH": str(Path(refattn.__file__).parent.parent)}
        done = subprocess.run([sys.executable, "-c", program], cwd=BENCHMARKS, env=told, stdout=subprocess.PIPE, text=True, check=True)
        counts.append([int(n) for n in done.stdout.split()])
    (*small, measured_errors), (*large, same) = counts
    assert all(a < b for a, b in zip(small, large, strict=True))
    assert measured_errors == same
