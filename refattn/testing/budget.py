"""How far an honest kernel may be from the exact result, element by element.

With u the unit roundoff of the format and sd the standard deviation of the error before the last rounding,

    |x - exact| <= u |x| + k sd

The first part is the last rounding, to nearest: a kernel may use up all of it. For softmax attention the second is derived
(`refattn.testing.attention_budget`). For everything else it is measured: the reference is run again with every operation disturbed
as rounding may (`refattn.testing.arithmetic.Disturbance` says what errs by how much), in the forms that kernels use
(`refattn.testing.stored`), sixteen times, and k is 5.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn._core import Array, Mechanism
from refattn._core.mechanism import outputs
from refattn.testing import attention_budget as attention
from refattn.testing.arithmetic import disturbed
from refattn.testing.calls import gradient_leaves
from refattn.testing.drift import Spread
from refattn.testing.precision import Format

RUNS = 16
MEASURED = 5.0
"""For a standard deviation from 16 runs, where Student's t is beyond 5 once in 8,000 times; those of the model are upper bounds besides."""
SOFTMAX = {"scaled_dot_product_attention", "scaled_dot_product_attention_with_lse"}

_LATEST: dict[str, tuple[Any, Any, Format, dict[str, Any]]] = {}


@dataclass(frozen=True)
class Allowance:
    """What an honest kernel may err.

    Attributes
    ----------
    budget : array
        The largest error of each element.
    spread : Spread or None
        How errors before the last rounding are spread, where that is known.
    """

    budget: Array
    spread: Spread | None = None


def forward_budgets(
    mechanism: Mechanism[..., Any], arguments: Mapping[str, Any], exact: Mapping[str, Array], target: Format, *, exact_scores: bool = False
) -> dict[str, Array]:
    """A bound for each output, element by element."""
    allowed = forward_allowances(mechanism, arguments, exact, target, exact_scores=exact_scores)
    return {name: a.budget for name, a in allowed.items()}


def forward_allowances(
    mechanism: Mechanism[..., Any], arguments: Mapping[str, Any], exact: Mapping[str, Array], target: Format, *, exact_scores: bool = False
) -> dict[str, Allowance]:
    """What each output may err."""
    if mechanism.spec.name in SOFTMAX:
        return {name: Allowance(b) for name, b in attention.forward(mechanism, arguments, exact, target, exact_scores).items()}
    runs = []
    for seed in range(RUNS):
        with disturbed(target, seed), np.errstate(all="ignore"):
            runs.append(dict(zip(mechanism.spec.output_names, outputs(mechanism(**arguments)), strict=True)))
    return {name: _measured(x, [run[name] for run in runs], target) for name, x in exact.items()}


def gradient_budgets(
    mechanism: Mechanism[..., Any],
    arguments: Mapping[str, Any],
    ds: tuple[Array, ...],
    exact: Mapping[str, Array],
    target: Format,
    *,
    exact_scores: bool = False,
) -> dict[str, Array]:
    """A bound for each gradient, by dotted path, element by element."""
    allowed = gradient_allowances(mechanism, arguments, ds, exact, target, exact_scores=exact_scores)
    return {path: a.budget for path, a in allowed.items()}


def gradient_allowances(
    mechanism: Mechanism[..., Any],
    arguments: Mapping[str, Any],
    ds: tuple[Array, ...],
    exact: Mapping[str, Array],
    target: Format,
    *,
    exact_scores: bool = False,
    independent: bool = False,
) -> dict[str, Allowance]:
    """What each gradient may err, by dotted path."""
    if mechanism.spec.name in SOFTMAX:
        made = attention.backward(arguments, ds, exact, target, exact_scores=exact_scores)
        spreads = attention.spreads(arguments, ds, exact, target) if independent else {}
        return {path: Allowance(budget, spreads.get(path)) for path, budget in made.items()}
    runs = []
    for seed in range(RUNS):
        with disturbed(target, seed), np.errstate(all="ignore"):
            _, pullback = mechanism.vjp(**arguments)
            runs.append(gradient_leaves(pullback(*ds)))
    return {path: _measured(x, [run[path] for run in runs], target) for path, x in exact.items()}


def latest(
    kind: str, mechanism: Mechanism[..., Any], arguments: Any, target: Format, make: Callable[[], dict[str, Allowance]]
) -> dict[str, Allowance]:
    """What was made last for the very same arguments, which are handed over to a kernel in several ways; None is never the same."""
    if arguments is None:
        return make()
    last = _LATEST.get(kind)
    if last is None or last[0] is not arguments or last[1:3] != (mechanism, target):
        last = _LATEST[kind] = (arguments, mechanism, target, make())
    return last[3]


def _measured(exact: Array, runs: list[Array], target: Format) -> Allowance:
    with np.errstate(invalid="ignore"):
        errors = [np.asarray(np.where(np.isfinite(x) & np.isfinite(exact), x - exact, 0.0)) for x in runs]
    deviation = functools.reduce(np.hypot, errors) / math.sqrt(len(runs))  # squares of small errors would underflow
    return Allowance(target.unit * np.abs(exact) + MEASURED * deviation + target.floor, Spread(deviation, errors))
