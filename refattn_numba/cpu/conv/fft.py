"""Convolution by Fourier transforms, for large kernels.

A correlation is a product of the transform of the input and the conjugate one of the kernel, summed over the channels of a group; both
gradients are products of the same kind. Transforms are NumPy's, in the precision of the numbers, of whole images: they are long enough
that no output that is kept wraps around. Examples go to threads, since NumPy releases the lock.

Errors are those of transforms: each number of a result is off in proportion to the norms of *all* numbers that are multiplied,
and not of its own (Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, 2002, theorem 24.2): see `error_bound`.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, cast

import numba
import numpy as np

from refattn._core import Array
from refattn_numba.cpu.conv.epilogue import finish
from refattn_numba.cpu.conv.problem import Algorithm, Axes, Epilogue, Face, Finished, Problem
from refattn_numba.cpu.threads import on_threads

Spectrum = np.ndarray[Any, np.dtype[np.complexfloating[Any, Any]]]

AXES = -3, -2, -1
ROUNDINGS = 8.0  # for each level of a transform, which theorem 24.2 bounds by 6.7 where roots of unity are rounded correctly


def takes(problem: Problem, face: Face) -> str | None:
    """Stride 1 without dilation."""
    if problem.stride != (1, 1, 1):
        return f"it takes stride 1, not {problem.stride}"
    if any(d > 1 and k > 1 for d, k in zip(problem.dilation, problem.kernel, strict=True)):
        return f"it takes dilation 1, not {problem.dilation}"
    return None


def lengths(problem: Problem) -> Axes:
    """Of transforms: as many points as an output needs that sees all of the kernel, rounded up to products of 2, 3 and 5."""
    reach = (max(n + max(b, 0), o + k - 1) for n, o, k, b in zip(problem.size, problem.out, problem.kernel, problem.before, strict=True))
    return cast("Axes", tuple(smooth(n) for n in reach))


@lru_cache(1024)
def smooth(size: int) -> int:
    """The smallest product of powers of 2, 3 and 5 that is no smaller."""
    found = 1 << (size - 1).bit_length()
    for fives, threes in itertools.product(range(14), range(21)):
        odd = 5**fives * 3**threes
        if odd < found:
            found = min(found, odd << max(0, (-(-size // odd) - 1).bit_length()))
    return found


def error_bound(problem: Problem, norm_a: Any, norm_b: Any) -> float:
    """How far a number of a result may be off, where what is multiplied has these Euclidean norms over a group's channels and positions.

    Three transforms, of which each adds a rounding a level, and the sum of products between them.
    """
    levels = 3 * math.log2(max(2, math.prod(lengths(problem)))) + math.log2(max(2, problem.c * problem.o * problem.batch)) + 2
    return ROUNDINGS * levels * float(np.finfo(problem.dtype).eps) / 2 * norm_a * norm_b


def seconds(problem: Problem, face: Face) -> float:
    """Transforms and complex products at the rates of NumPy 2.4 on a core of a Xeon at 2 GHz."""
    points, groups = math.prod(lengths(problem)), problem.groups
    kernels = groups * problem.c * problem.o * (problem.batch if face == "weight_gradient" else 1)
    planes = problem.batch * groups * (problem.c + problem.o) + kernels
    products = problem.batch * groups * problem.c * problem.o * points / 2
    slow = problem.dtype.itemsize / 4
    return 2e-4 + slow * (planes * points * math.log2(max(2, points)) * 1.75e-9 + products * 2.5e-9)


def _transformed(problem: Problem, x: Array) -> Spectrum:
    return np.fft.rfftn(x, lengths(problem), AXES)


def pack(problem: Problem, face: Face, weight: Array) -> Array:
    """As it is: the length of a transform depends on positions."""
    return weight


def _grouped(problem: Problem, x: Array, channels: int) -> Array:
    """(batch, group, channel, positions)."""
    return x.reshape(x.shape[0], problem.groups, channels, *x.shape[2:])


def _placed(problem: Problem, x: Array) -> Spectrum:
    """The input with the padding before it, transformed. A kernel's first tap sees its first number."""
    return _transformed(problem, np.pad(x, [(0, 0)] * (x.ndim - 3) + [(b, 0) for b in problem.before]))


def _kernels(problem: Problem, weight: Array) -> Spectrum:
    """(group, o, c, frequencies)."""
    return _transformed(problem, weight.reshape(problem.groups, problem.o, problem.c, *problem.kernel))


def _by_example(problem: Problem, work: Callable[[int], None]) -> None:
    """Call for each example, on threads."""
    waiting = deque(range(problem.batch))

    def take() -> None:
        while True:
            try:
                example = waiting.popleft()
            except IndexError:
                return
            work(example)

    on_threads(max(1, min(numba.get_num_threads(), problem.batch)), take)


def _summed(terms: Iterable[Spectrum]) -> Spectrum:
    """One after another: NumPy's own sums of complex products take several times as long."""
    first, *rest = terms
    for term in rest:
        first += term
    return first


def correlate(problem: Problem, x: Array, packed: Any, epilogue: Epilogue) -> Finished:
    """The inverse transform of x times the conjugate of the kernel."""
    made, kernels = problem.empty(problem.groups * problem.o, problem.out), _kernels(problem, packed).conj()
    inner = tuple(slice(n) for n in problem.out)

    def one(example: int) -> None:
        given = _placed(problem, _grouped(problem, x[example : example + 1], problem.c)[0])
        found = np.fft.irfftn(_summed(given[:, c, None] * kernels[:, :, c] for c in range(problem.c)), lengths(problem), AXES)
        made[example] = found[(..., *inner)].reshape(-1, *problem.out)

    _by_example(problem, one)
    return finish(made, epilogue)


def spread(problem: Problem, dy: Array, packed: Any, epilogue: Epilogue) -> Finished:
    """The inverse transform of dy times the kernel, from behind the padding on."""
    made, kernels = problem.empty(problem.groups * problem.c, problem.size), _kernels(problem, packed)
    inner = tuple(slice(b, b + n) for b, n in zip(problem.before, problem.size, strict=True))

    def one(example: int) -> None:
        given = _transformed(problem, _grouped(problem, dy[example : example + 1], problem.o)[0])
        found = np.fft.irfftn(_summed(given[:, o, None] * kernels[:, o] for o in range(problem.o)), lengths(problem), AXES)
        made[example] = found[(..., *inner)].reshape(-1, *problem.size)

    _by_example(problem, one)
    return finish(made, epilogue)


def weight_gradient(problem: Problem, x: Array, dy: Array) -> Array:
    """The inverse transform of x times the conjugate of dy, whose sum over examples is made in their order."""
    inner, taps = tuple(slice(k) for k in problem.kernel), np.zeros((problem.groups, problem.o, problem.c, *problem.kernel), problem.dtype)
    parts: dict[int, Array] = {}

    def one(example: int) -> None:
        given = _placed(problem, _grouped(problem, x[example : example + 1], problem.c)[0])
        d = _transformed(problem, _grouped(problem, dy[example : example + 1], problem.o)[0]).conj()
        parts[example] = np.fft.irfftn(d[:, :, None] * given[:, None], lengths(problem), AXES)[(..., *inner)]

    _by_example(problem, one)
    for example in range(problem.batch):
        taps += parts[example]
    return taps.reshape(-1, problem.c, *problem.kernel)


FFT = Algorithm("fft", False, takes, seconds, pack, correlate, spread, weight_gradient)
