"""Sweeps: the same report from every engine, nothing lost where workers end, and ledgers from which they go on."""

from __future__ import annotations

import functools
import json
import multiprocessing
import random
import threading
import warnings
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

import pytest

import refattn
from refattn import testing
from refattn.__main__ import main
from refattn.testing import engines
from refattn.testing.jobs import Job
from refattn.testing.ledger import Ledger, result_of
from refattn.testing.units import Unit, contents, drawn, fingerprint, units
from tests import kernels

SOFTMAX = len(list(testing.cases(refattn.softmax)))
UNITS = SOFTMAX + 1  # and one that hands a case over in other ways
RESULTS = len(testing.check(kernels.softmax, refattn.softmax).results)  # one of each call
WRONG = {"mechanisms": "softmax", "dtypes": ["float32", "float64"], "seeds": range(3)}
processes = functools.partial(ProcessPoolExecutor, 2, multiprocessing.get_context("spawn"))


def test_units_name_every_case_once_and_draw_it():
    work = list(units(["softmax", "scaled_dot_product_attention"], ["float16", "float32"], ["quick"], [0, 4]))
    assert len(set(work)) == len(work)
    wanted = {
        (m, seed): list(testing.cases(getattr(refattn, m), "quick", seed)) for m in ("softmax", work[-1].mechanism) for seed in (0, 4)
    }
    assert len(work) == 2 * sum(map(len, wanted.values()))
    random.Random(0).shuffle(work)
    for unit in work[:12]:
        case, expected = drawn(unit), wanted[unit.mechanism, unit.seed][unit.place]
        assert case.name == expected.name == unit.case
        assert all((x == expected.arguments[n]).all() for n, x in case.arguments.items() if hasattr(x, "shape"))
    assert contents("softmax", "quick", 0) == tuple((c.name, ()) for c in wanted["softmax", 0])
    with pytest.raises(LookupError, match="case 1 of softmax is 'far from zero', but the unit names 'other'"):
        drawn(Unit("softmax", "other", "float32", "quick", 0, 1))


def test_a_seed_changes_numbers_and_no_shapes():
    for m in (refattn.scaled_dot_product_attention, refattn.conv2d):
        plain, other = list(testing.cases(m)), list(testing.cases(m, seed=1))
        assert [c.name for c in other] == [f"{c.name} (seed 1)" for c in plain]
        same = 0
        for a, b in zip(plain, other, strict=True):
            arrays = [(x, b.arguments[n]) for n, x in a.arguments.items() if getattr(x, "size", 0) > 1 and x.dtype.kind == "f"]
            assert all(x.shape == y.shape for x, y in arrays)
            same += bool(arrays) and all((x == y).all() for x, y in arrays)
        assert same <= 2  # what is no random case
    with pytest.raises(ValueError, match="seed is -1, but must not be negative"):
        next(testing.cases(refattn.softmax, seed=-1))


def test_every_engine_gives_the_same_report(tmp_path):
    """Not-a-number in a failure, so that equality is that of what is printed."""
    alone = testing.sweep(kernels.wrong, **WRONG)
    assert [str(r) for r in alone.failures] == [str(r) for r in alone.results if not r.case.startswith("one class") and r.what == "output"]
    assert len(alone.results) == 2 * 3 * RESULTS
    with ThreadPoolExecutor(3) as threads:
        assert testing.sweep(kernels.wrong, **WRONG, executor=threads).to_json() == alone.to_json()
    by_name = testing.sweep("tests.kernels:wrong", **WRONG, executor=processes, ledger=tmp_path / "ledger")
    assert by_name.to_json() == alone.to_json()
    resumed = testing.sweep("tests.kernels:wrong", **WRONG, ledger=tmp_path / "ledger")
    assert resumed.to_json() == alone.to_json()
    once = testing.check(kernels.wrong, refattn.softmax, seed=1, executor=ThreadPoolExecutor)
    assert once.to_json() == testing.check(kernels.wrong, refattn.softmax, seed=1).to_json()


