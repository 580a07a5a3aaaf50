"""One call of a mechanism to compare, and what is known of its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """One call to compare.

    Attributes
    ----------
    name : str
        What the report calls it.
    arguments : dict
        By the mechanism's names.
    exact_scores : bool
        Whether every score is exact in the accumulator, so that the budget needs no term for it.
    independent : bool
        Whether the numbers are so many and so different that their rounding errors have nothing to do with each other, so that
        what these have in common is the kernel's (see `refattn.testing.drift`).
    """

    name: str
    arguments: dict[str, Any]
    exact_scores: bool = False
    independent: bool = False
