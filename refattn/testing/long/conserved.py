"""What a law says: a sum, what it must be, how far off it may be, and how large it would be were it not for the law."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array
from refattn.testing.report import compare


class Law(NamedTuple):
    """One conservation law, in every head.

    Attributes
    ----------
    name : str
        The equation in words.
    got, expected, budget : array
        Both sides, and how far apart they may be.
    signal : array
        The size that the sum would have, were its terms unrelated. A budget beyond it makes the law say nothing.
    """

    name: str
    got: Array
    expected: Array
    budget: Array
    signal: Array


def fields(law: Law) -> dict[str, Any]:
    """The fields of a `Result`."""
    got, expected, budget, signal = (np.asarray(x, dtype=np.float64) for x in np.broadcast_arrays(*law[1:]))
    found = compare(got, expected, budget)
    if found["status"] == "pass" and got.size:
        if not (budget < signal).any() and signal.any():
            return {"status": "skipped", "reason": "the budget is larger than a sum of unrelated terms: nothing can be told here"}
        clear = budget / np.where(signal == 0, np.inf, signal)
        found["reason"] = f"sees a change of {np.median(clear):.1g} of such a sum"
    return found


def skipped(reason: str) -> dict[str, Any]:
    """A law that does not hold for this call, or that lacks an argument."""
    return {"status": "skipped", "reason": reason}