def test_a_kernel_that_ends_its_process_loses_only_its_own_case(tmp_path):
    single = functools.partial(ProcessPoolExecutor, 1, multiprocessing.get_context("spawn"))
    report = testing.sweep(kernels.Fatal(tmp_path / "once"), "softmax", executor=single)
    assert (tmp_path / "once").exists()
    (lost,) = [r for r in report.results if r.case == "one class"]
    assert lost.what == "all"
    assert lost.reason.startswith("no result in 3 attempts: BrokenProcessPool: ")
    honest = testing.sweep(kernels.softmax, "softmax")
    assert [r for r in report.results if r != lost] == [r for r in honest.results if r.case != "one class"]


class Scripted(Executor):
    """Runs tasks at once, except where `troubles` says that the attempt ends otherwise."""

    def __init__(self, trouble):
        self.trouble, self.closed = trouble, False

    def submit(self, function, *arguments):
        future = Future()
        error = self.trouble(*arguments) if function.__name__ == "done" else None
        if error is None:
            future.set_result(function(*arguments))
        elif isinstance(error, RuntimeError):  # as a pool that was broken before
            raise error
        else:
            future.set_exception(error)
        return future

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.closed = True


class KilledWorker(Exception):  # noqa: N818  # as dask names it
    pass


@pytest.mark.parametrize(("times", "right"), [(2, True), (3, False)])
def test_a_task_that_fails_by_itself_is_handed_in_again(times, right):
    engine = Scripted(lambda job, unit, attempt: KilledWorker("worker-3") if unit.place == 1 and attempt < times else None)
    report = testing.sweep(kernels.softmax, "softmax", executor=engine)
    assert report.passed == right
    assert not engine.closed  # it is the caller's
    assert [r.reason for r in report.results if r.case == "far from zero"] == (
        [""] if right else ["no result in 3 attempts: KilledWorker: worker-3"]
    )


def test_a_task_that_is_blamed_with_another_is_not_failed():
    """A worker that ends takes an innocent unit with it, as clusters count it."""
    fatal, flying = 2, []

    def trouble(job, unit, attempt):
        flying.append(unit.place)
        return KilledWorker("worker-1") if unit.place == fatal or (unit.place == 1 and attempt == 0) else None

    report = testing.sweep(kernels.softmax, "softmax", executor=Scripted(trouble))
    assert [r.case for r in report.failures] == ["one class"]
    assert flying == [*range(UNITS), 1, 2, 2, 2]


def test_an_answer_that_never_comes_is_asked_for_again(monkeypatch):
    monkeypatch.setattr(engines, "PATIENCE", 0.05)
    asked = []

    class Forgetful(Scripted):
        def submit(self, function, *arguments):
            if function is engines.done and arguments[1].place == 1 and asked.append(0) is None and len(asked) < 3:
                return Future()
            return super().submit(function, *arguments)

    assert testing.sweep(kernels.softmax, "softmax", executor=Forgetful(lambda *_: None)).passed
    assert len(asked) == 3


def test_an_executor_that_stays_broken_fails_what_is_left(tmp_path):
    calls = []
    engine = Scripted(lambda job, unit, attempt: calls.append(unit) or (BrokenExecutor("gone") if len(calls) > 1 else None))
    report = testing.sweep(kernels.softmax, "softmax", executor=engine, ledger=tmp_path / "ledger")
    assert [r.status for r in report.results] == ["pass", *["fail"] * (UNITS - 1)]
    assert {r.reason for r in report.failures} == {
        "no result in 3 attempts: BrokenExecutor: gone (in place of an executor, a function that makes one is called again)"
    }
    assert testing.sweep(kernels.softmax, "softmax", ledger=tmp_path / "ledger").passed  # they are not in the ledger


class Breakable(Executor):
    """Answers all that was handed in when nothing more comes; breaks with all of it where a fatal unit is among it."""

    def __init__(self, fatal, made):
        self.fatal, self.waiting, self.timer, self.broken = fatal, [], None, False
        made.append(self)

    def submit(self, function, *arguments):
        if self.broken:
            raise BrokenExecutor("broken")
        future = Future()
        if function is not engines.done:
            future.set_result("")
            return future
        if self.timer is not None:
            self.timer.cancel()
        self.waiting.append((future, arguments[1]))
        self.timer = threading.Timer(0.05, self.answer)
        self.timer.start()
        return future

    def answer(self):
        waiting, self.waiting = self.waiting, []
        self.broken = any(unit in self.fatal for _, unit in waiting)
        for future, _ in waiting:
            if self.broken:
                future.set_exception(BrokenExecutor("broken"))
            else:
                future.set_result([])

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.timer.join()


