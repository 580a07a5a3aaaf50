"""Mean and maximum over any axes, and the global pooling of feature maps, which is these over the spatial axes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism

Axes: TypeAlias = int | tuple[int, ...]


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 3, 4))}
    yield Sample("one axis", {**inputs, "axes": -1})
    yield Sample("two axes", {**inputs, "axes": (2, 0)})
    yield Sample("kept", {**inputs, "axes": 1, "keepdims": True})
    yield Sample("no rows", {"x": random.normal((0, 3, 4)), "axes": (1, 2)})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = {"x": random.normal((2, 3, 4))}
    yield BadCall("no such axis", {**inputs, "axes": 3}, ValueError, r"axes is 3, but x has 3 axes")
    yield BadCall("twice the same", {**inputs, "axes": (0, -3)}, ValueError, r"axes is \(0, -3\), which names an axis twice")
    yield BadCall("nothing there", {"x": random.normal((2, 0)), "axes": 1}, ValueError, r"axes is 1, along which x of shape \(2, 0\)")


def _axes(x: Array, axes: Axes) -> tuple[int, ...]:
    """The axes counted from 0; ValueError where they are not distinct axes of `x` that hold something."""
    listed = (axes,) if isinstance(axes, int) else axes
    if not all(-x.ndim <= axis < x.ndim for axis in listed):
        raise ValueError(f"axes is {axes}, but x has {x.ndim} axes")
    found = tuple(axis % x.ndim for axis in listed)
    if len(set(found)) < len(found):
        raise ValueError(f"axes is {axes}, which names an axis twice")
    if any(x.shape[axis] == 0 for axis in found):
        raise ValueError(f"axes is {axes}, along which x of shape {x.shape} holds nothing")
    return found


def _kept(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


@mechanism(samples=_samples, bad_calls=_bad_calls)
def mean_over(x: Array, *, axes: Axes, keepdims: bool = False) -> tuple[Array, Pullback]:
    r"""Mean over one axis or several.

    Parameters
    ----------
    x : array, shape (*positions)
        Input.
    axes : int or tuple of int
        Which; negative ones count from the last.
    keepdims : bool, optional
        Whether these axes stay, with one element each.

    Returns
    -------
    array, shape (*out_positions)
        Means.

    Notes
    -----
    .. math::

        y = \frac{1}{n} \sum_{i = 1}^n x_i, \qquad \bar x_i = \bar y / n

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.mean_over(np.array([[1.0, 2.0], [3.0, 6.0]]), axes=0)
    array([2., 4.])
    """
    over = _axes(x, axes)
    count = math.prod(x.shape[axis] for axis in over)

    def pullback(dy: Array) -> Grads:
        return {"x": np.broadcast_to(dy.reshape(_kept(x.shape, over)) / count, x.shape)}

    return x.sum(axis=over, keepdims=keepdims) / count, pullback


@mechanism(samples=_samples, bad_calls=_bad_calls)
def max_over(x: Array, *, axes: Axes, keepdims: bool = False) -> tuple[Array, Pullback]:
    r"""Largest element over one axis or several.

    Parameters
    ----------
    x : array, shape (*positions)
        Input.
    axes : int or tuple of int
        Which; negative ones count from the last.
    keepdims : bool, optional
        Whether these axes stay, with one element each.

    Returns
    -------
    array, shape (*out_positions)
        Maxima; NaN where there is a NaN.

    Notes
    -----
    Of several largest elements (or NaN), the first in row-major order of `x` takes the whole gradient.

    .. math::

        y = x_m, \quad m = \min \{i : x_i = \max_j x_j\}, \qquad \bar x_i = [i = m]\, \bar y

    Examples
    --------
    >>> import numpy as np, refattn
    >>> y, pullback = refattn.max_over.vjp(np.array([[1.0, 5.0], [5.0, 2.0]]), axes=(0, 1))
    >>> y, pullback(np.array(1.0))["x"]
    (array(5.), array([[0., 1.],
           [0., 0.]]))
    """
    over = tuple(sorted(_axes(x, axes)))
    last = tuple(range(x.ndim - len(over), x.ndim))
    moved = np.moveaxis(x, over, last)
    rows = moved.reshape(*moved.shape[: x.ndim - len(over)], math.prod(moved.shape[x.ndim - len(over) :]))
    first = rows.argmax(axis=-1)[..., None]
    y = np.take_along_axis(rows, first, axis=-1)[..., 0]

    def pullback(dy: Array) -> Grads:
        d_rows = np.where(np.arange(rows.shape[-1]) == first, dy.reshape(first.shape), 0)
        return {"x": np.moveaxis(d_rows.reshape(moved.shape), last, over)}

    return y.reshape(_kept(x.shape, over)) if keepdims else y, pullback


def _map_samples(random: Random) -> Iterator[Sample]:
    yield Sample("sequence", {"x": random.normal((2, 3, 4))})
    yield Sample("image", {"x": random.normal((2, 3, 4, 5))})
    yield Sample("volume", {"x": random.normal((1, 2, 2, 3, 4))})


def _map_bad_calls(random: Random) -> Iterator[BadCall]:
    yield BadCall("empty map", {"x": random.normal((2, 3, 0, 4))}, ValueError, r"along which x of shape \(2, 3, 0, 4\) holds nothing")


def _map_benchmark(random: Random) -> Mapping[str, Any]:
    return {"x": random.normal((8, 64, 56, 56))}


@mechanism(samples=_map_samples, bad_calls=_map_bad_calls, benchmark=_map_benchmark)
def global_avg_pool(x: Array) -> tuple[Array, Pullback]:
    r"""Mean of each channel over all positions of a sequence, image or volume.

    Parameters
    ----------
    x : array, shape (batch, channels, *positions)
        Feature maps.

    Returns
    -------
    array, shape (batch, channels)
        Means.

    Notes
    -----
    .. math::

        y_c = \frac{1}{n} \sum_p x_{c p}, \qquad \bar x_{c p} = \bar y_c / n

    References
    ----------
    .. [1] Lin, Chen, Yan, "Network In Network", ICLR 2014, section 3.2. arXiv:1312.4400.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.global_avg_pool(np.arange(8.0).reshape(1, 2, 2, 2))
    array([[1.5, 5.5]])
    """
    return mean_over.vjp(x, axes=tuple(range(2, x.ndim)))


@mechanism(samples=_map_samples, bad_calls=_map_bad_calls, benchmark=_map_benchmark)
def global_max_pool(x: Array) -> tuple[Array, Pullback]:
    r"""Largest element of each channel over all positions of a sequence, image or volume.

    Parameters
    ----------
    x : array, shape (batch, channels, *positions)
        Feature maps.

    Returns
    -------
    array, shape (batch, channels)
        Maxima; NaN where a channel has a NaN.

    Notes
    -----
    Of several largest elements (or NaN), the first in row-major order takes the whole gradient.

    .. math::

        y_c = x_{c m}, \quad m = \min \{p : x_{c p} = \max_q x_{c q}\}, \qquad \bar x_{c p} = [p = m]\, \bar y_c

    References
    ----------
    .. [1] Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, section 3. arXiv:1807.06521.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.global_max_pool(np.arange(8.0).reshape(1, 2, 2, 2))
    array([[3., 7.]])
    """
    return max_over.vjp(x, axes=tuple(range(2, x.ndim)))
