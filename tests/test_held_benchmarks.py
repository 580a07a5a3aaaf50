"""What cases with floors are measured and reported by; nothing here depends on how fast anything is."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import held_report, quiet, rounds
from benchmarks.cases import Case, Work, suite
from benchmarks.held import HeldRow, Run, hold


def run(ours, torch=None, *, rate=1e9, percent=50.0, disturbed=0, **more):
    seconds = {"refattn_numba": ours, **({"torch": torch} if torch else {}), **more}
    errors = {n: 1e-6 * (i + 1) for i, n in enumerate(seconds)}
    return Run(seconds, dict.fromkeys(seconds, 0.04), "float32", rate, percent, errors, errors, 9, disturbed)


def case(floor=None, percent=None, baseline="torch"):
    return Case("a case", dict, floor=floor, percent_floor=percent, baseline=baseline, work=Work("float32", 1e6))


def test_the_running_tasks_of_others_are_read():
    assert quiet.running("0.39 0.28 0.69 1/87 5120\n") == 0
    assert quiet.running("0.39 0.28 0.69 4/87 5120\n") == 3


def test_idle_and_waiting_are_not_busy():
    assert quiet.busy_ticks("cpu  10 1 2 1000 500 3 4 5 7 7\ncpu0 1 1 1 1 1 1 1 1 0 0\n") == 10 + 1 + 2 + 3 + 4 + 5


def test_waiting_ends_when_others_do(monkeypatch, tmp_path):
    load, slept = tmp_path / "loadavg", []
    load.write_text("1 1 1 3/9 1")

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 5:
            load.write_text("1 1 1 1/9 1")

    monkeypatch.setattr(quiet, "LOAD", load)
    monkeypatch.setattr(quiet.time, "sleep", sleep)
    quiet.Watch(patience=1e3).wait()
    assert len(slept) == 5 - 1 + quiet.LOOKS


def test_patience_ends_and_is_for_all_waits(monkeypatch, tmp_path):
    load, now = tmp_path / "loadavg", [0.0]
    load.write_text("1 1 1 3/9 1")
    monkeypatch.setattr(quiet, "LOAD", load)
    monkeypatch.setattr(quiet.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(quiet.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    watch = quiet.Watch(patience=1.0)
    watch.wait()
    assert now[0] == pytest.approx(1.0, abs=2 * quiet.STEP)
    watch.wait()
    assert now[0] == pytest.approx(1.0, abs=4 * quiet.STEP)


def test_where_the_system_does_not_tell_nobody_is_waited_for(monkeypatch, tmp_path):
    slept = []
    monkeypatch.setattr(quiet, "LOAD", tmp_path / "none")
    monkeypatch.setattr(quiet, "STAT", tmp_path / "none")
    monkeypatch.setattr(quiet.time, "sleep", slept.append)
    watch = quiet.Watch(patience=1.0)
    watch.wait()
    assert len(slept) == quiet.LOOKS
    with watch:
        pass
    assert not watch.disturbed()


def test_what_others_take_disturbs_a_round_and_no_later_one(monkeypatch):
    others = iter([0.0, 0.2, 0.2, 0.21])
    monkeypatch.setattr(quiet, "others_seconds", lambda: next(others))
    watch = quiet.Watch(patience=1.0)
    with watch:
        pass
    assert watch.disturbed()
    with watch:
        pass
    assert not watch.disturbed()


def clock(monkeypatch, costs):
    """A clock that calls alone move, by what each costs; and the calls."""
    now, made = [0.0], []

    def call(name):
        made.append(name)
        now[0] += costs[name]

    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now[0])
    return {n: lambda n=n: call(n) for n in costs}, made


class Peace:
    """Watches nobody; says of the rounds whether they were disturbed."""

    def __init__(self, *disturbed):
        self.answers = iter(disturbed)

    def wait(self):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass

    def disturbed(self):
        return next(self.answers, False)


def test_a_turn_wakes_a_short_call_and_times_several(monkeypatch):
    calls, made = clock(monkeypatch, {"short": 0.004, "long": 0.2})
    assert len(rounds.turn(calls["short"], 0.004)) == 5
    assert len(made) == 3 + 5
    assert rounds.turn(calls["long"], 0.2) == pytest.approx([0.2])
    assert made[8:] == ["long"]


def test_who_does_not_matter_has_fewer_turns(monkeypatch):
    calls, _ = clock(monkeypatch, {"ours": 0.05, "torch": 0.05, "jax": 0.05, "numpy": 0.5})
    made = rounds.in_rounds(calls, 9, main={"ours", "torch"}, seconds=1e3, watch=Peace())
    assert {n: sum(n in r.seconds for r in made) for n in calls} == {"ours": 9, "torch": 9, "jax": rounds.ENOUGH, "numpy": 1}


def test_disturbed_rounds_are_made_again_and_left_out(monkeypatch):
    calls, _ = clock(monkeypatch, {"ours": 0.05})
    made = rounds.in_rounds(calls, 4, main={"ours"}, seconds=1e3, watch=Peace(True, False, True))
    assert [r.disturbed for r in made] == [True, False, True, False, False, False]
    assert len(rounds.quiet_ones(made)) == 4


def test_rounds_end_with_the_time_for_them(monkeypatch):
    calls, _ = clock(monkeypatch, {"ours": 2.0})
    assert len(rounds.in_rounds(calls, 9, main={"ours"}, seconds=1.0, watch=Peace(*[True] * 99))) == rounds.ENOUGH
    assert len(rounds.in_rounds(calls, 1, main={"ours"}, seconds=1.0, watch=Peace())) == 1


def test_medians_and_limits_are_of_quiet_rounds():
    made = [rounds.Round({"a": [s, s, 9.0]}, d) for s, d in ((1.0, False), (2.0, False), (6.0, False), (0.5, True))]
    assert rounds.turns_of("a", made) == [1.0, 2.0, 6.0]
    assert rounds.turns_of("a", made[2:]) == [6.0, 0.5]  # too few quiet ones to choose from
    assert rounds.leasts_of("a", made) == [1.0, 2.0, 6.0]
    assert rounds.middle_and_spread([4.0, 1.0, 2.0, 3.0, 5.0]) == (3.0, pytest.approx(2 / 3))
    assert rounds.middle_and_spread([4.0]) == (4.0, 0.0)


def test_a_floor_holds_when_the_median_of_the_runs_does():
    row = HeldRow(case(1.4, 80), [run(1.0, t, percent=p) for t, p in ((1.0, 99.0), (1.5, 79.0), (1.6, 78.0))])
    assert row.ratio == pytest.approx(1.5)
    assert (row.holds, row.percent_holds) == (True, False)
    assert row.spread("torch") == pytest.approx(0.6 / 1.5)
    assert HeldRow(case(1.6), [run(1.0, 1.5)]).holds is False
    assert HeldRow(case(1.6), [run(1.0, 1.5), run(1.0, 1.5, disturbed=6)]).believable is True
    assert HeldRow(case(1.6), [run(1.0, 1.5), run(1.0, 1.5, disturbed=7)]).believable is False
    assert HeldRow(case(), [run(1.0, 1.5)]).holds is None


def test_a_record_has_the_fields_that_are_promised():
    row = HeldRow(case(1.4, None), [run(0.002, 0.003, jax=0.004, numpy=0.5)])
    record = json.loads(json.dumps(held_report.as_record(row, 2)))
    promised = "case ours_ms baseline baseline_ms torch_ms ratio floor percent_of_limit limit max_error torch_max_error"
    assert set(promised.split()) <= record.keys()
    assert record["ratio"] == record["baseline_ms"] / record["ours_ms"] == pytest.approx(1.5)
    assert record["others_ms"] == {"jax": pytest.approx(4)}
    assert (record["holds"], record["percent_floor"], record["percent_holds"]) == (True, None, None)
    assert (record["numpy_ms"], record["max_error"], record["torch_max_error"]) == (pytest.approx(500), 1e-6, 2e-6)


def test_without_the_baseline_there_is_no_ratio():
    record = held_report.as_record(HeldRow(case(1.4), [run(0.002)]), 2)
    assert [record[n] for n in ("baseline", "baseline_ms", "torch_ms", "ratio", "holds", "torch_max_error")] == [None] * 6


def test_the_baseline_may_be_our_own():
    row = HeldRow(case(1.6, baseline="refattn_numba float32"), [run(0.001, 0.005, **{"refattn_numba float32": 0.002})])
    assert held_report.as_record(row, 2)["ratio"] == 2


def test_tables_are_aligned_and_say_whether_floors_hold():
    rows = [HeldRow(case(1.4, 80), [run(0.001, 0.0015, rate=5e11, jax=0.004)]), HeldRow(case(percent=40), [run(0.001, disturbed=8)])]
    text = held_report.as_text(rows, 2)
    for part in text.split("\n\n")[1:3]:
        assert len({len(line) for line in part.splitlines()}) == 1
    assert "limits: float32 500 GFLOP/s" in text
    assert "1.4 holds" in text
    assert "80% missed" in text
    assert "8 of 18 rounds" in text
    assert "40% holds?" in text
    columns = {line.count("|") for line in held_report.as_markdown(rows, 2).split("\n\n")[1].splitlines()}
    assert len(columns) == 1


def test_a_case_is_held_to_the_limit_of_the_machine():
    pytest.importorskip("numba")
    made = hold(suite("attention")[0], {"refattn_numba": lambda: np.ones(2)}, 1, 1)
    assert made.limit == "float32"
    assert made.rate > 1e8
    assert made.rounds >= 1
    assert made.percent > 0
    assert made.max_error == {}


@pytest.mark.parametrize("name", ["float32", "float64", "bfloat16", "read"])
def test_each_limit_is_a_call_that_does_a_known_amount(monkeypatch, name):
    pytest.importorskip("numba")
    from benchmarks import limits

    monkeypatch.setattr(limits, "STEPS", 10)
    monkeypatch.setattr(limits, "READ_BYTES", 1 << 14)
    stated, call, amount = limits.limit(name, threads=2)
    call()
    assert stated == name or (stated == "float32" and not limits.HOST.has_bfloat16_dot)
    if name == "read":
        assert amount == 1 << 14
    elif name == "bfloat16" and limits.HOST.has_tiles:
        assert amount == 2 * 4 * 2 * 16 * 16 * 32  # threads, products, multiplications and additions, of tiles
    else:
        assert amount % (10 * 2 * limits.REGISTERS) == 0
    assert limits._read(np.ones(1024, np.float32)) == 1024  # every element is read