def test_the_task_that_breaks_an_executor_is_found_by_halves(monkeypatch):
    """Of 16 in flight, one breaks it: 16, 8, 4, 2 and 1 are tried, and that one twice more; the others are not blamed."""
    work = list(units(["softmax"], ["float32"], ["quick"], range(16)))
    fatal, made = {work[5], work[30]}, []
    monkeypatch.setattr(engines, "MOST", 16)
    job = Job(kernels.softmax, version=fingerprint())
    found = {unit: compared for unit, _, compared in engines.finished(work, job, lambda: Breakable(fatal, made))}
    assert found == {unit: unit not in fatal for unit in work}
    assert len(made) <= 1 + 2 * (5 + engines.ATTEMPTS - 1)


def test_what_cannot_be_an_engine_or_a_candidate_is_refused():
    class Client:
        get_executor = None

    bad = [
        ({"executor": 3}, TypeError, "executor is a int, but must be a concurrent.futures.Executor or make one"),
        ({"executor": Client()}, TypeError, r"or make one: give its get_executor\(\)"),
        ({"executor": dict}, TypeError, "executor made a dict, but must make a concurrent.futures.Executor"),
        ({"seeds": 3}, TypeError, "seeds is a int, but must be a sequence"),
        ({"dtypes": "float32"}, TypeError, "dtypes is a str, but must be a sequence"),
        ({"seeds": [1.5]}, TypeError, "'float' object cannot be interpreted as an integer"),
        ({"levels": ["most"]}, ValueError, "level is 'most', but must be one of"),
        ({"mechanisms": ["softmax", "sofmax"]}, LookupError, "no mechanism is named 'sofmax'"),
        ({"mechanisms": [3]}, TypeError, "mechanism is a int, but must be a function"),
    ]
    for options, kind, message in bad:
        with pytest.raises(kind, match=message):
            testing.sweep(kernels.softmax, **options)
    with pytest.raises(LookupError, match="no mechanism is named 'wrong': say which one the candidate should be"):
        testing.sweep(kernels.wrong)
    with pytest.raises(LookupError, match="has no attribute 'sofmax'"):
        testing.sweep("tests.kernels:sofmax", "softmax")
    with pytest.raises(ValueError, match="layout is given, but torch is a known peer"):
        testing.sweep("torch", layout="bshd")
    with pytest.raises(TypeError, match=r'cannot be sent to the workers .*: give "module:callable" or a function of a module'):
        testing.sweep(lambda x: x, "softmax", executor=processes)


def test_workers_of_another_version_are_refused():
    class Elsewhere(Scripted):
        def submit(self, function, job, *arguments):
            return super().submit(function, Job(job.candidate, version="0.0.1 elsewhere"), *arguments)

    with pytest.raises(ValueError, match=r"its workers cannot make the candidate: refattn is .* there, but 0\.0\.1 elsewhere here"):
        testing.sweep(kernels.softmax, "softmax", executor=Elsewhere(lambda *_: None))


def test_a_ledger_is_gone_on_with(tmp_path, monkeypatch):
    path = tmp_path / "below" / "ledger.jsonl"
    (tmp_path / "counted.py").write_text(
        "seen = []\ndef softmax(x):\n    seen.append(x.shape)\n    import refattn\n    return refattn.softmax(x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sweep = functools.partial(testing.sweep, "counted:softmax", dtypes=["float32"], ledger=path)
    first = sweep(seeds=[0, 1])
    import counted

    assert len(counted.seen) == 2 * RESULTS
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + 2 * UNITS
    last = RESULTS - SOFTMAX  # calls of the last unit
    path.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:50])  # as a crash leaves it
    assert sweep(seeds=[0, 1]).to_json() == first.to_json()
    assert len(counted.seen) == 2 * RESULTS + last
    assert path.read_text().splitlines() == lines
    assert len(sweep(seeds=[1, 2, 0]).results) == 3 * RESULTS  # more seeds, in another order
    assert len(counted.seen) == 3 * RESULTS + last
    assert sweep(seeds=[0, 1]).to_json() == first.to_json()
    assert len(counted.seen) == 3 * RESULTS + last
    path.write_text(lines[0][:30])  # as a crash leaves it as it begins
    assert sweep(seeds=[0, 1]).to_json() == first.to_json()
    assert path.read_text().splitlines() == lines


