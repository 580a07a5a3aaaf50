"""What is measured: suites of cases, each of which makes calls that compute the same thing.

A new suite is a module that calls `suite`; `SUITES` names the module, so that nothing is imported before it is measured.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LINE = 64
Call = Callable[[], Any]


@dataclass(frozen=True)
class Work:
    """What a call has to do at least: operations in a precision, or bytes to "read"; and so the limit that it is held to."""

    limit: str
    amount: float


@dataclass(frozen=True)
class Case:
    """One row of a table.

    `make` draws the inputs and returns a call for each contender, our own first; one that is not installed is left out. All
    calls return arrays, or tuples of arrays, that must agree to `tolerance`, relative to the largest element; or a function that
    makes these, whose time does not count. A call named "exact" is not timed; with it, errors are measured, and it may return
    less than the others: a corner of each array.

    `floor` is the least ratio of the baseline's time to ours, and `percent_floor` the least share of the machine's limit.
    """

    name: str
    make: Callable[[], Mapping[str, Call]]
    tolerance: float = 1e-9
    floor: float | None = None
    percent_floor: float | None = None
    baseline: str = "torch"
    work: Work | None = None
    quick: bool = True


SUITES = {
    "attention": "benchmarks.attention",
    "conv": "benchmarks.conv",
    "deformable": "benchmarks.deformable",
    "linear": "benchmarks.linear",
    "oracle": "benchmarks.oracle",
    "reference": "benchmarks.reference",
    "smoke": "benchmarks.smoke",
}
"""Suite to module; the module has ``CASES``."""


def suite(name: str) -> Sequence[Case]:
    """The cases of a suite; imports its module."""
    return importlib.import_module(SUITES[name]).CASES


def on_lines(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A copy that begins on a cache line, as PyTorch's own memory does: else it is chance that decides how fast a register is read."""
    whole = np.empty(x.nbytes + LINE, np.uint8)
    first = -whole.ctypes.data % LINE
    made = whole[first : first + x.nbytes].view(x.dtype).reshape(x.shape)
    made[...] = x
    return made


def installed(module: str) -> Any:
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None
