"""Error-free transformations: sums and products of float64 together with their rounding errors, which are float64 too.

They use ``+``, ``-``, ``*``, comparisons and whole-number operations on the bits, which IEEE 754 fixes to the last bit, element by
element. No step depends on where an element lies or on how many there are, so instruction sets and strides cannot change a bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refattn._core import Array

UNIT = 2.0**-53
TINY = 2.0**-1070
"""More than what one product loses to underflow: each of its six roundings errs by 2**-1075 at most, below the normal numbers."""
SLACK = 1 + 2.0**-40
"""Error bounds are sums of some tens of rounded terms, each of relative error 2**-53."""
MOST_PASSES = 64
"""Far more than numbers take to come to rest; no accuracy depends on it, since passes keep the sum."""
HALF = np.int64(1 << 26)
UPPER = np.int64(-(1 << 27))


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded sum, and what it lacks: ``s + e = a + b`` exactly [1]_.

    References
    ----------
    .. [1] Knuth, "The Art of Computer Programming", volume 2, section 4.2.2, theorem B.
    """
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def halves(a: Array) -> tuple[Array, Array]:
    """``a`` as a sum of two numbers of 26 bits: the nearest multiple of 2**27 last places, and the rest, of either sign.

    Rounding is done on the bits, so that the largest numbers do not overflow, as they would in Veltkamp's multiplication.
    """
    upper = ((np.asarray(a).view(np.int64) + HALF) & UPPER).view(np.float64)
    return upper, a - upper


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded product, and what it lacks, up to `TINY` [1]_.

    References
    ----------
    .. [1] Dekker, "A Floating-Point Technique for Extending the Available Precision", Numerische Mathematik 18, 1971.
    """
    return product_of_halves(a, halves(a), b, halves(b))


def product_of_halves(a: Array, a_halves: tuple[Array, Array], b: Array, b_halves: tuple[Array, Array]) -> tuple[Array, Array]:
    """`two_product` of numbers that are already split."""
    p = a * b
    (a1, a2), (b1, b2) = a_halves, b_halves
    return p, a2 * b2 - (((p - a1 * b1) - a2 * b1) - a1 * b2)


def distilled(terms: Sequence[Array], components: int, places: Sequence[int] | None = None) -> tuple[list[Array], Array]:
    """The sum of the terms as so many components, each the nearest float64 to what is left; and a bound of what is dropped.

    Terms should come with the largest first. Every pass from the last to the first leaves the rounded sum in front and the errors
    behind, and their total as it was [1]_: what is dropped is known, and nothing else is lost. `places` says that term k is below
    ``2 ** (-53 places[k])`` of the sum: errors of sums from there on are one place further, and are dropped behind the last.

    References
    ----------
    .. [1] Ogita, Rump, Oishi, "Accurate Sum and Dot Product", SIAM Journal on Scientific Computing 26, 2005: VecSum.
    """
    left, dropped = list(terms), []
    place = [0] * len(left) if places is None else list(places)
    for front in range(components):
        if front >= len(left) - 1:
            break
        _pass(left, front)
        place[front + 1 :] = [p + 1 for p in place[front:-1]] if places is not None else place[front + 1 :]
        count = sum(p < components for p in place)
        dropped += left[count:]
        del left[count:], place[count:]
    dropped += left[components:]
    kept = left[:components] + [np.zeros_like(left[0])] * (components - len(left))
    _normalise(kept)
    bound = np.zeros_like(kept[0])
    for term in dropped:
        bound = bound + np.abs(term)
    return kept, bound


def _normalise(terms: list[Array]) -> None:
    """Passes until none changes a number: then each is rounded from what follows. Of two, one pass is enough."""
    for _ in range(1 if len(terms) == 2 else MOST_PASSES):
        before = list(terms)
        _pass(terms, 0)
        if len(terms) > 2 and all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, terms, strict=True)):
            break


def _pass(terms: list[Array], front: int) -> None:
    total = terms[-1]
    for i in range(len(terms) - 2, front - 1, -1):
        total, terms[i + 1] = two_sum(terms[i], total)
    terms[front] = total