def test_a_ledger_of_something_else_is_refused_and_left_alone(tmp_path, monkeypatch):
    path = tmp_path / "ledger"
    kernel = tmp_path / "edited.py"
    kernel.write_text("import refattn\ndef softmax(x):\n    return refattn.softmax(x)\n")
    monkeypatch.syspath_prepend(tmp_path)
    sweep = functools.partial(testing.sweep, "edited:softmax", ledger=path)
    assert sweep().passed
    before = path.read_text()
    with pytest.raises(ValueError, match="belongs to another check: layout is 'bhsd', but None in the ledger"):
        sweep(layout="bhsd")
    with pytest.raises(ValueError, match=r"belongs to another check: candidate is 'tests\.kernels:softmax .*', but 'edited:softmax"):
        testing.sweep(kernels.softmax, ledger=path)
    kernel.write_text(kernel.read_text() + "# faster\n")
    with pytest.raises(ValueError, match="belongs to another check: candidate is 'edited:softmax"):
        sweep()
    assert path.read_text() == before
    for other, message in (
        ("a diary\n", "is a file of something else"),
        ("a diary", "is a file of something else"),
        (before.splitlines()[0] + "\n{}\n", "line 2 is no unit"),
    ):
        path.write_text(other)
        kernel.write_text("import refattn\ndef softmax(x):\n    return refattn.softmax(x)\n")
        with pytest.raises(ValueError, match=message):
            sweep()
        assert path.read_text() == other
    with pytest.raises(TypeError, match=r"candidate is tests\.test_sweep:.*<lambda>, but a ledger needs one with a name of its own"):
        testing.sweep(lambda x: x, "softmax", ledger=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_instances_are_told_apart_by_what_they_hold(tmp_path):
    testing.sweep(kernels.Fatal("a"), "relu", ledger=tmp_path / "ledger")
    with pytest.raises(ValueError, match="belongs to another check: candidate is"):
        testing.sweep(kernels.Fatal("b"), "relu", ledger=tmp_path / "ledger")


def test_results_are_the_same_after_a_way_through_json():
    found = testing.sweep(kernels.wrong, "softmax").results
    found += testing.check(lambda x: x[..., :1], refattn.softmax).results
    for r in found:
        again = result_of(json.loads(json.dumps(r.as_dict(), allow_nan=False)))
        assert str(again) == str(r)
        assert repr(again) == repr(r)


def test_two_candidates_warnings_do_not_matter():
    def warned(x):
        warnings.warn("slow path", stacklevel=1)
        return kernels.softmax(x)

    assert testing.sweep(warned, "softmax").passed


def test_a_ledger_line_is_whole_when_the_unit_is_done(tmp_path):
    (unit, *_) = units(["softmax"], ["float32"])
    with Ledger(tmp_path / "ledger", {"candidate": "x"}) as ledger:
        ledger.add(unit, testing.check(kernels.wrong, refattn.softmax).results)
        assert (tmp_path / "ledger").read_text().count("\n") == 2


def test_the_command_works_in_processes_and_goes_on_from_a_ledger(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("refattn.view.sweep_command.THREADS", ())  # this process keeps its own
    target = ["check", "tests.kernels:wrong", "softmax", "--seed", "2", "--json"]
    assert main(target) == 1
    alone = capsys.readouterr().out
    ledger = ["--ledger", str(tmp_path / "ledger")]
    assert main([*target, "--jobs", "2", *ledger]) == 1
    assert capsys.readouterr().out == alone
    assert main([*target, *ledger]) == 1
    assert capsys.readouterr().out == alone
    for options, message in (
        (["--jobs", "0"], "--jobs is 0, but must be at least 1"),
        (["--layout", "bhsd", *ledger], "belongs to another check"),
    ):
        assert main([*target, *options]) == 2
        assert message in capsys.readouterr().err
    assert main(["check", *ledger]) == 2
    assert capsys.readouterr().err == "refattn: --ledger needs a TARGET: it belongs to one\n"
