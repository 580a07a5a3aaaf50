"""What is to be computed, for any number of dimensions and either layout of memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from refattn._core import Array
from refattn_numba._activations import Activation
from refattn_numba.cpu.call import empty

Axes: TypeAlias = tuple[int, int, int]
Linear: TypeAlias = Literal["correlate", "spread"]
Face: TypeAlias = Linear | Literal["weight_gradient"]
Accuracy: TypeAlias = Literal["fast", "strict"]
Layout: TypeAlias = Literal["channels_first", "channels_last"]

AXES = 3


class Problem(NamedTuple):
    """The sizes of one convolution.

    Arrays have five axes: x ``(batch, groups * c, *size)``, weight ``(groups * o, c, *kernel)``, y ``(batch, groups * o, *out)``.
    Tap t of output position p reads position ``stride * p + dilation * t - before`` of x, which is 0 outside ``range(size)``.

    Attributes
    ----------
    dtype : dtype
        float32 or float64, of all arrays.
    channels_last : bool
        Whether, in memory, the channels of x and y follow their positions. Weights are C-contiguous always.
    batch, groups, c, o : int
        Examples; groups; input and output channels of a group.
    size, kernel, out, stride, dilation, before : (int, int, int)
        Of each axis.
    """

    dtype: np.dtype[Any]
    channels_last: bool
    batch: int
    groups: int
    c: int
    o: int
    size: Axes
    kernel: Axes
    out: Axes
    stride: Axes
    dilation: Axes
    before: Axes

    @property
    def operations(self) -> float:
        """Multiplications and additions of the direct method, where no tap falls on padding; the same for each face."""
        return 2.0 * self.batch * self.groups * self.c * self.o * math.prod(self.kernel) * math.prod(self.out)

    def empty(self, channels: int, size: Axes) -> Array:
        """An array for x or y."""
        if not self.channels_last:
            return empty((self.batch, channels, *size), self.dtype)
        return np.moveaxis(empty((self.batch, *size, channels), self.dtype), -1, 1)


class Epilogue(NamedTuple):
    """What follows a convolution: a bias of each output channel, and a function of each number."""

    bias: Array | None = None
    activation: Activation | None = None


class Finished(NamedTuple):
    """The output, and the numbers before the activation: the same array, where there is none or these are not needed."""

    output: Array
    before: Array


@dataclass(frozen=True)
class Algorithm:
    """One way to compute some faces of some problems.

    Arrays are float32 or float64 alone, of five axes, in the memory layout that the problem states, and of its sizes: nothing has to be
    checked again. None of the functions may write to what it is given.

    Attributes
    ----------
    name : str
        As users ask for it.
    exact : bool
        Whether errors are those of a sum of products; else ``accuracy="strict"`` forbids it.
    takes : callable
        ``takes(problem, face)``: None, or for people the reason why it does not.
    seconds : callable
        ``seconds(problem, face)``: how long it takes on one thread of a common machine, to be compared with other algorithms' alone.
    pack : callable
        ``pack(problem, face, weight)``: the weight as "correlate" or "spread" wants it; it depends on neither batch nor positions of x.
    correlate : callable
        ``correlate(problem, x, packed, epilogue)``: y, `Finished`; by `epilogue.finish`, or in the loop that stores it.
    spread : callable
        ``spread(problem, dy, packed, epilogue)``: likewise for x.
    weight_gradient : callable
        ``weight_gradient(problem, x, dy)``.
    """

    name: str
    exact: bool
    takes: Callable[[Problem, Face], str | None]
    seconds: Callable[[Problem, Face], float]
    pack: Callable[[Problem, Face, Array], Any]
    correlate: Callable[[Problem, Array, Any, Epilogue], Finished]
    spread: Callable[[Problem, Array, Any, Epilogue], Finished]
    weight_gradient: Callable[[Problem, Array, Array], Array]
