"""What is found when a failure is explained."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from refattn._core import Mechanism
from refattn.testing.evidence import Evidence
from refattn.testing.explaining.alternative import Alternative, both
from refattn.testing.explaining.judging import BITS_OF_TWO, Trial
from refattn.testing.explaining.tables import alternatives
from refattn.testing.patterns import patterns

MOST_CASES = 5
MOST_CASES_OF_PAIRS = 2
MOST_PAIRED = 10_000
"""Elements of a case in which combinations are tried: there are hundreds, and each is a call."""


@dataclass(frozen=True)
class Match:
    """One convention under which wrong arrays are right.

    Attributes
    ----------
    said : str
        What stands after "matches if".
    what : tuple of str
        The outputs and gradients that match.
    cases : tuple of str
        The cases in which they do.
    """

    said: str
    what: tuple[str, ...]
    cases: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """Why something is wrong, as far as it is found.

    Attributes
    ----------
    mechanism : str
        What it should have been.
    wrong : tuple of str
        The outputs and gradients that are wrong.
    cases : tuple of str
        The cases that were looked at.
    matches : tuple of Match
        Conventions, the one that explains most first; those that explain equally much are all named.
    facts : dict of str to tuple of str
        By output or gradient: where it is wrong, and what it has in common with the right one.
    """

    mechanism: str
    wrong: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    matches: tuple[Match, ...] = ()
    facts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """What stands after "matches if", without where."""
        return tuple(m.said for m in self.matches)

    @property
    def conventions(self) -> tuple[str, ...]:
        """One line for each match: what matches, if what, in how many cases."""
        return tuple(f"{', '.join(m.what)} {'matches' if len(m.what) == 1 else 'match'} if {m.said}{self._share(m)}" for m in self.matches)

    def __bool__(self) -> bool:
        """Whether there is something to say."""
        return bool(self.matches or any(self.facts.values()))

    def __str__(self) -> str:
        if not self.wrong:
            return f"{self.mechanism}: nothing is wrong"
        lines = list(self.conventions) or ["no other convention that is known gives this result"]
        lines += [f"{what}: {fact}" for what, found in self.facts.items() for fact in found]
        return "\n".join(lines)

    def _share(self, match: Match) -> str:
        return "" if len(self.cases) < 2 else f" (in {len(match.cases)} of {len(self.cases)} cases)"


def explain(
    got: Any,
    mechanism: Mechanism[..., Any],
    inputs: Mapping[str, Any],
    *,
    gradients: Mapping[str, Any] | None = None,
    cotangents: Any = None,
    dtype: Any = "float32",
) -> Explanation:
    """Say which other convention gives the arrays that somebody has computed.

    Alignments of masks, windows that are off by one, bases of logarithms, scales, orders of heads and axes, flipped kernels, sides
    of padding, divisors of variances and the like are tried alone, then two at a time. One is named only where every element
    is within its budget under it, and where enough elements would be something else without it.

    Parameters
    ----------
    got : array or tuple of array
        The outputs.
    mechanism : mechanism
        What they should be.
    inputs : mapping
        The arguments by name, as the kernel saw them: already rounded to its precision.
    gradients : mapping or None, optional
        Gradients by name.
    cotangents : array or tuple of array or None, optional
        What the gradients were computed from; needed with `gradients`.
    dtype : str or dtype, optional
        The precision of the kernel.

    Returns
    -------
    Explanation
        Print it; ``names`` are the conventions.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x = np.arange(12.0).reshape(1, 1, 3, 4) % 7
    >>> weight = np.array([[[[1.0, 2.0], [3.0, 5.0]]]])
    >>> flipped = refattn.conv2d(x, weight[..., ::-1, ::-1])
    >>> print(refattn.testing.explain(flipped, refattn.conv2d, {"x": x, "weight": weight}))
    output matches if the kernel is flipped: a true convolution, not a cross-correlation
    """
    from refattn.testing.checking import compare_given  # noqa: PLC0415  # which imports what this module explains

    results = compare_given(got, mechanism, inputs, gradients=gradients, cotangents=cotangents, dtype=dtype)
    return explained([r.evidence for r in results if r.evidence is not None], mechanism.spec.name)


def explained(evidences: Iterable[Evidence], mechanism: str) -> Explanation:
    """The explanation of the failing cases of one mechanism, the smallest first."""
    distinct = {id(e): e for e in evidences}.values()
    cases = sorted(distinct, key=lambda e: e.elements)[:MOST_CASES]
    trials = [Trial(e) for e in cases]
    found = [_singles(t) for t in trials]
    if not any(found):
        small = [(i, t) for i, t in enumerate(trials) if t.evidence.elements <= MOST_PAIRED][:MOST_CASES_OF_PAIRS]
        for i, trial in small:
            found[i] = _pairs(trial)
    facts: dict[str, tuple[str, ...]] = {}
    for trial in reversed(trials):  # the largest case shows a pattern best
        for what in sorted(trial.wrong, key=list(trial.evidence.arrays).index):
            if what not in facts:
                facts[what] = patterns(*trial.evidence.arrays[what], trial.evidence.axes(what))
    wrong = tuple(dict.fromkeys(w for t in trials for w in t.evidence.arrays if w in t.wrong))
    names = tuple(f"{t.evidence.case}, {t.evidence.dtype}" for t in trials)
    return Explanation(mechanism, wrong, names, tuple(_merged(names, found)), facts)


Found = list[tuple[str, frozenset[str]]]


def _singles(trial: Trial) -> Found:
    tried = [(a, trial.results(a.change)) for a in alternatives(trial.mechanism, trial.evidence.arguments)]
    return _best([(a.said, *trial.matched(a.change, made)) for a, made in tried if made])


def _pairs(trial: Trial) -> Found:
    """Combinations of alternatives of which each changes something."""
    useful: list[Alternative] = []
    for a in alternatives(trial.mechanism, trial.evidence.arguments):
        made = trial.results(a.change)
        if made and trial.changes(made):
            useful.append(a)
    found = []
    for a, b in itertools.combinations(useful, 2):
        if a.about != b.about and (made := trial.results(both(a.change, b.change))):
            found.append((f"{a.said}, and {b.said}", *trial.matched(both(a.change, b.change), made, BITS_OF_TWO)))
    return _best(found)


def _best(found: Sequence[tuple[str, frozenset[str], bool]]) -> Found:
    """For each array the alternatives that explain most: as many arrays as possible, and all the rest as it came."""
    kept: dict[str, frozenset[str]] = {}
    for what in sorted({w for _, matched, _ in found for w in matched}):
        ours = [(said, matched, (len(matched), whole)) for said, matched, whole in found if what in matched]
        most = max(rank for *_, rank in ours)
        kept |= {said: matched for said, matched, rank in ours if rank == most}
    return list(kept.items())


def _merged(cases: Sequence[str], found: Sequence[Found]) -> list[Match]:
    """The alternatives of all cases; for each array only those that explain it in most of them."""
    counts: dict[str, dict[str, list[str]]] = {}
    for case, ours in zip(cases, found, strict=True):
        for said, matched in ours:
            for what in matched:
                counts.setdefault(what, {}).setdefault(said, []).append(case)
    kept: dict[str, tuple[list[str], list[str]]] = {}
    for what, by_name in counts.items():
        most = max(map(len, by_name.values()))
        for said, where in by_name.items():
            if len(where) == most:
                arrays, every = kept.setdefault(said, ([], []))
                arrays.append(what)
                every += [c for c in where if c not in every]
    made = [
        Match(said, tuple(sorted(arrays, key=lambda w: (w.startswith("d_"), w))), tuple(every)) for said, (arrays, every) in kept.items()
    ]
    return sorted(made, key=lambda m: (-len(m.what), -len(m.cases)))
