"""Errors that all point the same way: too small to be seen in one element, too many to be chance.

Rounding to nearest errs upwards as often as downwards. A kernel whose factor is off by less than a rounding stays inside the
budget of each element, but the errors of its n elements add up to n, those of rounding to sqrt(n). For a block of elements

    T = sum_i w_i (got_i - exact_i),   w_i = sign(exact_i) / s_i

where s_i is the standard deviation of the error of element i, has the standard deviation

    sqrt(sum_i w_i**2 u**2 exact_i**2 / 3 + V)

of which the first part is the last rounding, independent for each element and at most u / sqrt(3) of it, and V the variance of
all that was before. V is measured on the runs of the disturbed reference, each of which gives one T with all correlations
between elements; or, for attention, bounded from above: errors that elements of a row share are taken as equal, those of
different rows are independent.

T is a sum of at least 32 bounded errors, so as good as normal where they have nothing to do with each other. The level `full` of all
mechanisms looks at fewer than 2,000 blocks, most of them of attention's gradients; a false alarm once in 1,000 of such checks is one block
in 2 million. A normal number is beyond 5.03 standard deviations that often, Student's t with the 16 degrees of freedom of a measured V
beyond 8.06. Where V is an upper bound, or a kernel rounds less often than the model does, it is less.

Blocks are all elements, and `BLOCK` of them at a time, in order, so that an error of one part of a function's domain is not lost
in the rest. All this needs numbers whose roundings have nothing to do with each other: cases say so (`Case.independent`). It
is used in formats that are much coarser than their accumulator, since the functions of libraries err systematically by a few
units of the accumulator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn._core import Array
from refattn.testing.precision import Format

LIMIT = 5.1
MEASURED = 8.1
"""Where the variance is known, and where it is measured on 16 runs."""
BLOCK = 128
FEWEST = 32
COARSE = 256.0
"""How much coarser than the accumulator a format must be: 8 units of the accumulator in all elements are then below 1/32 of u."""

REASON = "each element is in its budget, but their errors point the same way, as those of rounding do not"


@dataclass(frozen=True)
class Spread:
    """How errors before the last rounding are spread over an array.

    Attributes
    ----------
    deviation : array
        Standard deviation of each element's error.
    runs : list of array
        Errors of the disturbed runs; none where rows are independent.
    """

    deviation: Array
    runs: list[Array]


def drift(got: Array, exact: Array, spread: Spread, target: Format) -> float:
    """The largest sum of errors of a block compared with what it may be; more than 1 is wrong."""
    usable = np.isfinite(got) & np.isfinite(exact) & (np.abs(exact) > 2.0 ** (target.lowest + 1))
    if target.unit < COARSE * target.accumulator or usable.sum() < FEWEST or got.shape != exact.shape:
        return 0.0
    last = target.unit * np.abs(exact) / np.sqrt(3)
    with np.errstate(all="ignore"):
        weight = np.where(usable, np.sign(exact) / np.hypot(spread.deviation, last), 0)
        error = np.where(usable, weight * (got - exact), 0)
    rounded = np.where(usable, (weight * last) ** 2, 0)
    if spread.runs:
        before = [np.where(usable, weight * run, 0) for run in spread.runs]
        parts = [_sums(run) ** 2 for run in before]
        variance = sum(parts[1:], parts[0]) / len(parts)
    else:
        variance = _rows(np.where(usable, np.abs(weight) * spread.deviation, 0))
    total = _sums(error)
    limit = MEASURED if spread.runs else LIMIT
    return float(np.max(np.abs(total) / (limit * np.sqrt(_sums(rounded) + variance) + np.finfo(float).tiny)))


def with_drift(fields: dict[str, Any], ratio: float) -> dict[str, Any]:
    """The fields of a result that is right element by element, with what its errors have in common."""
    fields = {**fields, "error_over_budget": max(fields["error_over_budget"], ratio)}
    return {**fields, "status": "fail", "reason": REASON} if ratio > 1 else fields


def _sums(x: Array) -> Array:
    """The sum of all, then that of each block."""
    flat = np.asarray(x).reshape(-1)
    blocks = flat[: flat.size // BLOCK * BLOCK].reshape(-1, BLOCK).sum(axis=1)
    return np.concatenate([flat.sum()[None], blocks])


def _rows(deviation: Array) -> Array:
    """The variance of the same sums, where a row's elements err together and rows for themselves.

    Of a block, what its elements may share is all that they have.
    """
    rows = deviation.sum(axis=-1)
    return np.concatenate([(rows**2).sum()[None], _sums(deviation)[1:] ** 2])
