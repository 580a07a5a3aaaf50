"""The matrices of Winograd's short convolutions, and how far they let rounding errors grow.

``F(m, 3)`` makes m outputs of 3 taps with m + 2 multiplications, where sums of products take 3 m::

    y = A^T ((G w) * (B^T x))                    y has m numbers, w 3, x and what is multiplied m + 2

Both w and x are polynomials, which are evaluated at the points 0, 1, -1 (and 1/2, -2 for m = 4) and infinity; A^T is the transpose of
such an evaluation, and B^T that of interpolation (Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast
Algorithms for Convolutional Neural Networks, 2015, arXiv:1509.09308, equations 5 and 8). The points 1/2 and -2 have smaller errors
than 2 and -2 (Barabasz, Anderson, Soodhalter and Gregg, Error Analysis and Improving the Accuracy of Winograd Convolution for Deep
Neural Networks, 2020, arXiv:1803.10986, table 1). With several axes each has its own m. The form ``sum of dy * y`` is linear in
w, x and dy, so that the gradient of the weight is ``G^T ((B^T x) * (A dy))``, summed over tiles.

**Errors.** With ``u = eps / 2``, and ``|.|`` of each element, to first order (the theorem of the paper above)::

    |error of y|  <=  n u |A^T| (|G| |w| * |B^T| |x|)         n = ROUNDINGS * axes + 1 + roundings of a sum over channels

since an element of A^T (...) or of B^T x passes through at most `LONGEST` - 1 additions and products that are rounded, and the weight, whose
transform is computed in float64, is rounded once. Likewise, for the gradient of the weight, ``|G^T| (|B^T| |x| * |A| |dy|)``, where
G^T has its roundings and the sum is over tiles. A sum of products has ``|w| * |x|`` in that place. For numbers of one size the right side is larger than
that sum's by ``growth(m)`` for each axis at most: 2.7 for m = 2, and 9.9 for m = 4 (7.1 and 97 in two dimensions). Random errors grow far
less; `winograd` has a table.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple, TypeAlias

import numpy as np

Rows: TypeAlias = tuple[tuple[Fraction, ...], ...]

TAPS = 3


def _matrix(*rows: str) -> Rows:
    return tuple(tuple(map(Fraction, row.split())) for row in rows)


class Matrices(NamedTuple):
    """Of one axis: `inputs` is B^T, `weights` G, and `outputs` A^T."""

    inputs: Rows
    weights: Rows
    outputs: Rows


MATRICES: dict[int, Matrices] = {
    2: Matrices(
        _matrix("-1 0 1 0", "0 1 1 0", "0 -1 1 0", "0 -1 0 1"),
        _matrix("-1 0 0", "1/2 1/2 1/2", "1/2 -1/2 1/2", "0 0 1"),
        _matrix("1 1 1 0", "0 1 -1 1"),
    ),
    4: Matrices(
        _matrix("1 -3/2 -2 3/2 1 0", "0 -1 1/2 5/2 1 0", "0 1 -5/2 1/2 1 0", "0 -2 -1 2 1 0", "0 1/2 -1 -1/2 1 0", "0 1 -3/2 -2 3/2 1"),
        _matrix("1 0 0", "1/3 1/3 1/3", "-1/3 1/3 -1/3", "-16/15 -8/15 -4/15", "1/15 -2/15 4/15", "0 0 1"),
        _matrix("1 1 1 1 1 0", "0 1 -1 1/2 -2 0", "0 1 1 1/4 4 0", "0 1 -1 1/8 -8 1"),
    ),
}
"""By the number m of outputs."""

LONGEST = {2: 3, 4: 5}
"""Terms of the longest row of A^T or B^T: its sum takes one rounding less where products are fused with additions, else twice as many."""


def transposed(rows: Rows) -> Rows:
    """The matrix with rows and columns exchanged."""
    return tuple(zip(*rows, strict=True))


def sizes(rows: Rows) -> np.ndarray:
    """The absolute values, as numbers."""
    return np.abs(np.array(rows, float))


def growth(m: int) -> float:
    """How much larger the bound of one axis is than that of a sum of products, for numbers of one size."""
    inputs, weights, outputs = map(sizes, MATRICES[m])
    return float((outputs @ (weights.sum(axis=1) * inputs.sum(axis=1))).max() / TAPS)


GROWTH = {1: 1.0, **{m: growth(m) for m in MATRICES}}
"""Of an axis by the outputs of a tile."""
