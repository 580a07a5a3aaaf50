"""Which algorithm computes a face of a problem."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypeAlias

from refattn_numba.cpu.conv.depthwise import DEPTHWISE
from refattn_numba.cpu.conv.direct import DIRECT
from refattn_numba.cpu.conv.fft import FFT
from refattn_numba.cpu.conv.pointwise import POINTWISE
from refattn_numba.cpu.conv.problem import Accuracy, Algorithm, Face, Problem
from refattn_numba.cpu.conv.winograd import WINOGRAD

Name: TypeAlias = Literal["auto", "direct", "winograd", "fft", "pointwise", "depthwise"]

ALGORITHMS: tuple[Algorithm, ...] = (DIRECT, POINTWISE, DEPTHWISE, WINOGRAD, FFT)
"""All; the first takes every problem."""


@lru_cache(maxsize=1024)  # a look at each algorithm takes as long as a small convolution
def choose(problem: Problem, face: Face, algorithm: Name = "auto", accuracy: Accuracy = "fast") -> Algorithm:
    """The one that is asked for, or the one that should be the fastest of those that may be used; ValueError for one that may not."""
    if algorithm != "auto":
        found = next(a for a in ALGORITHMS if a.name == algorithm)
        if why := found.takes(problem, face):
            raise ValueError(f"algorithm is {algorithm!r}, but {why}")
        if accuracy == "strict" and not found.exact:
            raise ValueError(f"algorithm is {algorithm!r}, which accuracy='strict' forbids")
        return found
    able = (a for a in ALGORITHMS if a.takes(problem, face) is None and (a.exact or accuracy == "fast"))
    return min(able, key=lambda a: a.seconds(problem, face))
