"""Rows against their budgets: one result for all that was looked at of one array."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, Integers
from refattn.testing.long.arrays import part
from refattn.testing.long.sampled import Exact
from refattn.testing.report import compare


class Looked(NamedTuple):
    """Some rows of one array of a candidate, and what should stand there.

    Attributes
    ----------
    lead : tuple of int
        The leading indices.
    heads : slice
        Along the axis of heads.
    rows : int array
        Along the axis of tokens.
    whole : array
        The candidate's, of which the rows are read.
    exact : Exact
        (heads, rows, features), or (heads, rows).
    """

    lead: tuple[int, ...]
    heads: slice
    rows: Integers
    whole: Any
    exact: Exact

    def places(self) -> list[tuple[int, ...]]:
        """Where each row stands in the whole array."""
        return [(*self.lead, h, int(r)) for h in range(self.heads.start, self.heads.stop) for r in self.rows]


def judged(looked: Iterable[Looked], sampled: str, floor: float) -> dict[str, Any]:
    """The fields of a `Result`: a row whose budget is larger than all that stands in it tells nothing, unless it is wrong."""
    all_looked = list(looked)
    flat = all_looked[0].exact.value.ndim == 2 if all_looked else False
    got, value, budget, told = (np.concatenate(x) for x in zip(*(_rows(x, flat) for x in all_looked), strict=True))
    index = [at for x in all_looked for at in x.places()]
    if not index:
        return {"status": "pass", "worst_error": 0.0, "error_over_budget": 0.0, "reason": sampled}
    signal = np.abs(np.where(np.isfinite(value), value, 0)).max(axis=1, keepdims=True, initial=0)
    wrong = np.asarray([compare(g[None], v[None], b[None])["status"] == "fail" for g, v, b in zip(got, value, budget, strict=True)])
    nothing = budget.max(axis=1, initial=0) <= 4 * floor  # a row that sees nothing, whose zeros are told apart from all else
    clear = told & (wrong | nothing | ((budget > signal).mean(axis=1) <= 0.5))
    unclear = int((~clear).sum())
    said = f"; the budget of {unclear} rows is larger than what stands there, or they see what is not finite" if unclear else ""
    if not clear.any():
        return {"status": "skipped", "reason": f"nothing can be told here{said}"}
    at = np.flatnonzero(clear)
    fields = compare(got[at], value[at], budget[at])
    row, feature = fields.pop("worst_index")
    reason = sampled + said
    return {**fields, "worst_index": index[at[row]] if flat else (*index[at[row]], feature), "reason": reason}


def _rows(looked: Looked, flat: bool) -> tuple[Array, Array, Array, Any]:
    got = part(looked.whole, looked.lead, looked.heads, looked.rows)
    features = 1 if flat else got.shape[-1]
    value, budget = looked.exact.value, np.broadcast_to(looked.exact.budget, looked.exact.value.shape)
    told = np.broadcast_to(looked.exact.told, got.shape[:2])
    return got.reshape(-1, features), value.reshape(-1, features), budget.reshape(-1, features), told.reshape(-1)
