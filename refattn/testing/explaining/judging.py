"""Whether what came is what another convention gives: the same elementwise budgets, and enough evidence that it is no accident.

The budget of an alternative is how far its result moves when the reference calls that it is made of are moved by theirs. Where
it calls other mechanisms, it is measured as any budget is. An element tells between the alternative and what is expected where
the two are further apart than their budgets; it then carries ``log2(distance / budget)`` bits, since that is how improbable it is
that a number which is wrong in some other way falls into the budget.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from refattn._core import Array
from refattn._core.mechanism import outputs
from refattn._core.random import Random
from refattn.testing.arithmetic import disturbed
from refattn.testing.budget import MEASURED, RUNS, forward_budgets, gradient_budgets
from refattn.testing.calls import gradient_leaves
from refattn.testing.evidence import Arrays, Evidence
from refattn.testing.explaining.alternative import Arguments, Call, Change, Named
from refattn.testing.patterns import ratios
from refattn.testing.precision import named_format

BITS = 18.0
"""Evidence that an alternative needs: one in 260,000 random results would have it."""
BITS_OF_TWO = 28.0
"""Evidence that a combination needs: there are hundreds of times as many."""
MOST_BITS, BITS_OF_NONE = 20.0, 8.0  # of one element, however far apart the two are; where one of them is no number
DRAWS = 4


class Trial:
    """One case, of which alternatives are tried."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence, self.mechanism, self.target = evidence, evidence.of, named_format(evidence.dtype)
        self.names = self.mechanism.spec.output_names
        self.wrong = {what for what, x in evidence.arrays.items() if not _agrees(x.got, x.exact, x.budget)}
        self.forward = self.wrong & set(self.names)
        ds = evidence.cotangents
        self.ds = None if ds is None else dict(zip(self.names, ds, strict=True))

    def call(self, arguments: Arguments) -> tuple[Named, Any]:
        """The reference, by names."""
        y, pullback = self.mechanism.vjp(**arguments)
        named = dict(zip(self.names, outputs(y), strict=True))
        return named, lambda ds: gradient_leaves(pullback(*(ds.get(n) for n in self.names)))

    def results(self, change: Change, call: Call | None = None, *, gradients: bool | None = None) -> dict[str, Array]:
        """What an alternative gives: outputs, and gradients where they can decide; empty where it does not apply."""
        try:
            y, pullback = change(call or self.call)(self.evidence.arguments)
            made = {n: np.asarray(x) for n, x in y.items()}
            wanted = self._asks_for_gradients(made) if gradients is None else gradients
            if wanted and self.ds is not None:
                made |= {f"d_{n}": g for n, g in pullback(self.ds).items()}
        except Exception:  # whatever a call with other arguments refuses, it is not what was computed
            return {}
        return {n: x for n, x in made.items() if n in self.evidence.arrays}

    def _asks_for_gradients(self, made: Mapping[str, Array]) -> bool:
        """Gradients cost more than outputs: they are computed where the outputs may be right, or are not what is wrong."""
        if self.wrong == self.forward:
            return False
        return all(self._may_be(n, made[n]) for n in self.forward if n in made)

    def _may_be(self, what: str, other: Array) -> bool:
        """Whether it is worth the while to compute a budget: a coarse one, never smaller than the true one."""
        got, _, budget = self.evidence.arrays[what]
        if got.shape != other.shape:
            return False
        largest = float(np.abs(other[np.isfinite(other)]).max(initial=0))
        coarse = (32 * self.target.unit + 4096 * self.target.accumulator) * largest
        return bool((ratios(got, other, 32 * float(budget.max(initial=0)) + np.full(got.shape, coarse)) <= 1).all())

    def changes(self, made: Mapping[str, Array]) -> bool:
        """Whether something that is wrong would be something else."""
        arrays = self.evidence.arrays
        return any(n in self.wrong and not _agrees(x, arrays[n].exact, arrays[n].budget) for n, x in made.items())

    def matched(self, change: Change, made: Mapping[str, Array], bits: float = BITS) -> tuple[frozenset[str], bool]:
        """Which wrong arrays an alternative explains, and whether all the others agree with it too."""
        possible = {n for n in self.wrong & made.keys() if self._may_be(n, made[n]) and self._tells(n, made[n])}
        if not possible:
            return frozenset(), False
        if self.ds is not None and not any(n.startswith("d_") for n in made):
            made = {**self.results(change, gradients=True), **made}
            possible = {n for n in self.wrong & made.keys() if self._may_be(n, made[n]) and self._tells(n, made[n])}
        budgets = self._budgets(change, made, gradients=any(n.startswith("d_") for n in made))
        arrays = self.evidence.arrays
        agreeing = {n for n, x in made.items() if _agrees(arrays[n].got, x, budgets[n])}
        found = frozenset(n for n in possible & agreeing if _evidence(arrays[n], made[n], budgets[n]) >= bits)
        return found, agreeing == arrays.keys()

    def _tells(self, what: str, other: Array) -> bool:
        _, exact, budget = self.evidence.arrays[what]
        return not _agrees(other, exact, budget)

    def _budgets(self, change: Change, made: Mapping[str, Array], *, gradients: bool) -> dict[str, Array]:
        moved = _Moved(self)
        runs = [self.results(change, moved.next(seed), gradients=gradients) for seed in range(DRAWS)]
        if not moved.budgets:
            return self._measured(change, made, gradients=gradients)
        budgets = {}
        for n, x in made.items():
            spread = functools.reduce(np.maximum, [np.abs(run[n] - x) for run in runs if n in run])
            stated = self.evidence.arrays[n].budget
            budgets[n] = np.maximum(_finite(spread), stated if stated.shape == x.shape else 0)
        return budgets

    def _measured(self, change: Change, made: Mapping[str, Array], *, gradients: bool) -> dict[str, Array]:
        runs = []
        for seed in range(RUNS):
            with disturbed(self.target, seed), np.errstate(all="ignore"):
                runs.append(self.results(change, gradients=gradients))
        unit, floor = self.target.unit, self.target.floor
        totals = {n: functools.reduce(np.hypot, [_finite(run[n] - x) for run in runs if n in run]) for n, x in made.items()}
        return {n: unit * _finite(np.abs(x)) + MEASURED / math.sqrt(RUNS) * totals[n] + floor for n, x in made.items()}


