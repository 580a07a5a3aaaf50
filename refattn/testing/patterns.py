"""Where an array is wrong, and what it has in common with the right one: facts that need no knowledge of the operation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from refattn._core import Array, Booleans

MOST_WORK = 5e7  # products that are spent on looking for slices that have changed places
TILES = (256, 128, 64, 32, 16, 8)
MOST_NAMED = 8


def ratios(got: Array, exact: Array, budget: Array) -> Array:
    """Error over budget; NaN must meet NaN, an infinity the same infinity."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        same = (got == exact) | (np.isnan(got) & np.isnan(exact))
        ratio = np.where(same, 0, np.abs(got - exact) / budget)
    return np.where(np.isnan(ratio) | (~same & ~(np.isfinite(got) & np.isfinite(exact))), np.inf, ratio)


def patterns(got: Array, exact: Array, budget: Array, axes: Sequence[str]) -> tuple[str, ...]:
    """Facts about a wrong array, each of which holds for all of its elements.

    Parameters
    ----------
    got, exact, budget : array
        What came, what should have come, and how far apart they may be.
    axes : sequence of str
        What an index along each axis is called.

    Returns
    -------
    tuple of str
        Statements, the most telling ones first; none where nothing holds.
    """
    if got.shape != exact.shape:
        return tuple(_other_layout(got, exact, budget, axes))
    wrong = ratios(got, exact, budget) > 1
    if not wrong.any():
        return ()
    return (*_values(got, exact, budget, wrong), *_moved(got, exact, budget, axes), *_places(wrong, axes))


def _near(got: Array, other: Array, budget: Array) -> bool:
    return bool((ratios(got, other, budget) <= 1).all())


def _other_layout(got: Array, exact: Array, budget: Array, axes: Sequence[str]) -> Iterator[str]:
    if got.size != exact.size:
        return
    for i, j in itertools.combinations(range(exact.ndim), 2):
        other, allowed = exact.swapaxes(i, j), budget.swapaxes(i, j)
        if other.shape == got.shape and _near(got, other, allowed):
            yield f"it is what is expected with the axes of {axes[i]} and {axes[j]} swapped"
    if _near(got.ravel(), exact.ravel(), budget.ravel()):
        yield "it has the expected elements in the expected order, but another shape"


def _values(got: Array, exact: Array, budget: Array, wrong: Booleans) -> Iterator[str]:
    """What is true of the wrong elements' numbers."""
    where = "" if wrong.all() else "where it is wrong, "
    ours, theirs, allowed = exact[wrong], got[wrong], budget[wrong]
    finite = np.isfinite(ours)
    if np.isnan(theirs).all():
        yield f"{where or 'everywhere '}it is NaN"
        return
    if (lost := int((~np.isfinite(theirs) & finite).sum())) and lost < theirs.size:
        yield f"{lost} of {theirs.size} wrong elements are NaN or infinite"
        return
    if (theirs == 0).all():
        yield f"{where or 'everywhere '}it is 0"
        return
    if not (np.isfinite(theirs).all() and finite.all()) or theirs.size < 2:
        return
    same_everywhere = not where
    factor = float((ours * theirs).sum() / max(float((ours * ours).sum()), np.finfo(float).tiny))
    spread = np.abs(ours).max() > 4 * allowed.min()  # a factor of what is nearly 0 says nothing
    if spread and factor and _near(theirs, factor * ours, allowed * max(1.0, abs(factor))):
        yield f"{where}it is {_said(factor)} times what is expected"
        return
    offset = float((theirs - ours).mean())
    if np.ptp(ours) > 8 * np.abs(allowed).max() and _near(theirs, ours + offset, allowed) and (same_everywhere or theirs.size > 2):
        yield f"{where}it is what is expected plus {offset:.4g}"


CONSTANTS = {
    "log2(e)": 1 / math.log(2),
    "ln(2)": math.log(2),
    "sqrt(2)": math.sqrt(2),
    "1 / sqrt(2)": math.sqrt(0.5),
}


def _said(factor: float) -> str:
    """A number, with its name where it has one to four digits."""
    for name, x in CONSTANTS.items():
        if abs(factor / x - 1) < 1e-4:
            return f"{factor:.4g} = {name}"
    for n in range(3, 1025):
        for name, x in ((f"1/{n}", 1 / n), (f"sqrt({n})", math.sqrt(n)), (f"1/sqrt({n})", n**-0.5)):
            if math.isqrt(n) ** 2 != n and abs(factor / x - 1) < 1e-4:
                return f"{factor:.4g} = {name}"
    return f"{factor:.4g}"


def _moved(got: Array, exact: Array, budget: Array, axes: Sequence[str]) -> Iterator[str]:
    """Slices that stand in the wrong places."""
    if not (np.isfinite(got).all() and np.isfinite(exact).all()):
        return
    for i, j in itertools.combinations(range(exact.ndim), 2):
        if exact.shape[i] == exact.shape[j] > 1 and _near(got, exact.swapaxes(i, j), np.maximum(budget, budget.swapaxes(i, j))):
            yield f"the axes of {axes[i]} and {axes[j]} are swapped"
        else:
            other, allowed = (x.swapaxes(i, j).reshape(x.shape) for x in (exact, budget))
            if min(exact.shape[i], exact.shape[j]) > 1 and _near(got, other, allowed):
                yield f"the elements lie in memory with the axes of {axes[i]} and {axes[j]} swapped"
    for axis, name in enumerate(axes):
        g, e, b = (np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1) for x in (got, exact, budget))
        if len(g) > 1 and (said := _places_of(g, e, b, name)):
            yield said


