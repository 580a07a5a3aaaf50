"""Contenders in turns, each with its own threads awake.

Libraries keep threads that sleep between calls, and waking them may take longer than a short call does. So a turn is: wait until
nobody runs, call for a while untimed, then time calls of the same contender for a while. The median of these is the turn's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from benchmarks.cases import Call
from benchmarks.quiet import Watch

WARM, TIMED = 0.01, 0.02  # seconds of untimed and of timed calls, one call at least
LONG = 0.1  # who takes so many seconds is not called untimed: waking threads is nothing to it
ONCE = 0.3  # who takes so many seconds, and is not a contender that matters, has one turn
ENOUGH = 3  # rounds that any median is taken of, and turns of a contender that does not matter


@dataclass(frozen=True)
class Round:
    """Seconds of the timed calls of one turn of each contender."""

    seconds: Mapping[str, list[float]]
    disturbed: bool


def timed(call: Call) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def turn(call: Call, expected: float) -> list[float]:
    """Seconds of each timed call of a turn."""
    if expected < LONG:
        _for(WARM, call)
    return _for(TIMED, call)


def _for(least: float, call: Call) -> list[float]:
    seconds = [timed(call)]
    end = time.perf_counter() + least - seconds[0]
    while time.perf_counter() < end:
        seconds.append(timed(call))
    return seconds


def in_rounds(calls: Mapping[str, Call], rounds: int, *, main: Collection[str], seconds: float, watch: Watch) -> list[Round]:
    """Rounds until as many were quiet, or until `seconds` were spent but for waiting; `main` are those who have a turn in all."""
    expected = {name: timed(call) for name, call in calls.items()}
    spent, made = 0.0, list[Round]()
    while sum(not r.disturbed for r in made) < rounds and (spent < seconds or len(made) < min(ENOUGH, rounds)):
        turns: dict[str, list[float]] = {}
        for name, call in calls.items():
            if name not in main and len(made) >= (1 if expected[name] > ONCE else ENOUGH):
                continue
            watch.wait()
            with watch:
                turns[name] = turn(call, expected[name])
            spent += sum(turns[name])
        made.append(Round(turns, watch.disturbed()))
    return made


def quiet_ones(rounds: list[Round]) -> list[Round]:
    """The rounds that nobody disturbed, or all of them where such are too few."""
    quiet = [r for r in rounds if not r.disturbed]
    return quiet if len(quiet) >= min(ENOUGH, len(rounds)) else rounds


def turns_of(name: str, rounds: list[Round]) -> list[float]:
    """The median of each turn that a contender had."""
    return [statistics.median(seconds) for seconds in _good_turns(name, rounds)]


def leasts_of(name: str, rounds: list[Round]) -> list[float]:
    """The shortest call of each turn: for what says how fast the machine can be, since nothing makes it faster than it is."""
    return [min(seconds) for seconds in _good_turns(name, rounds)]


def _good_turns(name: str, rounds: list[Round]) -> list[list[float]]:
    good = [r for r in quiet_ones(rounds) if name in r.seconds] or [r for r in rounds if name in r.seconds]
    return [r.seconds[name] for r in good]


def middle_and_spread(values: list[float]) -> tuple[float, float]:
    """The median, and the quartiles' distance relative to it."""
    middle = statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (middle,) * 3
    return middle, (high - low) / middle
