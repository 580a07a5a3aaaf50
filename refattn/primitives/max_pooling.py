"""Largest element of each window, in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from refattn._core import Array, BadCall, Pullback, Random, Sample, mechanism
from refattn.primitives.windows import PerAxis, in_turn, largest, per_axis, sliding


def _max_pool(
    x: Array, axes: int, kernel_size: PerAxis, stride: PerAxis | None, padding: PerAxis, dilation: PerAxis, ceil_mode: bool
) -> tuple[Array, Pullback]:
    """One stage an axis; each option stands for all axes or has a number for each."""
    kernels, steps, margins, gaps = (
        per_axis(option, axes) for option in (kernel_size, kernel_size if stride is None else stride, padding, dilation)
    )
    windows = map(sliding, x.shape[-axes:], kernels, steps, margins, gaps, (ceil_mode,) * axes)
    return in_turn(x, [largest(window) for window in windows])


def _samples1(random: Random) -> Iterator[Sample]:
    x = random.normal((2, 3, 9))
    yield Sample("plain", {"x": x, "kernel_size": 3})
    yield Sample("strided", {"x": x, "kernel_size": 3, "stride": 2})
    yield Sample("padded", {"x": x, "kernel_size": 4, "padding": 2})
    yield Sample("dilated", {"x": x, "kernel_size": 2, "stride": 1, "dilation": 3, "padding": 1})
    yield Sample("ceil", {"x": x, "kernel_size": 2, "stride": 2, "ceil_mode": True})
    yield Sample("no sequences", {"x": x[:0], "kernel_size": 3})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    x = random.normal((2, 5))
    yield BadCall("large kernel", {"x": x, "kernel_size": 6}, ValueError, "kernel_size reaches over 6 positions, but the padded x has 5")
    yield BadCall(
        "window of padding", {"x": x, "kernel_size": 2, "padding": 2}, ValueError, "padding is 2, so that a window of kernel_size 2"
    )
    yield BadCall("stride 0", {"x": x, "kernel_size": 2, "stride": 0}, ValueError, "stride is 0, but must be positive int or None")


@mechanism(tags={"pooling"}, samples=_samples1, bad_calls=_bad_calls)
def max_pool1d(
    x: Array, *, kernel_size: int, stride: int | None = None, padding: int = 0, dilation: int = 1, ceil_mode: bool = False
) -> tuple[Array, Pullback]:
    r"""Largest element of each window of a sequence.

    Parameters
    ----------
    x : array, shape (..., length)
        Sequences.
    kernel_size : positive int
        Elements in a window.
    stride : positive int or None, optional
        Steps between windows; None is `kernel_size`.
    padding : non-negative int, optional
        Positions added at both ends, which are smaller than everything.
    dilation : positive int, optional
        Steps between the elements of a window.
    ceil_mode : bool, optional
        Whether a last window that hangs over the end is kept, if it begins before the padding after the end.

    Returns
    -------
    array, shape (..., out_length)
        Maxima; NaN where a window has a NaN.

    Notes
    -----
    Of several largest elements (or NaN) of a window, the first in row-major order takes the whole gradient. PyTorch does the
    same, but of several NaN it takes the last. A window must hold at least one element of `x`.

    .. math::

        y_o = x_{m_o}, \quad m_o = \min \{i \in W_o : x_i = \max_{j \in W_o} x_j\}, \qquad
        \bar x_i = \sum_{o : m_o = i} \bar y_o, \qquad W_o = \{s o - p + d t : 0 \le t < k\}

    References
    ----------
    .. [1] Goodfellow, Bengio, Courville, "Deep Learning", MIT Press 2016, section 9.3.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.max_pool1d(np.array([1.0, 3.0, 2.0, 5.0]), kernel_size=2)
    array([3., 5.])
    """
    return _max_pool(x, 1, kernel_size, stride, padding, dilation, ceil_mode)


def _samples2(random: Random) -> Iterator[Sample]:
    x = random.normal((2, 5, 7))
    yield Sample("plain", {"x": x, "kernel_size": 2})
    yield Sample("square", {"x": x, "kernel_size": 3, "stride": 2, "padding": 1})
    yield Sample("each axis", {"x": x, "kernel_size": (2, 3), "stride": (1, 2), "padding": (0, 1), "dilation": (3, 1)})
    yield Sample("ceil", {"x": x, "kernel_size": 2, "ceil_mode": True})


def _benchmark(random: Random) -> Mapping[str, Any]:
    return {"x": random.normal((8, 64, 56, 56)), "kernel_size": 3, "stride": 2, "padding": 1}


@mechanism(tags={"pooling"}, samples=_samples2, benchmark=_benchmark)
def max_pool2d(
    x: Array, *, kernel_size: PerAxis, stride: PerAxis | None = None, padding: PerAxis = 0, dilation: PerAxis = 1, ceil_mode: bool = False
) -> tuple[Array, Pullback]:
    r"""Largest element of each window of an image.

    Parameters
    ----------
    x : array, shape (..., height, width)
        Images or feature maps.
    kernel_size : positive int or (positive int, positive int)
        Elements in a window along each axis.
    stride : positive int or (positive int, positive int) or None, optional
        Steps between windows; None is `kernel_size`.
    padding : non-negative int or (non-negative int, non-negative int), optional
        Positions added at both ends, which are smaller than everything.
    dilation : positive int or (positive int, positive int), optional
        Steps between the elements of a window.
    ceil_mode : bool, optional
        Whether a last window that hangs over the end is kept, if it begins before the padding after the end.

    Returns
    -------
    array, shape (..., out_height, out_width)
        Maxima; NaN where a window has a NaN.

    Notes
    -----
    Of several largest elements (or NaN) of a window, the first in row-major order takes the whole gradient. PyTorch does the
    same, but of several NaN it takes the last. A window must hold at least one element of `x`.

    .. math::

        y_o = x_{m_o}, \quad m_o = \min \{i \in W_o : x_i = \max_{j \in W_o} x_j\}, \qquad
        \bar x_i = \sum_{o : m_o = i} \bar y_o, \qquad W_o = \{s o - p + d t : 0 \le t < k\}

    References
    ----------
    .. [1] Goodfellow, Bengio, Courville, "Deep Learning", MIT Press 2016, section 9.3.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.max_pool2d(np.arange(16.0).reshape(4, 4), kernel_size=2)
    array([[ 5.,  7.],
           [13., 15.]])
    """
    return _max_pool(x, 2, kernel_size, stride, padding, dilation, ceil_mode)


def _samples3(random: Random) -> Iterator[Sample]:
    x = random.normal((3, 4, 5))
    yield Sample("plain", {"x": x, "kernel_size": 2})
    yield Sample("cube", {"x": x, "kernel_size": 2, "padding": 1})
    yield Sample("each axis", {"x": x, "kernel_size": (1, 2, 3), "stride": (2, 1, 1), "padding": (0, 1, 1), "dilation": (1, 2, 1)})
    yield Sample("ceil", {"x": x, "kernel_size": 2, "ceil_mode": True})


@mechanism(tags={"pooling"}, samples=_samples3)
def max_pool3d(
    x: Array, *, kernel_size: PerAxis, stride: PerAxis | None = None, padding: PerAxis = 0, dilation: PerAxis = 1, ceil_mode: bool = False
) -> tuple[Array, Pullback]:
    r"""Largest element of each window of a volume.

    Parameters
    ----------
    x : array, shape (..., depth, height, width)
        Volumes.
    kernel_size : positive int or (positive int, positive int, positive int)
        Elements in a window along each axis.
    stride : positive int or (positive int, positive int, positive int) or None, optional
        Steps between windows; None is `kernel_size`.
    padding : non-negative int or (non-negative int, non-negative int, non-negative int), optional
        Positions added at both ends, which are smaller than everything.
    dilation : positive int or (positive int, positive int, positive int), optional
        Steps between the elements of a window.
    ceil_mode : bool, optional
        Whether a last window that hangs over the end is kept, if it begins before the padding after the end.

    Returns
    -------
    array, shape (..., out_depth, out_height, out_width)
        Maxima; NaN where a window has a NaN.

    Notes
    -----
    Of several largest elements (or NaN) of a window, the first in row-major order takes the whole gradient. PyTorch does the
    same, but of several NaN it takes the last. A window must hold at least one element of `x`.

    .. math::

        y_o = x_{m_o}, \quad m_o = \min \{i \in W_o : x_i = \max_{j \in W_o} x_j\}, \qquad
        \bar x_i = \sum_{o : m_o = i} \bar y_o, \qquad W_o = \{s o - p + d t : 0 \le t < k\}

    References
    ----------
    .. [1] Goodfellow, Bengio, Courville, "Deep Learning", MIT Press 2016, section 9.3.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.max_pool3d(np.arange(8.0).reshape(2, 2, 2), kernel_size=(1, 2, 2)).ravel()
    array([3., 7.])
    """
    return _max_pool(x, 3, kernel_size, stride, padding, dilation, ceil_mode)