def _places_of(got: Array, exact: Array, budget: Array, name: str) -> str:
    """How the slices along one axis have changed places; empty where they have not."""
    n = len(got)
    for by in (1, -1):
        there, here = (slice(by, None), slice(None, -by)) if by > 0 else (slice(None, by), slice(-by, None))
        if n > 2 and _near(got[there], exact[here], np.maximum(budget[there], budget[here])):
            return f"shifted by one: {name} i holds what is expected of {name} i {'-' if by > 0 else '+'} 1"
    if n * n * got.shape[1] > MOST_WORK:
        return ""
    wrong = np.nonzero((ratios(got, exact, budget) > 1).any(axis=1))[0]
    distance = (got[wrong] ** 2).sum(axis=1)[:, None] + (exact**2).sum(axis=1) - 2 * got[wrong] @ exact.T
    source = distance.argmin(axis=1)
    if not _near(got[wrong], exact[source], np.maximum(budget[wrong], budget[source])) or not exact[source].any():
        return ""
    if len(wrong) == n and (source == n - 1 - np.arange(n)).all():
        return f"the {plural(name)} are in reverse order"
    pairs = [f"{i} that of {j}" for i, j in zip(wrong, source, strict=True)]
    shown = ", ".join(pairs[:MOST_NAMED]) + (", ..." if len(pairs) > MOST_NAMED else "")
    return f"the {plural(name)} have changed places: {name} {shown}"


def _places(wrong: Booleans, axes: Sequence[str]) -> Iterator[str]:
    """Along which axes only some indices are wrong, and which."""
    if wrong.ndim > 1 and wrong.shape[-1] > 2 and wrong.shape[-2] > 2 and (said := _diagonal(wrong, axes)):
        yield said
        wrong = np.asarray(wrong.any(axis=(-2, -1)))
    for axis, name in zip(range(wrong.ndim), axes, strict=False):
        hit = np.asarray(wrong.any(axis=tuple(a for a in range(wrong.ndim) if a != axis)))
        if not hit.all() and (said := _indices(hit, name)):
            yield said


def _diagonal(wrong: Booleans, axes: Sequence[str]) -> str:
    last = wrong.any(axis=tuple(range(wrong.ndim - 2)))
    rows, columns = np.nonzero(last)
    offsets = np.unique(columns - rows)
    if len(offsets) != 1 or len(rows) < 3:
        return ""
    by = int(offsets[0])
    return f"only the diagonal where {axes[-1]} = {axes[-2]}{f' {by:+d}' if by else ''} is wrong"


def plural(name: str) -> str:
    """Several of them."""
    irregular = {"query": "queries", "index": "indices", "class": "classes"}
    *before, last = name.split(" ")
    return " ".join([*before, irregular.get(last, last + "s")])


def _indices(hit: Booleans, name: str) -> str:
    """The indices of an axis that are wrong, in words."""
    n, at = len(hit), np.nonzero(hit)[0]
    first, last = int(at[0]), int(at[-1])
    if len(at) == 1:
        return f"only {name} {first} of {n} is wrong{' (the last)' if last == n - 1 else ' (the first)' if first == 0 else ''}"
    if len(at) == last - first + 1:
        return f"only {plural(name)} {first} to {last} of {n} are wrong{_tile(first, last, n)}"
    for period in range(2, n // 2 + 1):
        if (hit[period:] == hit[:-period]).all():
            return f"{plural(name)} are wrong in stripes of period {period}: {_residues(np.nonzero(hit[:period])[0], name, period)}"
    if len(at) <= MOST_NAMED:
        return f"only {plural(name)} {', '.join(map(str, at))} of {n} are wrong"
    return f"{len(at)} of {n} {plural(name)} are wrong, from {first} to {last}" if 2 * len(at) <= n else ""


def _tile(first: int, last: int, n: int) -> str:
    """Which tile a range is."""
    for tile in TILES:
        if first and first % tile == 0 and last == n - 1 and n - first < tile:
            return f" (the last, incomplete tile of {tile})"
        if first % tile == 0 and last - first + 1 == tile:
            return f" (a tile of {tile})"
    return " (the last ones)" if last == n - 1 else " (the first ones)" if first == 0 else ""


def _residues(at: Any, name: str, period: int) -> str:
    first, last = int(at[0]), int(at[-1])
    if len(at) == 1:
        return f"{name} {first}, {first + period}, {first + 2 * period}, ..."
    run = f"{first} to {last}" if len(at) == last - first + 1 else ", ".join(map(str, at[:MOST_NAMED]))
    return f"those whose index modulo {period} is {run}"
