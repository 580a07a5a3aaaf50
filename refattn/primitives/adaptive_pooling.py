"""Pooling to a given size, whatever the size of the input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refattn._core import Array, BadCall, Pullback, Random, Sample, mechanism
from refattn.primitives.windows import PerAxis, adaptive, in_turn, largest, mean, per_axis


def _adaptive_avg_pool(x: Array, axes: int, output_size: PerAxis) -> tuple[Array, Pullback]:
    windows = map(adaptive, x.shape[-axes:], per_axis(output_size, axes))
    return in_turn(x, [mean(window, np.sum(window.inside, axis=1), x) for window in windows])


def _adaptive_max_pool(x: Array, axes: int, output_size: PerAxis) -> tuple[Array, Pullback]:
    return in_turn(x, [largest(window) for window in map(adaptive, x.shape[-axes:], per_axis(output_size, axes))])


def _samples1(random: Random) -> Iterator[Sample]:
    x = random.normal((2, 3, 9))
    yield Sample("bins that overlap", {"x": x, "output_size": 4})
    yield Sample("more bins than positions", {"x": x, "output_size": 11})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    yield BadCall("empty", {"x": random.normal((2, 0)), "output_size": 1}, ValueError, "x has an axis without positions")
    yield BadCall("no bins", {"x": random.normal((2, 5)), "output_size": 0}, ValueError, "output_size is 0, but must be positive int")


@mechanism(tags={"pooling"}, samples=_samples1, bad_calls=_bad_calls)
def adaptive_avg_pool1d(x: Array, *, output_size: int) -> tuple[Array, Pullback]:
    r"""Mean of each of a given number of bins of a sequence.

    Parameters
    ----------
    x : array, shape (..., length)
        Sequences.
    output_size : positive int
        How many bins.

    Returns
    -------
    array, shape (..., out_length)
        Means.

    Notes
    -----
    Along each axis of L positions and O bins, neighbouring bins share a position where O does not divide L.

    .. math::

        y_o = \frac{1}{|B_o|} \sum_{i \in B_o} x_i, \qquad \bar x_i = \sum_{o : i \in B_o} \frac{\bar y_o}{|B_o|}, \qquad
        B_o = \{i : \lfloor o L / O \rfloor \le i < \lceil (o + 1) L / O \rceil\}

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.adaptive_avg_pool1d(np.array([1.0, 3.0, 8.0]), output_size=2)
    array([2. , 5.5])
    """
    return _adaptive_avg_pool(x, 1, output_size)


@mechanism(tags={"pooling"}, samples=_samples1, bad_calls=_bad_calls)
def adaptive_max_pool1d(x: Array, *, output_size: int) -> tuple[Array, Pullback]:
    r"""Largest element of each of a given number of bins of a sequence.

    Parameters
    ----------
    x : array, shape (..., length)
        Sequences.
    output_size : positive int
        How many bins.

    Returns
    -------
    array, shape (..., out_length)
        Maxima; NaN where a bin has a NaN.

    Notes
    -----
    Of several largest elements (or NaN) of a bin, the first in row-major order takes the whole gradient.

    Along each axis of L positions and O bins, neighbouring bins share a position where O does not divide L.

    .. math::

        y_o = x_{m_o}, \quad m_o = \min \{i \in B_o : x_i = \max_{j \in B_o} x_j\}, \qquad
        \bar x_i = \sum_{o : m_o = i} \bar y_o, \qquad
        B_o = \{i : \lfloor o L / O \rfloor \le i < \lceil (o + 1) L / O \rceil\}

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.adaptive_max_pool1d(np.array([1.0, 3.0, 8.0]), output_size=2)
    array([3., 8.])
    """
    return _adaptive_max_pool(x, 1, output_size)


def _samples2(random: Random) -> Iterator[Sample]:
    x = random.normal((2, 5, 7))
    yield Sample("square", {"x": x, "output_size": 3})
    yield Sample("each axis", {"x": x, "output_size": (4, 1)})


def _benchmark(random: Random) -> Mapping[str, Any]:
    return {"x": random.normal((8, 64, 56, 56)), "output_size": 7}


@mechanism(tags={"pooling"}, samples=_samples2, benchmark=_benchmark)
def adaptive_avg_pool2d(x: Array, *, output_size: PerAxis) -> tuple[Array, Pullback]:
    r"""Mean of each of a given number of bins of an image.

    Parameters
    ----------
    x : array, shape (..., height, width)
        Images or feature maps.
    output_size : positive int or (positive int, positive int)
        How many bins along each axis.

    Returns
    -------
    array, shape (..., out_height, out_width)
        Means.

    Notes
    -----
    Along each axis of L positions and O bins, neighbouring bins share a position where O does not divide L.

    .. math::

        y_o = \frac{1}{|B_o|} \sum_{i \in B_o} x_i, \qquad \bar x_i = \sum_{o : i \in B_o} \frac{\bar y_o}{|B_o|}, \qquad
        B_o = \{i : \lfloor o L / O \rfloor \le i < \lceil (o + 1) L / O \rceil\}

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.adaptive_avg_pool2d(np.arange(9.0).reshape(3, 3), output_size=(1, 2))
    array([[3.5, 4.5]])
    """
    return _adaptive_avg_pool(x, 2, output_size)


@mechanism(tags={"pooling"}, samples=_samples2, benchmark=_benchmark)
def adaptive_max_pool2d(x: Array, *, output_size: PerAxis) -> tuple[Array, Pullback]:
    r"""Largest element of each of a given number of bins of an image.

    Parameters
    ----------
    x : array, shape (..., height, width)
        Images or feature maps.
    output_size : positive int or (positive int, positive int)
        How many bins along each axis.

    Returns
    -------
    array, shape (..., out_height, out_width)
        Maxima; NaN where a bin has a NaN.

    Notes
    -----
    Of several largest elements (or NaN) of a bin, the first in row-major order takes the whole gradient.

    Along each axis of L positions and O bins, neighbouring bins share a position where O does not divide L.

    .. math::

        y_o = x_{m_o}, \quad m_o = \min \{i \in B_o : x_i = \max_{j \in B_o} x_j\}, \qquad
        \bar x_i = \sum_{o : m_o = i} \bar y_o, \qquad
        B_o = \{i : \lfloor o L / O \rfloor \le i < \lceil (o + 1) L / O \rceil\}

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.adaptive_max_pool2d(np.arange(9.0).reshape(3, 3), output_size=(1, 2))
    array([[7., 8.]])
    """
    return _adaptive_max_pool(x, 2, output_size)


def _samples3(random: Random) -> Iterator[Sample]:
    x = random.normal((3, 4, 5))
    yield Sample("cube", {"x": x, "output_size": 2})
    yield Sample("each axis", {"x": x, "output_size": (1, 3, 4)})


@mechanism(tags={"pooling"}, samples=_samples3)
def adaptive_avg_pool3d(x: Array, *, output_size: PerAxis) -> tuple[Array, Pullback]:
    r"""Mean of each of a given number of bins of a volume.

    Parameters
    ----------
    x : array, shape (..., depth, height, width)
        Volumes.
    output_size : positive int or (positive int, positive int, positive int)
        How many bins along each axis.

    Returns
    -------
    array, shape (..., out_depth, out_height, out_width)
        Means.

    Notes
    -----
    Along each axis of L positions and O bins, neighbouring bins share a position where O does not divide L.

    .. math::

        y_o = \frac{1}{|B_o|} \sum_{i \in B_o} x_i, \qquad \bar x_i = \sum_{o : i \in B_o} \frac{\bar y_o}{|B_o|}, \qquad
        B_o = \{i : \lfloor o L / O \rfloor \le i < \lceil (o + 1) L / O \rceil\}

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.adaptive_avg_pool3d(np.arange(8.0).reshape(2, 2, 2), output_size=(2, 1, 1)).ravel()
    array([1.5, 5.5])
    """
    return _adaptive_avg_pool(x, 3, output_size)


@mechanism(tags={"pooling"}, samples=_samples3)
def adaptive_max_pool3d(x: Array, *, output_size: PerAxis) -> tuple[Array, Pullback]:
    r"""Largest element of each of a given number of bins of a volume.

    Parameters
    ----------
    x : array, shape (..., depth, height, width)
        Volumes.
    output_size : positive int or (positive int, positive int, positive int)
        How many bins along each axis.

    Returns
    -------
    array, shape (..., out_depth, out_height, out_width)
        Maxima; NaN where a bin has a NaN.

    Notes
    -----
    Of several largest elements (or NaN) of a bin, the first in row-major order takes the whole gradient.

    Along each axis of L positions and O bins, neighbouring bins share a position where O does not divide L.

    .. math::

        y_o = x_{m_o}, \quad m_o = \min \{i \in B_o : x_i = \max_{j \in B_o} x_j\}, \qquad
        \bar x_i = \sum_{o : m_o = i} \bar y_o, \qquad
        B_o = \{i : \lfloor o L / O \rfloor \le i < \lceil (o + 1) L / O \rceil\}

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.adaptive_max_pool3d(np.arange(8.0).reshape(2, 2, 2), output_size=(2, 1, 1)).ravel()
    array([3., 7.])
    """
    return _adaptive_max_pool(x, 3, output_size)
