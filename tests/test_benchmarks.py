"""The machinery of the benchmarks, on tiny cases; how fast anything is, no test says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import agreement, cases, measure, side_by_side, tables


def row(name, peak, **seconds):
    return measure.Row(name, {n: measure.Timing(s, 0.1, 5) for n, s in seconds.items()}, peak)


def test_every_suite_has_cases_with_names_of_their_own():
    for name in cases.SUITES:
        names = [c.name for c in cases.suite(name)]
        assert names
        assert len(set(names)) == len(names)


def test_contenders_take_turns():
    turns = []
    calls = {n: lambda n=n: turns.append(n) or np.ones(2) for n in ("ours", "theirs")}
    timed = measure.timings(calls, rounds=3, tolerance=0)
    assert turns == ["ours", "theirs"] * 4  # the first pair is the comparison
    assert list(timed) == ["ours", "theirs"]
    assert all(t.rounds == 3 and t.seconds > 0 and t.spread >= 0 for t in timed.values())


def test_contenders_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"result 1 of theirs differs from that of ours by 5\.0e-01"):
        measure.timings({"ours": lambda: (np.ones(3), np.array([2.0])), "theirs": lambda: (np.ones(3), np.array([1.0]))}, 1, 1e-9)
    with pytest.raises(ValueError, match="by nan"):
        agreement.refuse_difference({"ours": np.ones(1), "theirs": np.array([np.nan])}, 1e-9)
    agreement.refuse_difference({"ours": np.ones(2), "theirs": lambda: (np.ones(2),)}, 0)  # made when the clock has stopped


def test_errors_are_those_of_the_corner_that_is_known():
    got = np.array([[1.5, 4.0], [0.0, 9.0]])
    largest, mean = agreement.errors((np.array([[1.0, 4.0]]), np.ones(1)), (got, np.ones(1)))
    assert largest == pytest.approx(0.5 / 4)
    assert mean == pytest.approx(np.sqrt(0.25 / 17))
    assert agreement.errors(np.array([1.0]), np.array([np.nan])) == (pytest.approx(np.nan, nan_ok=True),) * 2


@pytest.mark.parametrize("case", cases.suite("smoke"), ids=lambda c: c.name)
def test_the_cases_run_and_agree(case):
    timed = measure.child("time", case, rounds=2, threads=1)
    assert timed["case"] == case.name
    assert next(iter(timed["timings"])) == "refattn"


def test_a_table_is_aligned_and_says_what_is_missing():
    cells = side_by_side.as_cells([row("long name", 2**30, refattn=0.2, torch=0.1), row("b", None, refattn=0.0123456)])
    lines = tables.aligned(cells).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["case", "refattn", "ms", "torch", "ms", "refattn", "/", "torch", "peak", "GiB"]
    assert lines[2].split() == ["long", "name", "200", "±5%", "100", "±5%", "2.00", "1.00"]
    assert lines[3].split() == ["b", "12.35", "±5%", "-", "-", "-"]


def test_a_table_in_markdown_has_as_many_columns_in_each_line():
    lines = tables.markdown([["case", "a", "b"], ["x", "1", "2"]]).splitlines()
    assert lines == ["| case | a | b |", "| --- | ---: | ---: |", "| x | 1 | 2 |"]


def test_the_command_measures_in_other_processes(capsys):
    assert side_by_side.main(["smoke", "--json", "--rounds", "2", "--threads", "1"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [r["case"] for r in records] == [c.name for c in cases.suite("smoke")]
    for r in records:
        assert r["threads"] == 1
        assert r["rounds"] == 2
        assert r["milliseconds"]["refattn"] > 0
        assert r["peak_gib"] is None or 0.01 < r["peak_gib"] < 2
        assert r["ratio"].keys() == r["milliseconds"].keys() - {"refattn"}


def test_a_case_that_fails_is_reported():
    with pytest.raises(RuntimeError, match="IndexError"):
        measure.measured("smoke", 99, rounds=1, threads=1)
