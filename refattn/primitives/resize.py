"""Change the height and width of feature maps, by the nearest position or by interpolation between neighbours.

Where an output position falls among the input's is a ratio of whole numbers, and is computed as such: no rounding of a scale
factor moves it to another position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refattn._core import Array, Grads, Pullback, Random, Sample, like, mechanism
from refattn.primitives.indexing import gather
from refattn.primitives.windows import PerAxis, Stage, in_turn, per_axis, weighted


def _nearest_samples(random: Random) -> Iterator[Sample]:
    x = random.normal((2, 3, 4))
    yield Sample("larger", {"x": x, "output_size": (7, 6)})
    yield Sample("smaller", {"x": x, "output_size": 2})
    yield Sample("centres", {"x": x, "output_size": (2, 7), "half_pixel": True})


def _benchmark(random: Random) -> Mapping[str, Any]:
    return {"x": random.normal((8, 64, 28, 28)), "output_size": 56}


@mechanism(samples=_nearest_samples, benchmark=_benchmark)
def resize_nearest(x: Array, *, output_size: PerAxis, half_pixel: bool = False) -> tuple[Array, Pullback]:
    r"""Repeat or drop rows and columns of a feature map.

    Parameters
    ----------
    x : array, shape (..., height, width)
        Feature maps.
    output_size : positive int or (positive int, positive int)
        New height and width.
    half_pixel : bool, optional
        Whether positions are the centres of pixels rather than their beginnings: PyTorch's "nearest-exact" rather than its
        "nearest".

    Returns
    -------
    array, shape (..., out_height, out_width)
        Resized maps.

    Notes
    -----
    Sizes: ``height >= 1``, ``width >= 1``.

    Along each axis, from L positions to O:

    .. math::

        y_o = x_{n_o}, \quad n_o = \lfloor (o + h) L / O \rfloor, \quad h \in \{0, \tfrac12\}, \qquad
        \bar x_i = \sum_{o : n_o = i} \bar y_o

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.resize_nearest(np.array([[1.0, 2.0]]), output_size=(2, 3))
    array([[1., 1., 2.],
           [1., 1., 2.]])
    """
    (height, width), (out_height, out_width) = x.shape[-2:], per_axis(output_size, 2)
    rows = (2 * np.arange(out_height) + half_pixel) * height // (2 * out_height)
    columns = (2 * np.arange(out_width) + half_pixel) * width // (2 * out_width)
    flat = np.moveaxis(x.reshape(*x.shape[:-2], height * width), -1, 0)
    picked, gather_pullback = gather.vjp(flat, width * rows[:, None] + columns)

    def pullback(dy: Array) -> Grads:
        d_flat = gather_pullback(np.moveaxis(dy, (-2, -1), (0, 1)))["x"]
        return {"x": np.moveaxis(d_flat, 0, -1).reshape(x.shape)}

    return np.moveaxis(picked, (0, 1), (-2, -1)), pullback


def _bilinear_samples(random: Random) -> Iterator[Sample]:
    x = random.normal((2, 3, 4))
    yield Sample("larger", {"x": x, "output_size": (7, 6)})
    yield Sample("smaller", {"x": x, "output_size": 2})
    yield Sample("corners", {"x": x, "output_size": (2, 7), "align_corners": True})
    yield Sample("one pixel", {"x": x, "output_size": 1, "align_corners": True})


def _between(size: int, out: int, align_corners: bool, x: Array) -> Stage:
    """The stage that reads the two neighbours of each output position, in proportion to their nearness."""
    at = np.arange(out)
    if align_corners:
        parts, part = at * (size - 1), max(out - 1, 1)
    else:
        parts, part = np.maximum((2 * at + 1) * size - out, 0), 2 * out
    before = np.minimum(parts // part, size - 1)
    beyond = like(x, parts - before * part) / part
    after = np.minimum(before + 1, size - 1)
    return weighted(np.stack([before, after], axis=1), np.stack([1 - beyond, beyond], axis=1))


@mechanism(samples=_bilinear_samples, benchmark=_benchmark)
def resize_bilinear(x: Array, *, output_size: PerAxis, align_corners: bool = False) -> tuple[Array, Pullback]:
    r"""Interpolate a feature map between its positions.

    Parameters
    ----------
    x : array, shape (..., height, width)
        Feature maps.
    output_size : positive int or (positive int, positive int)
        New height and width.
    align_corners : bool, optional
        Whether the centres of the corner pixels stay where they are, rather than the outer edges of the map.

    Returns
    -------
    array, shape (..., out_height, out_width)
        Resized maps. Nothing is smoothed before it is made smaller.

    Notes
    -----
    Sizes: ``height >= 1``, ``width >= 1``.

    Along each axis, from L positions to O, with :math:`x_L` read as :math:`x_{L - 1}`:

    .. math::

        y_o = (1 - f_o)\, x_{n_o} + f_o\, x_{n_o + 1}, \quad n_o = \lfloor s_o \rfloor, \quad f_o = s_o - n_o, \qquad
        \bar x_i = \sum_{o : n_o = i} (1 - f_o)\, \bar y_o + \sum_{o : n_o + 1 = i} f_o\, \bar y_o

    .. math::

        s_o = \max\bigl((o + \tfrac12) L / O - \tfrac12,\ 0\bigr) \quad \text{or, with aligned corners,} \quad s_o = o\, \frac{L - 1}{O - 1}

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.resize_bilinear(np.array([[0.0, 4.0]]), output_size=(1, 4))
    array([[0., 1., 3., 4.]])
    >>> refattn.resize_bilinear(np.array([[0.0, 4.0]]), output_size=(1, 3), align_corners=True)
    array([[0., 2., 4.]])
    """
    sizes = zip(x.shape[-2:], per_axis(output_size, 2), strict=True)
    return in_turn(x, [_between(size, out, align_corners, x) for size, out in sizes])
