"""The direct method: for each output a sum over channels and taps. It takes every problem."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._core import Array
from refattn.convolution import rule
from refattn_numba.cpu.conv.epilogue import finish
from refattn_numba.cpu.conv.problem import Algorithm, Epilogue, Face, Finished, Problem


def takes(problem: Problem, face: Face) -> str | None:
    """Everything."""
    return None


def seconds(problem: Problem, face: Face) -> float:
    """At the rate of a core's multiply-adds."""
    return problem.operations / 1e11


def pack(problem: Problem, face: Face, weight: Array) -> Any:
    """As it is."""
    return rule.in_groups(weight, problem.groups, axis=0)


def _padded(problem: Problem, x: Array) -> Array:
    wide = [(o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(problem.out, problem.stride, problem.dilation, problem.kernel, strict=True)]
    pairs = [(b, max(0, w - b - n)) for b, w, n in zip(problem.before, wide, problem.size, strict=True)]
    return rule.in_groups(np.pad(x, ((0, 0), (0, 0), *pairs)), problem.groups, axis=1)


def correlate(problem: Problem, x: Array, packed: Any, epilogue: Epilogue) -> Finished:
    """One matrix product for each tap."""
    y = rule.correlate(_padded(problem, x), packed, problem.out, problem.stride, problem.dilation)
    return finish(_stored(problem, rule.joined(y, axis=1)), epilogue)


def spread(problem: Problem, dy: Array, packed: Any, epilogue: Epilogue) -> Finished:
    """Likewise."""
    whole = _padded(problem, np.zeros((0, problem.groups, *problem.size), problem.dtype)).shape[3:]
    dx = rule.joined(rule.spread(rule.in_groups(dy, problem.groups, axis=1), packed, whole, problem.stride, problem.dilation), axis=1)
    inner = tuple(slice(b, b + n) for b, n in zip(problem.before, problem.size, strict=True))
    return finish(_stored(problem, dx[(..., *inner)]), epilogue)


def weight_gradient(problem: Problem, x: Array, dy: Array) -> Array:
    """Likewise."""
    dy = rule.in_groups(dy, problem.groups, axis=1)
    dw = rule.weight_gradient(_padded(problem, x), dy, problem.kernel, problem.stride, problem.dilation)
    return np.ascontiguousarray(rule.joined(dw, axis=0)).reshape(-1, problem.c, *problem.kernel)


def _stored(problem: Problem, y: Array) -> Array:
    made = problem.empty(y.shape[1], y.shape[2:])
    made[...] = y
    return made


DIRECT = Algorithm("direct", True, takes, seconds, pack, correlate, spread, weight_gradient)
