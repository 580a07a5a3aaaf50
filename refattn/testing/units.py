"""The unit of work: one case of one mechanism, named so that any process on any machine can make it.

A unit holds names and numbers alone. Whoever works on it draws the arrays from the counter-based generator, so that nothing
large is ever sent, and so that the arrays are the same everywhere.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import refattn
from refattn._core import Mechanism
from refattn.testing.battery import Case, Level, cases
from refattn.testing.checking import _is_default

HANDED = "handed over in other ways"
"""The case of a unit that stands for all of `handling.handled`: which these are depends on the candidate."""


class Unit(NamedTuple):
    """One case in one format.

    Attributes
    ----------
    mechanism, case, dtype : str
        Names.
    level : {"quick", "full", "torture"}
        Whose cases are counted.
    seed : int
        Of the draws.
    place : int
        The case is number `place` of this level and seed, from 0.
    """

    mechanism: str
    case: str
    dtype: str
    level: Level
    seed: int
    place: int

    def __str__(self) -> str:
        return f"{self.mechanism}, {self.case}, {self.dtype}"


def named_mechanism(name: str) -> Mechanism[..., Any]:
    """The mechanism of this name; LookupError where there is none."""
    found = getattr(refattn, name, None)
    if not hasattr(found, "spec"):  # one that the package does not export, or none
        found = {m.__name__: m for m in refattn.mechanisms()}.get(name)
    if found is None:
        raise LookupError(f"no mechanism is named {name!r}")
    return found


def units(
    mechanisms: Sequence[str],
    dtypes: Sequence[str],
    levels: Sequence[Level] = ("quick",),
    seeds: Sequence[int] = (0,),
    *,
    handed: bool = False,
) -> Iterator[Unit]:
    """All units, in an order that never changes: by mechanism, level, seed and format, then by case.

    Parameters
    ----------
    mechanisms, dtypes : sequence of str
        Names.
    levels : sequence of str, optional
        As for `cases`.
    seeds : sequence of int, optional
        As for `cases`.
    handed : bool, optional
        Whether one more unit of each is what `HANDED` names.

    Yields
    ------
    Unit
        Without its arrays.
    """
    for mechanism in mechanisms:
        for level in levels:
            for seed in seeds:
                for dtype in dtypes:
                    names = [case for case, _ in contents(mechanism, level, seed)] + [HANDED] * handed
                    for place, case in enumerate(names):
                        yield Unit(mechanism, case, dtype, level, seed, place)


@functools.lru_cache(maxsize=1024)
def contents(mechanism: str, level: Level, seed: int) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The name of each case, and of the options that it sets; arrays are drawn for it, and dropped."""
    m = named_mechanism(mechanism)
    return tuple((case.name, options(m, case.arguments)) for case in cases(m, level, seed))


def options(mechanism: Mechanism[..., Any], arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """The optional arguments that a call gives another value than their default."""
    defaults = mechanism.spec.defaults
    return tuple(sorted(n for n, x in arguments.items() if n in defaults and not _is_default(x, defaults[n])))


class _Place(threading.local):
    """How far this thread has drawn the cases of one mechanism, level and seed."""

    series: tuple[str, str, int] | None = None
    at = -1
    case: Case | None = None
    following: Iterator[Case] = iter(())


_place = _Place()


def drawn(unit: Unit) -> Case:
    """The case of a unit, with its arrays.

    Cases are drawn one after another, and the last one is kept: units asked for in their order are drawn once each.

    Parameters
    ----------
    unit : Unit
        What to draw.

    Returns
    -------
    Case
        One of `cases`.
    """
    series = (unit.mechanism, unit.level, unit.seed)
    if _place.series != series or _place.at > unit.place or _place.at < 0:
        _place.series, _place.at, _place.case = series, -1, None
        _place.following = cases(named_mechanism(unit.mechanism), unit.level, unit.seed)
    while _place.at < unit.place:
        _place.case = next(_place.following, None)
        _place.at += 1
    case = _place.case
    if case is None or case.name != unit.case:
        _place.series = None
        raise LookupError(
            f"case {unit.place} of {unit.mechanism} is {case.name if case else 'missing'!r}, but the unit names {unit.case!r}"
        )
    return case


@functools.cache
def fingerprint() -> str:
    """The package's version, and a digest of its sources: what two processes must share to speak of the same cases.

    Returns
    -------
    str
        Such as ``"0.1.0 3f2a..."``.
    """
    return f"{refattn.__version__} {sources('refattn')}"


@functools.cache
def sources(package: str) -> str:
    """A digest of all Python files of an installed package."""
    found = importlib.util.find_spec(package)
    digest = hashlib.sha256()
    for here in map(Path, (found and found.submodule_search_locations) or ()):
        for path in sorted(here.rglob("*.py"), key=lambda p: p.relative_to(here).as_posix()):
            digest.update(path.relative_to(here).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
