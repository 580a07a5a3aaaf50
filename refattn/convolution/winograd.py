"""Convolution with fewer multiplications: small tiles of the output by Winograd's minimal filtering.

A tile of m times m outputs of a 3 times 3 kernel takes ``(m + 2) ** 2`` multiplications in place of ``9 * m ** 2``: 2.25 times
fewer for m = 2 and 4 times fewer for m = 4, whose larger transforms cost digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from refattn._core import Array, BadCall, Pullback, Random, Sample, mechanism
from refattn.convolution.im2col import col2im, im2col
from refattn.convolution.rule import Axes, Correlation, Padding, convolve
from refattn.primitives.padding import PaddingMode

# A and B transposed, and G as a divisor and whole numbers: exact in every precision.
OUTPUT = {2: [[1, 1, 1, 0], [0, 1, -1, -1]], 4: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]}
INPUT = {
    2: [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    4: [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]],
}
KERNEL = {
    2: (2, [[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]),
    4: (24, [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]),
}


def _inputs(random: Random) -> dict[str, Any]:
    return {"x": random.normal((2, 2, 5, 8)), "weight": random.normal((4, 1, 3, 3)), "groups": 2}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    yield Sample("tiles of 4", {**inputs, "bias": random.normal(4)})
    yield Sample("tiles of 2", {**inputs, "tile": 2, "padding": ((1, 0), (0, 2))})
    yield Sample("same", {**inputs, "padding": "same", "padding_mode": "reflect"})
    yield Sample("one group", {"x": random.normal((1, 3, 3, 4)), "weight": random.normal((2, 3, 3, 3)), "padding": 1})
    yield Sample("plain", {"x": random.normal((1, 2, 4, 7)), "weight": random.normal((2, 2, 3, 3))})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield BadCall("tiles of 3", {**inputs, "tile": 3}, ValueError, "tile is 3, but must be 2 or 4")
    yield BadCall("wide kernel", {**inputs, "weight": random.normal((4, 1, 3, 5))}, ValueError, "3 is 5 in weight, but should be 3")
    yield BadCall("low image", {**inputs, "x": random.normal((2, 2, 2, 8))}, ValueError, r"weight reaches over \(3, 3\) positions")


def by_tiles(tile: int) -> Correlation:
    """The correlation with a 3 times 3 kernel, in tiles of so many outputs in each axis."""

    def correlation(x: Array, weight: Array, stride: Axes, dilation: Axes) -> tuple[Array, Callable[[Array], tuple[Array, Array]]]:
        batch, out = len(x), tuple(n - 2 for n in x.shape[3:])
        tiles = tuple(-(-n // tile) for n in out)
        whole = tuple(tile * n for n in tiles)
        A_T, B_T, G = transforms(tile, x.dtype)
        U = both_axes(G, np.moveaxis(weight, (3, 4), (0, 1)))
        V = both_axes(B_T, cut(enlarged(x, tuple(n + 2 for n in whole)), tile + 2, tiles, tile))
        Y = both_axes(A_T, U @ V)
        y = paste(Y, batch, tiles, tile)[..., : out[0], : out[1]]

        def pullback(dy: Array) -> tuple[Array, Array]:
            dM = both_axes(A_T.swapaxes(0, 1), cut(enlarged(dy, whole), tile, tiles, tile))
            dx = paste(both_axes(B_T.swapaxes(0, 1), U.swapaxes(-1, -2) @ dM), batch, tiles, tile)
            dw = both_axes(G.swapaxes(0, 1), dM @ V.swapaxes(-1, -2))
            return dx[..., : x.shape[3], : x.shape[4]], np.moveaxis(dw, (0, 1), (3, 4))

        return y, pullback

    return correlation


def transforms(tile: int, dtype: Any) -> tuple[Array, Array, Array]:
    """Transposed A, transposed B, and G."""
    divisor, multiple = KERNEL[tile]
    return np.asarray(OUTPUT[tile], dtype), np.asarray(INPUT[tile], dtype), np.asarray(multiple, dtype) / divisor


def both_axes(matrix: Array, x: Array) -> Array:
    """``matrix @ x @ matrix.T`` over the first two axes."""
    return np.einsum("bj,aj...->ab...", matrix, np.einsum("ai,ij...->aj...", matrix, x))


def enlarged(x: Array, size: Axes) -> Array:
    """Zeros after both axes, so that whole tiles fit."""
    return np.pad(x, (*((0, 0),) * 3, *((0, n - m) for n, m in zip(size, x.shape[3:], strict=True))))


def cut(x: Array, window: int, tiles: Axes, step: int) -> Array:
    """From (batch, groups, c, height, width) to (window, window, groups, c, batch * tiles): one window for each tile."""
    windows = im2col(x, (window, window), tiles, (step, step), (1, 1))
    return np.moveaxis(windows, (3, 1, 2, 0), (0, 1, 2, 3)).reshape(window, window, *x.shape[1:3], len(x) * tiles[0] * tiles[1])


def paste(windows: Array, batch: int, tiles: Axes, step: int) -> Array:
    """The transpose of `cut`: windows that overlap are added."""
    window, _, groups, c, _ = windows.shape
    apart = np.moveaxis(windows.reshape(window * window, groups, c, batch, *tiles), (0, 1, 2, 3), (3, 1, 2, 0))
    size = tuple(step * n + window - step for n in tiles)
    return col2im(apart, size, (window, window), (step, step), (1, 1))


@mechanism(tags={"convolution", "algorithm"}, samples=_samples, bad_calls=_bad_calls, inert={"tile"})
def conv2d_winograd(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    tile: int = 4,
    padding: Padding = 0,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
) -> tuple[Array, Pullback]:
    r"""`conv2d` with a 3 times 3 kernel and stride 1, by Winograd's minimal filtering F(2x2, 3x3) or F(4x4, 3x3).

    Parameters
    ----------
    x : array, shape (batch, groups * in_group, height, width)
        Images.
    weight : array, shape (groups * out_group, in_group, 3, 3)
        One kernel for each output channel.
    bias : array or None, shape (groups * out_group), optional
        Added to each output channel.
    tile : positive int, optional
        How many outputs a tile has in each axis: 2 or 4.
    padding : non-negative int or tuple of non-negative int or tuple of (non-negative int, non-negative int) or {"same", "valid"}, optional
        As of `conv2d`.
    groups : positive int, optional
        Into how many parts the channels fall, each convolved on its own.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}, optional
        What stands in the added positions, as in `pad`.

    Returns
    -------
    array, shape (batch, groups * out_group, out_height, out_width)
        As of `conv2d`.

    Notes
    -----
    Sizes: ``height >= 1``, ``width >= 1``.

    With w a kernel, d the input and Y the output of one tile, and :math:`\odot` the product of each pair of elements:

    .. math::

        U = G w G^\top, \quad V = B^\top d B, \quad M = \sum_c U_c \odot V_c, \quad Y = A^\top M A

    .. math::

        \bar M = A \bar Y A^\top, \quad \bar w = G^\top \Bigl(\sum \bar M \odot V\Bigr) G, \quad
        \bar d = B \Bigl(\sum_o U_o \odot \bar M_o\Bigr) B^\top

    References
    ----------
    .. [1] Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016. arXiv:1509.09308.
    .. [2] Winograd, "Arithmetic Complexity of Computations", SIAM 1980.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.conv2d_winograd(np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3)), tile=2)[0, 0]
    array([[9., 9.],
           [9., 9.]])
    """
    if tile not in KERNEL:
        raise ValueError(f"tile is {tile}, but must be 2 or 4")
    return convolve(by_tiles(tile), x, weight, bias, padding=padding, groups=groups, padding_mode=padding_mode)
