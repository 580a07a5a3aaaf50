"""What each position of an image sees through a window: the columns of `conv2d_im2col`, as an operation of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism
from refattn.convolution.im2col import col2im, im2col
from refattn.convolution.rule import Padding, PerAxis, border, out_size, per_axis, refuse_small
from refattn.primitives.padding import PaddingMode, pad


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 3, 4, 5)), "kernel_size": (3, 2)}
    yield Sample("two sizes", inputs)
    yield Sample("stride", {**inputs, "stride": (2, 1), "padding": 1})
    yield Sample("dilation", {**inputs, "kernel_size": 2, "dilation": (1, 3), "padding": ((0, 1), (2, 0))})
    yield Sample("reflect", {**inputs, "padding": "same", "padding_mode": "reflect", "stride": 2})
    yield Sample("no examples", {**inputs, "x": random.normal((0, 3, 4, 5))})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = {"x": random.normal((2, 3, 4, 5)), "kernel_size": 3}
    yield BadCall("window too high", {**inputs, "kernel_size": (5, 1)}, ValueError, r"kernel_size reaches over \(5, 1\) positions")
    yield BadCall("three sizes", {**inputs, "kernel_size": (3, 3, 3)}, ValueError, r"kernel_size is \(3, 3, 3\), but must have 2 numbers")
    yield BadCall("no width", {**inputs, "x": random.normal((2, 3, 4, 0)), "padding": 2}, ValueError, "width is 0")
    yield BadCall("far reflection", {**inputs, "padding": 4, "padding_mode": "reflect"}, ValueError, "reflect allows at most 3")


def _benchmark(random: Random) -> dict[str, Any]:
    return {"x": random.normal((8, 64, 56, 56)), "kernel_size": 3, "padding": 1}


@mechanism(tags={"convolution"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def unfold2d(
    x: Array,
    *,
    kernel_size: PerAxis,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    padding_mode: PaddingMode = "zeros",
) -> tuple[Array, Pullback]:
    r"""Put beside each other what a sliding window sees at each position.

    Parameters
    ----------
    x : array, shape (batch, channels, height, width)
        Images.
    kernel_size : positive int or tuple of positive int
        Taps of the window; one number, or one for each axis.
    stride : positive int or tuple of positive int, optional
        Step from one output position to the next.
    padding : non-negative int or tuple of non-negative int or tuple of (non-negative int, non-negative int) or {"same", "valid"}, optional
        As of `conv2d`.
    dilation : positive int or tuple of positive int, optional
        Step from one tap of the window to the next.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}, optional
        What stands in the added positions, as in `pad`.

    Returns
    -------
    array, shape (batch, channels, taps, out_height, out_width)
        What each tap sees at each position, the taps of a window in row-major order.

    Notes
    -----
    Sizes: ``height >= 1``, ``width >= 1``.

    With s the stride, d the dilation, t a tap and x the padded input:

    .. math::

        y_{c,t,p} = x_{c,sp + dt}, \qquad \bar x_{c,q} = \sum_{p,t:\, sp + dt = q} \bar y_{c,t,p}

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.unfold2d(np.arange(6.0).reshape(1, 1, 2, 3), kernel_size=2)[0, 0, :, 0]
    array([[0., 1.],
           [1., 2.],
           [3., 4.],
           [4., 5.]])
    """
    size = x.shape[2:]
    kernel, steps, gaps = per_axis("kernel_size", kernel_size, 2), per_axis("stride", stride, 2), per_axis("dilation", dilation, 2)
    padded, pad_pullback = pad.vjp(x, padding=border(padding, size, kernel, steps, gaps), mode=padding_mode)
    refuse_small(padded.shape[2:], kernel, gaps, name="kernel_size")
    out = out_size(padded.shape[2:], kernel, steps, gaps)

    def pullback(dy: Array) -> Grads:
        d_padded = col2im(dy[:, None], padded.shape[2:], kernel, steps, gaps)[:, 0]
        return {"x": pad_pullback(d_padded)["x"]}

    return im2col(padded[:, None], kernel, out, steps, gaps)[:, 0], pullback
