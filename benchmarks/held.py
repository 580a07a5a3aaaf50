"""Cases that are held to floors: beside a baseline, and beside what the machine can do at most."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.agreement import errors, refuse_difference
from benchmarks.cases import Call, Case
from benchmarks.quiet import Watch
from benchmarks.rounds import ENOUGH, in_rounds, leasts_of, middle_and_spread, turns_of

SECONDS, PATIENCE = 0.45, 0.45  # of a run, for each round that is asked for: to measure, and besides to wait until others rest


@dataclass(frozen=True)
class Run:
    """What one process measured of a case, by contender: our own is the first.

    Attributes
    ----------
    seconds, spread : dict of str to float
        The median of the rounds, and the quartiles' distance relative to it.
    limit, rate, percent : str, float, float
        The machine's limit, the most operations or bytes a second that were seen, and the share that our median reaches of what the
        median round saw: processors change their clock, and ours is not the fastest round either.
    max_error, rms_error : dict of str to float
        Against the reference in float64; empty where that takes long.
    rounds, disturbed : int
        How many rounds there were, and in how many other programs took part.
    """

    seconds: Mapping[str, float]
    spread: Mapping[str, float]
    limit: str
    rate: float
    percent: float
    max_error: Mapping[str, float]
    rms_error: Mapping[str, float]
    rounds: int
    disturbed: int


@dataclass(frozen=True)
class HeldRow:
    """The runs of one case; each number is the median of theirs."""

    case: Case
    runs: list[Run]

    @property
    def ours(self) -> str:
        """Our contender's name."""
        return next(iter(self.runs[0].seconds))

    @property
    def baseline(self) -> str | None:
        """Whom we are measured against, where it is installed."""
        return self.case.baseline if self.case.baseline in self.runs[0].seconds else None

    def milliseconds(self, name: str | None) -> float | None:
        """Of a contender, where it took part."""
        return None if name is None or name not in self.runs[0].seconds else 1e3 * statistics.median(run.seconds[name] for run in self.runs)

    def spread(self, name: str) -> float:
        """From the least to the greatest of the runs' medians, relative to their median; of a single run, what it found itself."""
        medians = [run.seconds[name] for run in self.runs]
        return self.runs[0].spread[name] if len(medians) == 1 else (max(medians) - min(medians)) / statistics.median(medians)

    @property
    def ratio(self) -> float | None:
        """The baseline's time over ours."""
        theirs, ours = self.milliseconds(self.baseline), self.milliseconds(self.ours)
        return None if theirs is None or ours is None else theirs / ours

    @property
    def percent(self) -> float:
        """Of the machine's limit."""
        return statistics.median(run.percent for run in self.runs)

    @property
    def believable(self) -> bool:
        """Whether others left us in peace for as many rounds of each run as a median needs."""
        return all(run.rounds - run.disturbed >= min(ENOUGH, run.rounds) for run in self.runs)

    @property
    def holds(self) -> bool | None:
        """Whether the ratio reaches its floor; None where there is none, or no baseline."""
        return None if self.case.floor is None or self.ratio is None else self.ratio >= self.case.floor

    @property
    def percent_holds(self) -> bool | None:
        """Whether the share of the limit reaches its floor."""
        return None if self.case.percent_floor is None else self.percent >= self.case.percent_floor


def hold(case: Case, calls: Mapping[str, Call], rounds: int, threads: int) -> Run:
    """Timings beside the machine's limit, and errors."""
    from benchmarks.limits import limit  # noqa: PLC0415  (compiles)

    assert case.work is not None
    contenders = {name: call for name, call in calls.items() if name != "exact"}
    results = {name: call() for name, call in contenders.items()}
    refuse_difference(results, case.tolerance)
    found = {}
    if "exact" in calls:
        wanted = calls["exact"]()
        found = {name: errors(wanted, result) for name, result in results.items()}
        del wanted
    del results
    name, at_limit, amount = limit(case.work.limit, threads)
    ours = next(iter(contenders))
    main = {ours, case.baseline, "torch", "limit"}
    made = in_rounds({**contenders, "limit": at_limit}, rounds, main=main, seconds=SECONDS * rounds, watch=Watch(PATIENCE * rounds))
    medians = {n: middle_and_spread(turns_of(n, made)) for n in contenders}
    at_least = leasts_of("limit", made)
    return Run(
        seconds={n: m for n, (m, _) in medians.items()},
        spread={n: s for n, (_, s) in medians.items()},
        limit=name,
        rate=amount / min(at_least),
        percent=100 * case.work.amount / medians[ours][0] * statistics.median(at_least) / amount,
        max_error={n: largest for n, (largest, _) in found.items()},
        rms_error={n: mean for n, (_, mean) in found.items()},
        rounds=len(made),
        disturbed=sum(r.disturbed for r in made),
    )
