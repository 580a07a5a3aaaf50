"""The rule that all convolutions share: options to a problem, an algorithm for each face, storage types and layouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial, wraps
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np

from refattn._core import Array, Grads, Pullback
from refattn.convolution import rule
from refattn.convolution.rule import Padding, Pairs, PerAxis
from refattn.primitives.padding import PaddingMode, pad
from refattn_numba.cpu.conv.choice import Name, choose
from refattn_numba.cpu.conv.epilogue import before_activation, bias_gradient
from refattn_numba.cpu.conv.problem import AXES, Accuracy, Activation, Axes, Epilogue, Finished, Layout, Linear, Problem
from refattn_numba.cpu.conversion import STORED, narrowed, widened

Function = TypeVar("Function", bound=Callable[..., Any])

How: TypeAlias = tuple[Name, Accuracy]

COMPUTED = 4  # bytes of the smallest numbers that kernels compute with

PACKED: ContextVar[dict[Any, Any] | None] = ContextVar("refattn_packed", default=None)
"""Where the packed weights of a plan are kept while it is called."""


@contextmanager
def keeping(packed: dict[Any, Any]) -> Iterator[None]:
    """Within the block, all convolutions have one weight, and how algorithms want it is kept here."""
    token = PACKED.set(packed)
    try:
        yield
    finally:
        PACKED.reset(token)


def stored(convolve: Function) -> Function:
    """The same for numbers of 16 bits, which are computed in float32."""

    @wraps(convolve)
    def single(x: Array, weight: Array, bias: Array | None = None, **options: Any) -> tuple[Any, Pullback]:
        dtype = x.dtype
        if (dtype.kind == "f" and dtype.itemsize >= COMPUTED) or dtype.name not in STORED:  # a name takes long to make
            return convolve(x, weight, bias, **options)
        y, pullback = convolve(*(None if a is None else in_order(widened, a) for a in (x, weight, bias)), **options)
        narrow = partial(in_order, partial(narrowed, dtype=dtype))

        def pullback_of_stored(dy: Array) -> Grads:
            return {n: None if g is None else narrow(g) for n, g in pullback(in_order(widened, dy)).items()}

        return narrow(y), pullback_of_stored

    return cast("Function", single)


@stored
def convolve(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
    algorithm: Name = "auto",
    accuracy: Accuracy = "fast",
    activation: Activation | None = None,
    layout: Layout = "channels_first",  # moved at the border
) -> tuple[Array, Pullback]:
    """A convolution of any number of dimensions."""
    pad_pullback: Any = None
    if padding_mode != "zeros":
        *_, pairs = rule.geometry(x.shape[2:], weight.shape[2:], stride, padding, dilation)
        x, pad_pullback = pad.vjp(x, padding=pairs, mode=padding_mode)
        padding = 0
    problem = _problem(x.dtype, is_channels_last(x), x.shape, weight.shape, stride, padding, dilation, groups)
    y, pullback = _convolved(problem, "correlate", x, weight, bias, (algorithm, accuracy), activation)
    if pad_pullback is None:
        return y, pullback

    def pullback_of_padded(dy: Array) -> Grads:
        grads = pullback(dy)
        return {**grads, "x": pad_pullback(grads["x"])["x"]}

    return y, _reading(pullback_of_padded, activation)


@stored
def convolve_transposed(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: PerAxis = 1,
    padding: int | tuple[int, ...] | Pairs = 0,
    output_padding: PerAxis = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    algorithm: Name = "auto",
    accuracy: Accuracy = "fast",
    activation: Activation | None = None,
    layout: Layout = "channels_first",
) -> tuple[Array, Pullback]:
    """A transposed convolution: the convolution whose input is what is returned here, read the other way."""
    problem = _problem_transposed(x.dtype, is_channels_last(x), x.shape, weight.shape, stride, padding, output_padding, dilation, groups)
    return _convolved(problem, "spread", x, weight, bias, (algorithm, accuracy), activation)


def _convolved(
    problem: Problem, face: Linear, x: Array, weight: Array, bias: Array | None, how: How, activation: Activation | None
) -> tuple[Array, Pullback]:
    """One of the two linear faces, of which each is the other's pullback."""
    given, kernels = _five(x, problem.channels_last), _contiguous(weight)
    done = _linear(problem, face, how, given, kernels, Epilogue(_maybe(bias), activation))
    back: Linear = "spread" if face == "correlate" else "correlate"

    def pullback(dy: Array) -> Grads:
        d = _five(before_activation(done, activation, _as_five(dy)), problem.channels_last)
        operands = (given, d) if face == "correlate" else (d, given)
        return {
            "x": _linear(problem, back, how, d, kernels, Epilogue()).output.reshape(x.shape),
            "weight": choose(problem, "weight_gradient", *how).weight_gradient(problem, *operands).reshape(weight.shape),
            "bias": None if bias is None else bias_gradient(d),
        }

    y = done.output
    return y.reshape(*y.shape[:2], *y.shape[2 + AXES + 2 - x.ndim :]), _reading(pullback, activation)


