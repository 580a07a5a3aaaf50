"""Every mechanism and every sample of the package, as pytest parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import refattn
from refattn import testing
from refattn._core import tree

MECHANISMS = refattn.mechanisms()
EACH = [pytest.param(m, id=m.__name__) for m in MECHANISMS]
CALLS = [pytest.param(m, s, id=f"{m.__name__}-{s.name}") for m in MECHANISMS for s in testing.samples(m)]

EXTENDED = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps
"""Whether longdouble is wider than float64 on this machine."""


def frozen(arguments: Any) -> dict[str, Any]:
    """Read-only copies of all arrays of a call: a mechanism never writes to what it was given."""
    given = dict(arguments)
    for path, x in tree.leaves(given):
        if isinstance(x, np.ndarray):
            copy = x.copy()
            copy.setflags(write=False)
            given = tree.replace(given, path, copy)
    return given
