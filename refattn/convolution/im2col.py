"""Convolution as one matrix product: what each output position sees becomes a column of a matrix.

`by_taps`, the rule of `conv2d`, goes half of this way: it stacks the taps of one row of the kernel, and adds up one product
for each row. The matrix here is as many times larger than the input as the kernel has taps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refattn._core import Array, Pullback, mechanism
from refattn.convolution.conv2d import bad_calls, conv2d, samples
from refattn.convolution.rule import Axes, convolve, flat, joined, out_size, taps


def im2col(x: Array, kernel: Axes, out: Axes, stride: Axes, dilation: Axes) -> Array:
    """From (batch, groups, c, *size) to (batch, groups, c, taps, *out): what each tap sees at each position."""
    return np.stack([x[seen] for seen in taps(kernel, out, stride, dilation)], axis=3)


def col2im(columns: Array, size: Axes, kernel: Axes, stride: Axes, dilation: Axes) -> Array:
    """The transpose of `im2col`: every entry is added to the position that it was read from."""
    x = np.zeros_like(columns, shape=(*columns.shape[:3], *size))
    for i, seen in enumerate(taps(kernel, columns.shape[4:], stride, dilation)):
        x[seen] += columns[:, :, :, i]
    return x


def by_columns(x: Array, weight: Array, stride: Axes, dilation: Axes) -> tuple[Array, Callable[[Array], tuple[Array, Array]]]:
    """A row of weights for each output channel, times a column of inputs for each output position."""
    kernel, out = weight.shape[3:], out_size(x.shape[3:], weight.shape[3:], stride, dilation)
    columns = im2col(x, kernel, out, stride, dilation)
    matrix = flat(joined(columns, axis=2))
    rows = weight.reshape(*weight.shape[:2], matrix.shape[2])
    y = rows @ matrix

    def pullback(dy: Array) -> tuple[Array, Array]:
        d_columns = rows.swapaxes(-1, -2) @ flat(dy)
        d_rows = (flat(dy) @ matrix.swapaxes(-1, -2)).sum(axis=0)
        return col2im(d_columns.reshape(columns.shape), x.shape[3:], kernel, stride, dilation), d_rows.reshape(weight.shape)

    return y.reshape(*y.shape[:3], *out), pullback


@mechanism(tags={"convolution", "algorithm"}, samples=samples, bad_calls=bad_calls, like=conv2d)
def conv2d_im2col(*args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
    r"""`conv2d` by one matrix product for each group of channels.

    Returns
    -------
    array, shape (batch, groups * out_group, out_height, out_width)
        As of `conv2d`.

    Notes
    -----
    Sizes: ``height >= 1``, ``width >= 1``, ``kernel_height >= 1``, ``kernel_width >= 1``.

    X has a row for each input channel and tap, and a column for each output position; W has a row for each output channel.

    .. math::

        X_{ct,p} = x_{c,sp + dt}, \quad Y = W X, \qquad
        \bar W = \bar Y X^\top, \quad \bar X = W^\top \bar Y, \quad \bar x_{c,q} = \sum_{p,t:\, sp + dt = q} \bar X_{ct,p}

    References
    ----------
    .. [1] Chellapilla, Puri, Simard, "High Performance Convolutional Neural Networks for Document Processing", 2006.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.conv2d_im2col(np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2)))[0, 0]
    array([[4., 4.],
           [4., 4.]])
    """
    return convolve(by_columns, *args, **kwargs)
