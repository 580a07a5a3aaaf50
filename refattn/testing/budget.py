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
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn._core import Array, Mechanism
from refattn._core.mechanism import outputs
from refattn.testing import attention_budget as attention
from refattn.testing.arithmetic import Disturbance, within
from refattn.testing.calls import gradient_leaves
from refattn.testing.drift import Spread
from refattn.testing.one_thread import one_thread
from refattn.testing.precision import Format
from refattn.testing.stored import choices

RUNS = 16
MEASURED = 5.0
"""For a standard deviation from 16 runs, beyond 5 of which Student's t is once in 7,600 times. That alone would refuse every honest kernel,
as a check compares millions of elements; but the model's deviations are upper bounds. Of 6.2 million elements of PyTorch's float32
convolutions (level `full`, 6 seeds, forward and backward) the furthest is at 0.61 of its budget, 3.0 deviations, where t would have reached
8.8: a kernel's own deviation is about a third of the model's, and beyond 5 of these it is less than once in a billion times."""
SOFTMAX = {"scaled_dot_product_attention", "scaled_dot_product_attention_with_lse"}

_LATEST: OrderedDict[tuple[int, str, Format], tuple[Any, dict[str, dict[str, Allowance]]]] = OrderedDict()
KEPT = 16
"""Calls of which budgets are kept, since a case that is handed over in several ways comes again after others."""


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


class Allowances:
    """What each output of one call may err, and each gradient.

    Parameters
    ----------
    mechanism : mechanism
        What is computed.
    arguments : mapping
        By its names, as the format holds them.
    target : Format
        The kernel's.
    exact_scores, independent : bool, optional
        As of `Case`.
    """

    def __init__(
        self,
        mechanism: Mechanism[..., Any],
        arguments: Mapping[str, Any],
        target: Format,
        *,
        exact_scores: bool = False,
        independent: bool = False,
    ) -> None:
        self.mechanism, self.arguments, self.target = mechanism, arguments, target
        self.exact_scores, self.independent = exact_scores, independent

    @one_thread()
    def forward(self, exact: Mapping[str, Array]) -> dict[str, Allowance]:
        """What each output may err."""
        if self.mechanism.spec.name in SOFTMAX:
            made = attention.forward(self.mechanism, self.arguments, exact, self.target, self.exact_scores)
            return {name: Allowance(budget) for name, budget in made.items()}
        return self._measured(exact, [y for y, _ in self._runs])

    @one_thread()
    def backward(self, ds: tuple[Array, ...], exact: Mapping[str, Array]) -> dict[str, Allowance]:
        """What each gradient may err, by dotted path."""
        if self.mechanism.spec.name in SOFTMAX:
            made = attention.backward(self.arguments, ds, exact, self.target, exact_scores=self.exact_scores)
            spreads = attention.spreads(self.arguments, ds, exact, self.target) if self.independent else {}
            return {path: Allowance(budget, spreads.get(path)) for path, budget in made.items()}
        return self._measured(exact, [back(ds) for _, back in self._runs])

    @functools.cached_property
    def _runs(self) -> list[tuple[dict[str, Array], Callable[[tuple[Array, ...]], dict[str, Array]]]]:
        """The disturbed reference's outputs, and its gradients, each from the same disturbance."""
        with np.errstate(all="ignore"):
            chosen = choices(self.mechanism, self.arguments)
        return [self._run(Disturbance(self.target, seed, chosen)) for seed in range(RUNS)]

    def _run(self, arithmetic: Disturbance) -> tuple[dict[str, Array], Callable[[tuple[Array, ...]], dict[str, Array]]]:
        with within(arithmetic), np.errstate(all="ignore"):
            y, pullback = self.mechanism.vjp(**self.arguments)

        def back(ds: tuple[Array, ...]) -> dict[str, Array]:
            with within(arithmetic), np.errstate(all="ignore"):
                return gradient_leaves(pullback(*ds))

        return dict(zip(self.mechanism.spec.output_names, outputs(y), strict=True)), back

    def _measured(self, exact: Mapping[str, Array], runs: list[dict[str, Array]]) -> dict[str, Allowance]:
        return {name: _measured(x, [run[name] for run in runs], self.target, keep=self.independent) for name, x in exact.items()}


def forward_budgets(
    mechanism: Mechanism[..., Any], arguments: Mapping[str, Any], exact: Mapping[str, Array], target: Format, *, exact_scores: bool = False
) -> dict[str, Array]:
    """A bound for each output, element by element."""
    allowed = Allowances(mechanism, arguments, target, exact_scores=exact_scores).forward(exact)
    return {name: a.budget for name, a in allowed.items()}


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
    allowed = Allowances(mechanism, arguments, target, exact_scores=exact_scores).backward(ds, exact)
    return {path: a.budget for path, a in allowed.items()}


def latest(
    mechanism: Mechanism[..., Any], arguments: Any, target: Format, kind: str, make: Callable[[], dict[str, Allowance]]
) -> dict[str, Allowance]:
    """What was made for the very same arguments, if they were among the last ones; None is never the same."""
    if arguments is None:
        return make()
    key = (id(arguments), mechanism.spec.name, target)  # the arguments are kept, so that no others get their number
    kept = _LATEST.setdefault(key, (arguments, {}))[1]
    _LATEST.move_to_end(key)
    if len(_LATEST) > KEPT:
        _LATEST.popitem(last=False)
    if kind not in kept:
        kept[kind] = make()
    return kept[kind]


def _measured(exact: Array, runs: list[Array], target: Format, *, keep: bool) -> Allowance:
    with np.errstate(invalid="ignore"):
        errors = [np.asarray(np.where(np.isfinite(x) & np.isfinite(exact), x - exact, 0.0)) for x in runs]
    deviation = functools.reduce(np.hypot, errors) / math.sqrt(len(runs))  # squares of small errors would underflow
    return Allowance(target.unit * np.abs(exact) + MEASURED * deviation + target.floor, Spread(deviation, errors) if keep else None)
