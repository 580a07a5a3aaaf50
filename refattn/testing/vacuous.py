"""Comparisons in which nothing can be told: the budget is larger than what is compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from refattn._core import Array
from refattn.testing.report import Result

VACUOUS = "the budget is larger than the signal: nothing can be told here"
NOTHING = 2.0**-30
"""What is this much smaller than the gradients beside it is zero by mathematics: no case has numbers of such different sizes."""


def is_vacuous(budget: Array, exact: Array, beside: float = 0.0) -> bool:
    """Whether most elements' budgets are larger than the largest element.

    A gradient that is zero by mathematics, such as that of a bias of keys, has no size of its own: what a wrong kernel returns
    for it is as large as the gradients beside it, so the budget is compared with these.
    """
    sizes = np.abs(np.where(np.isfinite(exact), exact, 0))
    largest = float(sizes.max(initial=0))
    signal = beside if largest < NOTHING * beside else largest
    return bool(signal > 0 and budget.size and (budget > signal).mean() > 0.5)


def largest_beside(path: str, gradients: Mapping[str, Array]) -> float:
    """The largest element of the gradients in the same record."""
    parent = path.rpartition(".")[0]
    beside = [g for other, g in gradients.items() if other.rpartition(".")[0] == parent and g.size]
    return max((float(np.abs(np.where(np.isfinite(g), g, 0)).max()) for g in beside), default=0.0)


def untold(results: Iterable[Result]) -> list[str]:
    """What was compared in vain wherever it was: ``mechanism, dtype: what``, or no more than the mechanism where that is all of it."""
    found: dict[tuple[str, str], dict[str, list[bool]]] = {}
    for r in results:
        if r.status != "skipped" or r.reason == VACUOUS:
            found.setdefault((r.mechanism, r.dtype), {}).setdefault(r.what, []).append(r.reason != VACUOUS)
    named = []
    for (mechanism, dtype), parts in found.items():
        vain = [what for what, told in parts.items() if not any(told)]
        named += [f"{mechanism}, {dtype}"] if len(vain) == len(parts) else [f"{mechanism}, {dtype}: {what}" for what in vain]
    return named
