"""Read a feature map between its positions, wherever the caller says: what convolutions and attentions with learned offsets do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, Booleans, Grads, Integers, Pullback, Random, Sample, mechanism
from refattn.primitives.indexing import gather


class Neighbours(NamedTuple):
    """What positions along one axis lie between: two arrays each, of what is before and what is after."""

    places: Integers
    inside: Booleans
    weights: Array


def _samples(random: Random) -> Iterator[Sample]:
    x = random.normal((2, 3, 4, 5))
    yield Sample("inside and outside", {"x": x, "positions": random.uniform(-2, 6, (2, 2, 3, 4))})
    yield Sample("one map", {"x": x[0], "positions": random.uniform(0, 3, (2, 6))})
    yield Sample("one row", {"x": x[:, :, :1], "positions": random.uniform(-1, 1, (2, 2, 5))})


def _benchmark(random: Random) -> Mapping[str, Any]:
    return {"x": random.normal((8, 64, 28, 28)), "positions": random.uniform(-1, 28, (8, 2, 784))}


def _neighbours(at: Array, size: int) -> Neighbours:
    near = np.minimum(np.maximum(at, -2), size)  # further off there is nothing either, and infinity has no neighbours
    before = np.floor(near)
    beyond = near - before
    first = np.where(before >= -2, before, -2).astype(int)  # NaN is nowhere
    pair = np.stack([first, first + 1])
    inside = (pair >= 0) & (pair < size)
    return Neighbours(np.where(inside, pair, 0), inside, np.stack([1 - beyond, beyond]))


def _times(weights: Array, x: Array) -> Array:
    """What has weight 0 is not read."""
    return np.where(weights == 0, 0, x) * weights


@mechanism(samples=_samples, benchmark=_benchmark)
def sample_bilinear(x: Array, positions: Array) -> tuple[Array, Pullback]:
    r"""Interpolate feature maps at any positions; outside of the maps is 0.

    Parameters
    ----------
    x : array, shape (..., channels, height, width)
        Feature maps.
    positions : array, shape (..., 2, *picked)
        Where to read: a row and a column, counted from the centre of the first pixel in pixels.

    Returns
    -------
    array, shape (..., channels, *picked)
        Interpolated features. Between the outermost pixels and the zeros one step beyond them is interpolated too; NaN where a
        position is NaN.

    Notes
    -----
    Sizes: ``height >= 1``, ``width >= 1``.

    Each sum has at most four terms. A neighbour of weight 0 is not read:

    .. math::

        y_{c,p} = \sum_{i,j} g(i, r_p)\, g(j, s_p)\, x_{c,i,j}, \quad g(i, r) = \max(0, 1 - |i - r|), \qquad
        \bar x_{c,i,j} = \sum_p g(i, r_p)\, g(j, s_p)\, \bar y_{c,p}, \quad
        \bar r_p = \sum_{c,i,j} \frac{\partial g(i, r_p)}{\partial r_p}\, g(j, s_p)\, x_{c,i,j}\, \bar y_{c,p}

    and likewise for the columns s. At a whole number, where g has a kink, the derivative is the one to the right: the difference
    of the next pixel and this one.

    References
    ----------
    .. [1] Jaderberg et al., "Spatial Transformer Networks", NeurIPS 2015, eqs. (5) to (7); at a whole number eq. (7) has another
       derivative. arXiv:1506.02025.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.sample_bilinear(np.array([[[0.0, 4.0]]]), np.array([[0.0, 0.5, 0.0], [0.25, 1.0, 3.0]]))
    array([[1., 2., 0.]])
    """
    *lead, channels, height, width = x.shape
    count, picked = math.prod(lead), positions.shape[len(lead) + 1 :]
    pixels = np.moveaxis(x.reshape(count, channels, height * width), 1, 2).reshape(count * height * width, channels)
    at = np.moveaxis(positions.reshape(count, 2, *picked), 1, 0)
    rows, columns = _neighbours(at[0], height), _neighbours(at[1], width)
    first = height * width * np.arange(count).reshape(count, *(1,) * len(picked))
    inside = (rows.inside[:, None] & columns.inside)[..., None]
    weights = (rows.weights[:, None] * columns.weights)[..., None]
    read, gather_pullback = gather.vjp(pixels, first + width * rows.places[:, None] + columns.places)
    seen = np.where(inside, read, 0)
    y = _times(weights, seen).sum(axis=(0, 1))

    def pullback(dy: Array) -> Grads:
        d_y = np.moveaxis(dy.reshape(count, channels, *picked), 1, -1)
        d_pixels = gather_pullback(np.where(inside, _times(weights, d_y), 0))["x"]
        d_weights = (seen * d_y).sum(axis=-1)
        d_rows = _times(columns.weights, d_weights[1] - d_weights[0]).sum(axis=0)
        d_columns = _times(rows.weights, d_weights[:, 1] - d_weights[:, 0]).sum(axis=0)
        return {
            "x": np.moveaxis(d_pixels.reshape(count, height * width, channels), 2, 1).reshape(x.shape),
            "positions": np.stack([d_rows, d_columns], axis=1).reshape(positions.shape),
        }

    return np.moveaxis(y, -1, 1).reshape(*lead, channels, *picked), pullback
