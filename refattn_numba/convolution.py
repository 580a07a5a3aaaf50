"""Convolution, forward and backward, by the algorithm that suits its sizes, on all cores."""

from __future__ import annotations

import functools
from typing import Any, Literal, TypeAlias

import refattn
from refattn._core import Array, Pullback
from refattn_numba._layout import accepting_layouts
from refattn_numba._plan import planned
from refattn_numba._twin import twin_of
from refattn_numba.cpu.conv import run
from refattn_numba.cpu.conv.choice import Name
from refattn_numba.cpu.conv.problem import Accuracy, Activation

Layout: TypeAlias = Literal["channels_first", "channels_last"]


def how(
    *,
    algorithm: Name = "auto",
    accuracy: Accuracy = "fast",
    activation: Activation | None = None,
    layout: Layout = "channels_first",
) -> None:
    """What a fast convolution takes besides.

    Parameters
    ----------
    algorithm : {"auto", "direct", "winograd", "fft", "pointwise", "depthwise"}, optional
        How to compute it; "auto" takes what should be the fastest, for the output and for each gradient. ValueError where the one that
        is named does not apply.
    accuracy : {"fast", "strict"}, optional
        Whether "auto" may take algorithms with errors above those of a sum of products (within their stated bounds), or not.
    activation : {"relu", "silu", "gelu"} or None, optional
        A function of each output, after the bias; gradients go through it.
    layout : {"channels_first", "channels_last"}, optional
        Whether the channels of x, and of what is returned, are axis 1 or the last one. Weights are the same for both. An array whose
        channels lie next to one another in memory is computed so, whichever axis they are.
    """


def _twin(reference: Any, rule: Any) -> Any:
    """A fast convolution with the face of its reference."""

    @functools.wraps(reference)
    def fast(*args: Any, layout: Layout = "channels_first", **kwargs: Any) -> tuple[Array, Pullback]:
        return rule(**dict(zip(("x", "weight", "bias"), args, strict=False)), **kwargs)

    fast.__module__ = __name__
    return twin_of(reference, like=reference, narrow=True, extras=how, finished=lambda made: planned(accepting_layouts(made)))(fast)


def _depthwise(x: Array, **kwargs: Any) -> tuple[Array, Pullback]:
    return run.convolve(x=x, **kwargs, groups=x.shape[1])


conv1d = _twin(refattn.conv1d, run.convolve)
conv2d = _twin(refattn.conv2d, run.convolve)
conv3d = _twin(refattn.conv3d, run.convolve)
conv_transpose1d = _twin(refattn.conv_transpose1d, run.convolve_transposed)
conv_transpose2d = _twin(refattn.conv_transpose2d, run.convolve_transposed)
conv_transpose3d = _twin(refattn.conv_transpose3d, run.convolve_transposed)
depthwise_conv2d = _twin(refattn.depthwise_conv2d, _depthwise)
pointwise_conv2d = _twin(refattn.pointwise_conv2d, run.convolve)
