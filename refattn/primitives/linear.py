"""Affine map of the last axis."""

from __future__ import annotations

import math
from collections.abc import Iterator

from refattn._core import Array, Grads, Pullback, Random, Sample, mechanism


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 3, 4)), "weight": random.normal((5, 4))}
    yield Sample("plain", inputs)
    yield Sample("bias", {**inputs, "bias": random.normal(5)})
    yield Sample("one vector", {"x": random.normal(4), "weight": random.normal((1, 4)), "bias": random.normal(1)})


@mechanism(samples=_samples)
def linear(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Pullback]:
    r"""Affine map of the last axis.

    Parameters
    ----------
    x : array, shape (..., in_features)
        Input.
    weight : array, shape (out_features, in_features)
        One row for each output.
    bias : array or None, shape (out_features), optional
        Added to the outputs.

    Returns
    -------
    array, shape (..., out_features)
        Output.

    Notes
    -----
    .. math::

        y = W x + b, \qquad \bar x = W^\top \bar y, \quad \bar W = \sum \bar y\, x^\top, \quad \bar b = \sum \bar y

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.linear(np.array([1.0, 2.0]), np.array([[3.0, 4.0]]), np.array([0.5]))
    array([11.5])
    """
    y = x @ weight.swapaxes(0, 1)
    if bias is not None:
        y = y + bias

    def pullback(dy: Array) -> Grads:
        rows = dy.reshape(math.prod(dy.shape[:-1]), len(weight))
        return {
            "x": dy @ weight,
            "weight": rows.swapaxes(0, 1) @ x.reshape(len(rows), x.shape[-1]),
            "bias": rows.sum(axis=0),
        }

    return y, pullback
