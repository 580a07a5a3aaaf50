"""The backward kernels of compute capability 9.0 under the emulator against the reference: emulated, not run on a GPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
from refattn_numba.cuda.kernel import Kernel
from refattn_numba.cuda.kernels.hopper_backward import Config
from tests.cuda.calls import Band, numbers, stored
from tests.cuda.cases import PROBLEMS, Problem, problem
from tests.cuda.hopper_calls import backward_kernel, hopper_backward_of
from tests.cuda.test_backward import compare
from tests.cuda.test_hopper import FITTING, ORDERS


class Pair(NamedTuple):
    """The kernels of a backward pass."""

    queries: Kernel
    keys: Kernel


def small(element: Any = "bfloat16", size: int = 64, *, groups: int = 2, others: int = 16, **more: Any) -> Pair:
    """Kernels with the shipped ones' source and small tiles, so that a case has several."""
    sizes: dict[str, Any] = {"stages": 2, "few": 24, "many": 240, **more}
    queries, keys = (backward_kernel(Config(element, size, is_keys, groups, others, **sizes)) for is_keys in (False, True))
    return Pair(queries, keys)


def both(kernels: Pair, case: Problem, *, d_output: Any = None, seed: int = 5, **order: Any) -> tuple[dict[str, np.ndarray], Any]:
    """Cotangents by the kernels, and by the reference from the same cotangents of output and log-sum-exp."""
    rng = np.random.default_rng(seed)
    (output, lse), pullback = case.reference()
    d_lse = rng.standard_normal(lse.shape)
    d = stored(rng.standard_normal(output.shape) if d_output is None else d_output, case.element)
    with np.errstate(all="ignore"):
        delta = ((output * numbers(d)).sum(-1) - d_lse).astype(np.float32)
    got = hopper_backward_of(*kernels, *case.operands, lse.astype(np.float32), delta, d, **case.options, **order)
    return got, pullback(numbers(d), d_lse)


@pytest.mark.parametrize("name", FITTING)
def test_backward(name: str, record_property: Any) -> None:
    case = problem(**PROBLEMS[name])
    record_property("emulated", "hopper_backward")
    compare(case.element, *both(small(case.element), case))