def _reading(pullback: Any, activation: Activation | None) -> Pullback:
    """Say whether it reads the output, which users may overwrite."""
    pullback.reads_outputs = activation == "relu"
    return pullback


@lru_cache(maxsize=1024)  # most calls repeat the ones before
def _problem(
    dtype: Any, channels_last: bool, x: Any, weight: Any, stride: PerAxis, padding: Padding, dilation: PerAxis, groups: int
) -> Problem:  # fmt: skip
    """Of arrays of these shapes."""
    size, kernel = x[2:], weight[2:]
    steps, gaps, pairs = rule.geometry(size, kernel, stride, padding, dilation)
    out = rule.places(size, kernel, steps, gaps, pairs)
    return _with_three_axes(dtype, channels_last, x[0], weight, size, out, steps, gaps, pairs, groups)


@lru_cache(maxsize=1024)
def _problem_transposed(
    dtype: Any, channels_last: bool, x: Any, weight: Any, stride: PerAxis, padding: Any, output_padding: PerAxis, dilation: PerAxis,
    groups: int,
) -> Problem:  # fmt: skip
    """Likewise, where x is what the convolution makes."""
    steps, gaps, pairs, full = rule.transposed_geometry(x[2:], weight[2:], stride, padding, output_padding, dilation)
    size = tuple(n - a - b for n, (a, b) in zip(full, pairs, strict=True))
    return _with_three_axes(dtype, channels_last, x[0], weight, size, x[2:], steps, gaps, pairs, groups)


def _with_three_axes(
    dtype: Any, channels_last: bool, batch: int, weight: Any, size: Any, out: Any, stride: Any, dilation: Any, pairs: Pairs, groups: int
) -> Problem:  # fmt: skip
    """Those that are missing have one position."""

    def three(numbers: Any, missing: int) -> Axes:
        return cast("Axes", (missing,) * (AXES - len(numbers)) + tuple(numbers))

    before = [a for a, _ in pairs]
    groups = max(groups, 1)
    return Problem(
        dtype.newbyteorder("="), channels_last, batch, groups, weight[1], weight[0] // groups,
        three(size, 1), three(weight[2:], 1), three(out, 1), three(stride, 1), three(dilation, 1), three(before, 0),
    )  # fmt: skip


def is_channels_last(x: Array) -> bool:
    """Whether the channels lie next to one another in memory, and the positions do not."""
    if x.size and x.flags.c_contiguous:  # most are; the rest takes ten times as long
        return False
    rows = np.moveaxis(x, 1, -1)
    return x.shape[1] > 1 and math.prod(x.shape[2:]) > 1 and rows.flags.c_contiguous


def in_order(convert: Callable[[Array], Array], x: Array) -> Array:
    """A conversion that keeps the layout of memory."""
    return np.moveaxis(convert(np.moveaxis(x, 1, -1)), -1, 1) if x.ndim > 2 and is_channels_last(x) else convert(x)


def _as_five(x: Array) -> Array:
    return x.reshape(*x.shape[:2], *(1,) * (AXES + 2 - x.ndim), *x.shape[2:])


def _five(x: Array, channels_last: bool) -> Array:
    """With five axes, native and aligned, in one of the two layouts; itself where it is so already."""
    x = _native(_as_five(x))
    if not channels_last and x.flags.c_contiguous:
        return x
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1) if channels_last else np.ascontiguousarray(x)


def _contiguous(weight: Array) -> Array:
    return np.ascontiguousarray(_native(_as_five(weight)))


def _native(x: Array) -> Array:
    return x if x.flags.aligned and x.dtype.isnative else np.require(x, x.dtype.newbyteorder("="), "A")


def _maybe(bias: Array | None) -> Array | None:
    return None if bias is None else np.require(bias, bias.dtype.newbyteorder("="), ("C", "A"))


def _linear(problem: Problem, face: Linear, how: How, x: Array, weight: Array, epilogue: Epilogue) -> Finished:
    """The output or the gradient of the input; what the algorithm makes of the weight is made once where a plan keeps it."""
    algorithm, kept = choose(problem, face, *how), PACKED.get()
    at = algorithm.name, face, problem.dtype, problem.groups, problem.stride, problem.dilation
    packed = None if kept is None else kept.get(at)
    if packed is None:
        packed = algorithm.pack(problem, face, weight)
        if kept is not None:
            kept[at] = packed
    return (algorithm.correlate if face == "correlate" else algorithm.spread)(problem, x, packed, epilogue)
