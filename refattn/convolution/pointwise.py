"""Convolution with a kernel of one tap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refattn._core import Array, BadCall, Pullback, Random, Sample, mechanism
from refattn.convolution.conv2d import conv2d


def _inputs(random: Random) -> dict[str, Any]:
    return {"x": random.normal((2, 3, 4, 2)), "weight": random.normal((5, 3, 1, 1))}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    yield Sample("plain", inputs)
    yield Sample("bias", {**inputs, "bias": random.normal(5)})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield BadCall("more taps", {**inputs, "weight": random.normal((5, 3, 1, 2))}, ValueError, "1 is 2 in weight, but should be 1")


@mechanism(tags={"convolution"}, samples=_samples, bad_calls=_bad_calls)
def pointwise_conv2d(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Pullback]:
    r"""Mix the channels of each pixel, without looking at its neighbours: `linear` at each position.

    Parameters
    ----------
    x : array, shape (batch, in_channels, height, width)
        Images.
    weight : array, shape (out_channels, in_channels, 1, 1)
        One row for each output channel.
    bias : array or None, shape (out_channels), optional
        Added to each output channel.

    Returns
    -------
    array, shape (batch, out_channels, height, width)
        Images with other channels.

    Notes
    -----
    Sizes: ``height >= 1``, ``width >= 1``.

    .. math::

        y_{o,p} = \beta_o + \sum_c w_{o,c}\, x_{c,p}, \qquad
        \bar x_{c,p} = \sum_o w_{o,c}\, \bar y_{o,p}, \quad \bar w_{o,c} = \sum_p \bar y_{o,p}\, x_{c,p}, \quad
        \bar\beta_o = \sum_p \bar y_{o,p}

    References
    ----------
    .. [1] Lin, Chen, Yan, "Network In Network", ICLR 2014. arXiv:1312.4400.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.pointwise_conv2d(np.array([[[[1.0]], [[2.0]]]]), np.array([[[[3.0]], [[4.0]]]])).item()
    11.0
    """
    return conv2d.vjp(x, weight, bias)
