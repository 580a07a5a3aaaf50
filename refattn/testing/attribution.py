"""Which keys an error in attention's output comes from: an estimate, since the output alone has no axis of keys.

The output is a mean of values, and where weights are wrong, its error is a sum of values by which the weights are off. So the error
of each row is fitted, by least squares, with two vectors for each tile of keys: the mean of its values with the weights that the
scores give them, for the keys that the row may attend to, and for those that the mask hides. What multiplies them is the
weight that was lost to, or taken from, the tile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, Booleans
from refattn.attention.dot_product.scaled_dot_product import allowed_pairs
from refattn.testing.evidence import Evidence

LEAST_TILE, MOST_TILES = 16, 32
LEAST_CHANNELS = 4  # of the values: with fewer, tiles cannot be told apart
RIDGE = 1e-4  # relative: tiles that cannot be told apart share the error


class Tiles(NamedTuple):
    """Error over budget by head, tile of queries and tile of keys, and which share of each tile's pairs is allowed."""

    ratio: Array
    allowed: Array
    query_tile: int
    key_tile: int


def allowed_of(evidence: Evidence) -> Booleans | None:
    """Which pairs of a query and a key the case allows; None where the mechanism has no pairs."""
    a = evidence.arguments
    if not evidence.mechanism.startswith("scaled_dot_product_attention") or evidence.mechanism.endswith("_rows"):
        return None
    options = {n: a.get(n) for n in ("mask", "align", "window")}
    return allowed_pairs((*a["query"].shape[:-1], a["key"].shape[-2]), a.get("bias"), causal=bool(a.get("causal")), **options)


def by_tiles(array: Array, rows: int, columns: int, *, mean: bool = False) -> Array:
    """The largest, or the mean, of each tile of the last two axes."""
    *lead, height, width = array.shape
    padded = np.full((*lead, -(-height // rows) * rows, -(-width // columns) * columns), np.nan)
    padded[..., :height, :width] = array
    split = padded.reshape(*lead, padded.shape[-2] // rows, rows, padded.shape[-1] // columns, columns)
    return np.nanmean(split, axis=(-3, -1)) if mean else np.nanmax(split, axis=(-3, -1))


def tile_of(length: int, most: int, least: int = 1) -> int:
    """The smallest power of two, from `least` on, by which a length has at most so many tiles."""
    tile = least
    while -(-length // tile) > most:
        tile *= 2
    return tile


def key_tiles(evidence: Evidence, ratio: Array) -> Tiles | None:
    """Error over budget of the output, by tile of queries and of the keys that it comes from; None where this cannot be told."""
    a, allowed = evidence.arguments, allowed_of(evidence)
    if allowed is None or "output" not in evidence.arrays:
        return None
    got, exact, _ = evidence.arrays["output"]
    key_len, channels = a["key"].shape[-2], exact.shape[-1]
    if channels < LEAST_CHANNELS or key_len < 2 or not exact.size or got.shape != exact.shape:
        return None
    least = LEAST_TILE if key_len > 2 * LEAST_TILE else 1
    key_tile = tile_of(key_len, min(MOST_TILES, channels // 2), least)
    if key_tile >= key_len:
        return None
    shares = _shares(_plain(a), allowed, np.asarray(got - exact, float), key_tile)
    query_tile = tile_of(exact.shape[-2], MOST_TILES, key_tile)
    worst = np.where(np.isfinite(ratio), ratio, 0).max(axis=-1)[..., None] * shares
    return Tiles(by_tiles(worst, query_tile, 1), by_tiles(allowed * 1.0, query_tile, key_tile, mean=True), query_tile, key_tile)


def _plain(a: Any) -> dict[str, Any]:
    return {n: np.asarray(x, float) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for n, x in a.items()}


def _shares(a: dict[str, Any], allowed: Booleans, error: Array, tile: int) -> Array:
    """For each row, which share of its error each tile of keys accounts for."""
    group = a["query"].shape[-3] // max(a["key"].shape[-3], 1)
    key, value = (np.repeat(a[n], group, axis=-3) for n in ("key", "value"))
    with np.errstate(all="ignore"):
        scores = np.nan_to_num(a["query"] @ key.swapaxes(-1, -2) * (a["query"].shape[-1] ** -0.5 if a.get("scale") is None else a["scale"]))
        if a.get("softcap") is not None:
            scores = a["softcap"] * np.tanh(scores / a["softcap"])
        if a.get("bias") is not None:
            scores = scores + np.nan_to_num(np.where(np.isneginf(a["bias"]), 0, a["bias"]))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
    value, error = np.nan_to_num(value, posinf=0, neginf=0), np.nan_to_num(error, posinf=0, neginf=0)
    starts = np.arange(0, key.shape[-2], tile)
    means = []
    for here in (np.where(allowed, weights, 0), np.where(allowed, 0, weights)):
        total = np.add.reduceat(here, starts, axis=-1)
        sums = np.stack([here[..., i : i + tile] @ value[..., i : i + tile, :] for i in starts], axis=-2)
        means.append(sums / np.where(total > 0, total, 1)[..., None])
    vectors = np.concatenate(means, axis=-2)  # (..., query, 2 * tiles, channel)
    products = vectors @ vectors.swapaxes(-1, -2)
    ridge = RIDGE * np.maximum(np.trace(products, axis1=-2, axis2=-1), 1)[..., None, None] * np.eye(products.shape[-1])
    size = np.abs(np.linalg.solve(products + ridge, vectors @ error[..., None])[..., 0])
    both = size[..., : len(starts)] + size[..., len(starts) :]
    return both / np.maximum(both.max(axis=-1, keepdims=True), np.finfo(float).tiny)
