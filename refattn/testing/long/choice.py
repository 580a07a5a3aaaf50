"""Which rows of a long sequence are looked at, and what escapes that."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from refattn._core import Integers
from refattn._core.random import Random

TILES = (16, 64, 128, 256)
"""Sizes of tiles at whose edges kernels go wrong."""

CONFIDENCE = 0.95


def chosen(length: int, count: int, edges: Iterable[int], random: Random) -> tuple[Integers, int]:
    """Positions of a sequence to look at, in order, and how many of them are drawn.

    The first and the last position, the given edges, and for each size of tile one edge with its neighbours come first, and
    take two thirds of `count` at most. The others are drawn, one from each of as many equal parts of the sequence.
    """
    if length <= count:
        return np.arange(length), length
    wanted = [0, length - 1, *edges]
    for tile in TILES:
        tiles = length // tile
        edge = tile * int(random.integers(1, tiles + 1)) if tiles else length
        wanted += [edge, edge - 1, edge + 1]
    wanted += [length // tile * tile + by for tile in TILES for by in (-1, 0)]  # where the last tile, which may be shorter, begins
    first = list(dict.fromkeys(p for p in wanted if 0 <= p < length))[: count - count // 3]
    drawn = count - len(first)
    bounds = np.linspace(0, length, drawn + 1)
    within = random.uniform(0.0, 1.0, drawn)
    places = np.minimum((bounds[:-1] + within * np.diff(bounds)).astype(int), length - 1)
    return np.unique(np.concatenate([np.asarray(first, dtype=int), places])), drawn


def missed(fraction: float, drawn: int) -> float:
    """A bound of the probability that no drawn row is wrong where this fraction of all rows is.

    A draw from part h of the sequence misses with probability ``1 - f_h``, where the mean of the f_h is f. The geometric mean
    of these factors is at most their arithmetic mean, so all draws miss with probability ``(1 - f) ** drawn`` at most, and
    exactly that where the fault is spread evenly.
    """
    return (1 - fraction) ** drawn


def smallest_seen(drawn: int) -> float:
    """The fraction of wrong rows above which the bound of `missed` is below 5 %."""
    return 1 - (1 - CONFIDENCE) ** (1 / drawn) if drawn else 1.0


def said(count: int, length: int, drawn: int, what: str) -> str:
    """What was looked at, and what escapes, for a report."""
    if count >= length:
        return f"all {length} {what}"
    return (
        f"{count} of {length} {what}, {drawn} of them drawn: a fault in {100 * smallest_seen(drawn):.2g} % of the {what} "
        f"is missed with probability {1 - CONFIDENCE:.2f} at most"
    )