class _Moved:
    """The reference with every result moved by its budget, up or down at random."""

    def __init__(self, trial: Trial) -> None:
        self.trial, self.budgets = trial, {}

    def next(self, seed: int) -> Call:
        random, calls = Random(seed), 0
        trial = self.trial

        def away(made: Named, budgets: Mapping[str, Array]) -> Named:
            return {n: x + budgets[n] * (2.0 * random.booleans(0.5, x.shape) - 1) if n in budgets else x for n, x in made.items()}

        def call(arguments: Arguments) -> tuple[Named, Any]:
            nonlocal calls
            number, calls = calls, calls + 1
            y, pullback = trial.call(arguments)
            exact_scores = trial.evidence.exact_scores and arguments.get("scale") is trial.evidence.arguments.get("scale")
            given = {n: x for n, x in arguments.items() if x is not None}
            if ("y", number) not in self.budgets:
                made = forward_budgets(trial.mechanism, given, _plain(y), trial.target, exact_scores=exact_scores)
                self.budgets["y", number] = made

            def back(ds: Named) -> Named:
                found = pullback(ds)
                if ("d", number) not in self.budgets:
                    filled = tuple(np.asarray(ds[n] if n in ds else np.zeros_like(y[n]), float) for n in trial.names)
                    made = gradient_budgets(trial.mechanism, given, filled, _plain(found), trial.target, exact_scores=exact_scores)
                    self.budgets["d", number] = made
                return away(found, self.budgets["d", number])

            return away(y, self.budgets["y", number]), back

        return call


def _plain(made: Named) -> dict[str, Array]:
    return {n: np.asarray(x, float) for n, x in made.items()}


def _finite(x: Array) -> Array:
    return np.where(np.isfinite(x), x, 0)


def _agrees(got: Array, other: Array, budget: Array) -> bool:
    return got.shape == other.shape and bool(
        (ratios(got, other, budget if budget.shape == got.shape else budget.max(initial=0)) <= 1).all()
    )


def _evidence(arrays: Arrays, other: Array, budget: Array) -> float:
    """Bits by which what came tells the alternative from what is expected."""
    _, exact, stated = arrays
    if exact.shape != other.shape:
        return math.inf
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        distance = ratios(other, exact, budget + stated)
        most = np.where(np.isfinite(exact) & np.isfinite(other), MOST_BITS, BITS_OF_NONE)
        bits = np.minimum(np.log2(np.maximum(distance, 1)), most)
    return float(bits.sum())
