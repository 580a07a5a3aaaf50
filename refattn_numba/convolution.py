"""Convolution, forward and backward, by the algorithm that suits its sizes, on all cores."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypedDict, Unpack, cast

import refattn
from refattn._core import Array, Pullback
from refattn._core.mechanism import Spec
from refattn.convolution.rule import Padding, PerAxis
from refattn.primitives.padding import PaddingMode
from refattn_numba._layout import accepting_layouts
from refattn_numba._plan import Plan, planned
from refattn_numba._twin import twin_of
from refattn_numba.cpu.conv import run
from refattn_numba.cpu.conv.choice import Name
from refattn_numba.cpu.conv.problem import Accuracy, Activation, Layout
from refattn_numba.cuda.faces import convolution_on_device

P = ParamSpec("P")


class How(TypedDict, total=False):
    """The options of `how`."""

    algorithm: Name
    accuracy: Accuracy
    activation: Activation | None
    layout: Layout


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
        is named does not apply. Arrays on a device take "auto" alone.
    accuracy : {"fast", "strict"}, optional
        Whether "auto" may take algorithms with errors above those of a sum of products (within their stated bounds), or not.
    activation : {"relu", "silu", "gelu"} or None, optional
        A function of each output, after the bias; gradients go through it.
    layout : {"channels_first", "channels_last"}, optional
        Whether the channels of x, and of what is returned, are axis 1 or the last one. Weights are the same for both. An array whose
        channels lie next to one another in memory is computed so, whichever axis they are.
    """


class Convolution(Protocol[P]):
    """A fast convolution: the face of its reference, and the options of `how`."""

    spec: Spec
    __name__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Array:
        """The output."""
        ...

    def vjp(self, *args: P.args, **kwargs: P.kwargs) -> tuple[Array, Pullback]:
        """The output and its pullback."""
        ...

    def plan(self, weight: Any, bias: Any = None, **options: Any) -> Plan:
        """Prepare a weight for many calls with the same options."""
        ...


def _twin(reference: Any, rule: Callable[P, tuple[Array, Pullback]]) -> Convolution[P]:
    """`rule` with the face of a reference, and what all convolutions take besides."""

    @functools.wraps(reference)
    def fast(*args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
        return cast("Any", rule)(*args, **kwargs)

    fast.__module__ = __name__
    made = twin_of(reference, like=reference, narrow=True, extras=how, finished=_finished)(fast)
    return cast("Convolution[P]", made)


def _finished(made: Any) -> Any:
    """With layouts, arrays on a device, and plans."""
    return planned(convolution_on_device(accepting_layouts(made)))


def _depthwise(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    padding_mode: PaddingMode = "zeros",
    **options: Unpack[How],
) -> tuple[Array, Pullback]:
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": padding_mode}
    return run.convolve(x, weight, bias, groups=x.shape[1], **geometry, **options)


def _pointwise(x: Array, weight: Array, bias: Array | None = None, **options: Unpack[How]) -> tuple[Array, Pullback]:
    return run.convolve(x, weight, bias, **options)


conv1d = _twin(refattn.conv1d, run.convolve)
conv2d = _twin(refattn.conv2d, run.convolve)
conv3d = _twin(refattn.conv3d, run.convolve)
conv_transpose1d = _twin(refattn.conv_transpose1d, run.convolve_transposed)
conv_transpose2d = _twin(refattn.conv_transpose2d, run.convolve_transposed)
conv_transpose3d = _twin(refattn.conv_transpose3d, run.convolve_transposed)
depthwise_conv2d = _twin(refattn.depthwise_conv2d, _depthwise)
pointwise_conv2d = _twin(refattn.pointwise_conv2d, _pointwise)
