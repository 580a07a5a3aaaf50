"""The suite of airspeed velocity: it finds each benchmark once, leaves out what is not there, and its errors are errors."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import refattn

with mock.patch.dict(os.environ):  # the suite pins threads of whoever imports it
    from benchmarks.suite import attention, convolution, gpu, linear, measured, starting

BENCHMARKS = Path(measured.__file__).parent.parent
CLASSES = (attention.Attention, attention.Caches, linear.Linear, convolution.Convolution)


def test_threads_are_pinned_before_numpy_is_imported():
    program = "import suite, os, sys; assert 'numpy' not in sys.modules; print(*(os.environ[p + '_NUM_THREADS'] for p in suite.POOLS))"
    told = {**os.environ, "OMP_NUM_THREADS": "7"}
    told.pop("REFATTN_BENCH_THREADS", None)
    done = subprocess.run([sys.executable, "-c", program], cwd=BENCHMARKS, env=told, stdout=subprocess.PIPE, text=True, check=True)
    assert set(done.stdout.split()) == {"1"}


def test_asv_finds_each_benchmark_once():
    discovery = pytest.importorskip("asv_runner.discovery")
    with mock.patch.dict(os.environ), mock.patch.object(sys, "path", [str(BENCHMARKS), *sys.path]):
        found = [b.name for b in discovery.disc_benchmarks(str(BENCHMARKS / "suite"))]
    for name in [n for n in sys.modules if n.split(".")[0] == "suite"]:
        del sys.modules[name]
    assert len(set(found)) == len(found)
    kinds = ("time_call", "peakmem_process", "track_error_over_budget")
    wanted = {f"{c.__module__.rpartition('.')[2]}.{c.__name__}.{kind}" for c in CLASSES for kind in kinds}
    assert set(found) == wanted | {
        "starting.Import.timeraw_import",
        "starting.FirstCall.track_compiling",
        "starting.FirstCall.track_cached",
        "gpu.Attention.time_call",
        "gpu.Convolution.time_call",
    }


@pytest.mark.parametrize(("kind", "case"), [(k, case) for k in CLASSES for case in k.problems], ids=lambda x: getattr(x, "__name__", x))
def test_every_problem_runs_both_ways_and_each_way_has_the_same_output(kind, case):
    made = []
    for direction in measured.DIRECTIONS:
        one = kind()
        one.setup("refattn", case, direction)
        made.append(one.call())
    (forward, none), (again, gradients) = made
    assert none is None
    assert gradients
    for a, b in zip(*((y if isinstance(y, tuple) else (y,)) for y in (forward, again)), strict=True):
        assert np.array_equal(a, b)


def test_an_error_is_that_of_the_call_over_its_budget():
    one = convolution.Convolution()
    parameters = ("refattn", "1-D", measured.BOTH)
    one.setup(*parameters)
    assert 0 < one.track_error_over_budget(*parameters) < 1
    call = one.call
    one.call = lambda: (call()[0], {n: g * (1 + 1e-9) for n, g in call()[1].items()})
    assert one.track_error_over_budget(*parameters) > 1


def test_what_is_not_there_is_left_out(monkeypatch):
    monkeypatch.setitem(convolution.Convolution.problems, "1-D", convolution.Convolution.problems["1-D"]._replace(mechanism="conv4d"))
    monkeypatch.setitem(sys.modules, "refattn_numba", None)
    for package in measured.PRECISIONS:
        with pytest.raises(NotImplementedError, match=f"{package} has no conv4d"):
            convolution.Convolution().setup(package, "1-D", measured.FORWARD)
    measured.warm_up()
    with pytest.raises(NotImplementedError):
        starting.FirstCall().setup({}, "attention")
    assert starting.FirstCall().setup_cache() == {}


def test_what_takes_numpy_minutes_is_for_twins_alone(monkeypatch):
    monkeypatch.setitem(convolution.Convolution.problems, "1-D", convolution.Convolution.problems["1-D"]._replace(twins_only=True))
    with pytest.raises(NotImplementedError, match="too long"):
        convolution.Convolution().setup("refattn", "1-D", measured.FORWARD)
    assert np.isnan(convolution.Convolution().track_error_over_budget("refattn_numba", "1-D", measured.FORWARD))


@pytest.mark.parametrize("kind", [gpu.Attention, gpu.Convolution])
def test_without_a_gpu_its_benchmarks_are_left_out(kind, monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    parameters = next(itertools.product(*kind.params))
    with pytest.raises(NotImplementedError):
        kind().setup(*parameters)


def test_a_first_call_compiles_and_the_next_process_reads(tmp_path):
    call = "refattn_numba.elu_plus_one(x)"
    pytest.importorskip("numba")
    first = starting._first_call(str(tmp_path), (8,), call)
    stored = sorted(tmp_path.rglob("*.nbc"))
    assert stored
    assert 0 < starting._first_call(str(tmp_path), (8,), call) < first
    assert sorted(tmp_path.rglob("*.nbc")) == stored


def test_large_problems_are_added_when_asked_for():
    program = "from suite import attention, convolution; print(len(attention.Attention.problems), len(convolution.Convolution.problems))"
    counts = []
    for size in ("", "large"):
        told = {**os.environ, "REFATTN_BENCH": size, "PYTHONPATH": str(Path(refattn.__file__).parent.parent)}
        done = subprocess.run([sys.executable, "-c", program], cwd=BENCHMARKS, env=told, stdout=subprocess.PIPE, text=True, check=True)
        counts.append([int(n) for n in done.stdout.split()])
    assert all(small < large for small, large in zip(*counts, strict=True))
