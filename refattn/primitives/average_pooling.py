"""Mean of each window, in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refattn._core import Array, BadCall, Pullback, Random, Sample, mechanism
from refattn.primitives.windows import PerAxis, Stage, in_turn, mean, per_axis, sliding


def _stage(x: Array, size: int, kernel: int, stride: int, padding: int, ceil_mode: bool, count_include_pad: bool) -> Stage:
    window = sliding(size, kernel, stride, padding, 1, ceil_mode)
    counted = window.positions < size + padding if count_include_pad else window.inside
    return mean(window, np.sum(counted, axis=1), x)


def _avg_pool(
    x: Array, axes: int, kernel_size: PerAxis, stride: PerAxis | None, padding: PerAxis, ceil_mode: bool, count_include_pad: bool
) -> tuple[Array, Pullback]:
    """One stage an axis; each option stands for all axes or has a number for each."""
    kernels, steps, margins = (per_axis(option, axes) for option in (kernel_size, kernel_size if stride is None else stride, padding))
    sizes = zip(x.shape[-axes:], kernels, steps, margins, strict=True)
    return in_turn(x, [_stage(x, *numbers, ceil_mode, count_include_pad) for numbers in sizes])


def _samples1(random: Random) -> Iterator[Sample]:
    x = random.normal((2, 3, 9))
    yield Sample("plain", {"x": x, "kernel_size": 3})
    yield Sample("strided", {"x": x, "kernel_size": 3, "stride": 2})
    yield Sample("padded", {"x": x, "kernel_size": 4, "padding": 2})
    yield Sample("padding not counted", {"x": x, "kernel_size": 4, "padding": 2, "count_include_pad": False})
    yield Sample("ceil", {"x": x, "kernel_size": 4, "stride": 3, "padding": 1, "ceil_mode": True})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    x = random.normal((2, 5))
    yield BadCall("large kernel", {"x": x, "kernel_size": 6}, ValueError, "kernel_size reaches over 6 positions, but the padded x has 5")
    yield BadCall(
        "window of padding", {"x": x, "kernel_size": 2, "padding": 2}, ValueError, "padding is 2, so that a window of kernel_size 2"
    )
    yield BadCall("stride 0", {"x": x, "kernel_size": 2, "stride": 0}, ValueError, "stride is 0, but must be positive int or None")


@mechanism(tags={"pooling"}, samples=_samples1, bad_calls=_bad_calls)
def avg_pool1d(
    x: Array,
    *,
    kernel_size: int,
    stride: int | None = None,
    padding: int = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> tuple[Array, Pullback]:
    r"""Mean of each window of a sequence.

    Parameters
    ----------
    x : array, shape (..., length)
        Sequences.
    kernel_size : positive int
        Elements in a window.
    stride : positive int or None, optional
        Steps between windows; None is `kernel_size`.
    padding : non-negative int, optional
        Zeros added at both ends.
    ceil_mode : bool, optional
        Whether a last window that hangs over the end is kept, if it begins before the padding after the end. What lies beyond
        that padding is never counted.
    count_include_pad : bool, optional
        Whether the zeros of the padding count in the mean.

    Returns
    -------
    array, shape (..., out_length)
        Means.

    Notes
    -----
    A window must hold at least one element of `x`.

    .. math::

        y_o = \frac{1}{n_o} \sum_{i \in W_o} x_i, \qquad \bar x_i = \sum_{o : i \in W_o} \frac{\bar y_o}{n_o}, \qquad
        W_o = \{s o - p + t : 0 \le t < k\}

    References
    ----------
    .. [1] Goodfellow, Bengio, Courville, "Deep Learning", MIT Press 2016, section 9.3.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.avg_pool1d(np.array([1.0, 3.0, 2.0, 6.0]), kernel_size=2)
    array([2., 4.])
    """
    return _avg_pool(x, 1, kernel_size, stride, padding, ceil_mode, count_include_pad)


def _samples2(random: Random) -> Iterator[Sample]:
    x = random.normal((2, 5, 7))
    yield Sample("plain", {"x": x, "kernel_size": 2})
    yield Sample("square", {"x": x, "kernel_size": 3, "stride": 2, "padding": 1})
    yield Sample("each axis", {"x": x, "kernel_size": (2, 3), "stride": (1, 2), "padding": (0, 1), "count_include_pad": False})
    yield Sample("ceil", {"x": x, "kernel_size": 2, "ceil_mode": True})


def _benchmark(random: Random) -> Mapping[str, Any]:
    return {"x": random.normal((8, 64, 56, 56)), "kernel_size": 3, "stride": 2, "padding": 1}


@mechanism(tags={"pooling"}, samples=_samples2, benchmark=_benchmark)
def avg_pool2d(
    x: Array,
    *,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> tuple[Array, Pullback]:
    r"""Mean of each window of an image.

    Parameters
    ----------
    x : array, shape (..., height, width)
        Images or feature maps.
    kernel_size : positive int or (positive int, positive int)
        Elements in a window along each axis.
    stride : positive int or (positive int, positive int) or None, optional
        Steps between windows; None is `kernel_size`.
    padding : non-negative int or (non-negative int, non-negative int), optional
        Zeros added at both ends.
    ceil_mode : bool, optional
        Whether a last window that hangs over the end is kept, if it begins before the padding after the end. What lies beyond
        that padding is never counted.
    count_include_pad : bool, optional
        Whether the zeros of the padding count in the mean.

    Returns
    -------
    array, shape (..., out_height, out_width)
        Means.

    Notes
    -----
    A window must hold at least one element of `x`.

    .. math::

        y_o = \frac{1}{n_o} \sum_{i \in W_o} x_i, \qquad \bar x_i = \sum_{o : i \in W_o} \frac{\bar y_o}{n_o}, \qquad
        W_o = \{s o - p + t : 0 \le t < k\}

    References
    ----------
    .. [1] Goodfellow, Bengio, Courville, "Deep Learning", MIT Press 2016, section 9.3.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.avg_pool2d(np.arange(16.0).reshape(4, 4), kernel_size=2)
    array([[ 2.5,  4.5],
           [10.5, 12.5]])
    """
    return _avg_pool(x, 2, kernel_size, stride, padding, ceil_mode, count_include_pad)


def _samples3(random: Random) -> Iterator[Sample]:
    x = random.normal((3, 4, 5))
    yield Sample("plain", {"x": x, "kernel_size": 2})
    yield Sample("cube", {"x": x, "kernel_size": 2, "padding": 1})
    yield Sample("each axis", {"x": x, "kernel_size": (1, 2, 3), "stride": (2, 1, 1), "padding": (0, 1, 1), "count_include_pad": False})
    yield Sample("ceil", {"x": x, "kernel_size": 2, "ceil_mode": True})


@mechanism(tags={"pooling"}, samples=_samples3)
def avg_pool3d(
    x: Array,
    *,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> tuple[Array, Pullback]:
    r"""Mean of each window of a volume.

    Parameters
    ----------
    x : array, shape (..., depth, height, width)
        Volumes.
    kernel_size : positive int or (positive int, positive int, positive int)
        Elements in a window along each axis.
    stride : positive int or (positive int, positive int, positive int) or None, optional
        Steps between windows; None is `kernel_size`.
    padding : non-negative int or (non-negative int, non-negative int, non-negative int), optional
        Zeros added at both ends.
    ceil_mode : bool, optional
        Whether a last window that hangs over the end is kept, if it begins before the padding after the end. What lies beyond
        that padding is never counted.
    count_include_pad : bool, optional
        Whether the zeros of the padding count in the mean.

    Returns
    -------
    array, shape (..., out_depth, out_height, out_width)
        Means.

    Notes
    -----
    A window must hold at least one element of `x`.

    .. math::

        y_o = \frac{1}{n_o} \sum_{i \in W_o} x_i, \qquad \bar x_i = \sum_{o : i \in W_o} \frac{\bar y_o}{n_o}, \qquad
        W_o = \{s o - p + t : 0 \le t < k\}

    References
    ----------
    .. [1] Goodfellow, Bengio, Courville, "Deep Learning", MIT Press 2016, section 9.3.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.avg_pool3d(np.arange(8.0).reshape(2, 2, 2), kernel_size=(1, 2, 2)).ravel()
    array([1.5, 5.5])
    """
    return _avg_pool(x, 3, kernel_size, stride, padding, ceil_mode, count_include_pad)
