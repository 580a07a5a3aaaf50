"""What every problem is measured by: time, peak memory, and the worst error over what an honest kernel may have.

Wherever something is not installed, or not there at the commit that is measured, ``NotImplementedError`` in `setup` leaves it out.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

PRECISIONS = {"refattn": "float64", "refattn_numba": "float32"}
FORWARD, BOTH = DIRECTIONS = ("forward", "forward and backward")


class Problem(NamedTuple):
    """A mechanism by name, and a function of a random generator that makes its arguments.

    `smaller` makes those that errors are measured of, where budgets of the same take long: each element has its own. `twins_only` is
    for what takes NumPy minutes, and longdouble hours: it is timed for the twins, and its errors are not measured.
    """

    mechanism: str
    arguments: Callable[[np.random.Generator], Mapping[str, Any]]
    smaller: Callable[[np.random.Generator], Mapping[str, Any]] | None = None
    twins_only: bool = False


def normal(**shapes: tuple[int, ...]) -> Callable[[np.random.Generator], dict[str, Any]]:
    """Arguments that are normal numbers of these shapes."""
    return lambda random: {name: random.standard_normal(shape) for name, shape in shapes.items()}


def offered(package: str, name: str) -> Any:
    """A mechanism of a package."""
    try:
        return getattr(importlib.import_module(package), name)
    except (ImportError, AttributeError) as error:
        raise NotImplementedError(f"{package} has no {name}") from error


def warm_up() -> None:
    """Compile the kernels into Numba's cache on disk: no process that measures compiles, which would be its peak of memory too."""
    try:
        compile_all = offered("refattn_numba", "warm_up")
    except NotImplementedError:
        return
    compile_all()


class Measured(ABC):
    """Abstract, as asv would run it otherwise, and once more in each module that imports it."""

    problems: ClassVar[dict[str, Problem]]
    params: ClassVar[Any]
    param_names: ClassVar[Any] = ["package", "case", "direction"]
    timeout = 120.0
    sample_time, warmup_time, repeat, rounds = 0.02, 0.05, (3, 8, 1.0), 1

    def __init_subclass__(cls) -> None:
        cls.params = [list(PRECISIONS), list(cls.problems), list(DIRECTIONS)]

    @property
    @abstractmethod
    def about(self) -> str:
        """What the problems have in common."""

    def setup_cache(self) -> None:
        """In a process of its own, once for all classes."""
        warm_up()

    setup_cache.timeout = 900  # pyright: ignore[reportFunctionMemberAccess]

    def setup(self, package: str, case: str, direction: str) -> None:
        """Draw, and call once: nothing is compiled or read from disk later, whether or not asv warms up."""
        problem = self.problems[case]
        if package == "refattn" and problem.twins_only:
            raise NotImplementedError("too long for NumPy")
        self.mechanism = offered(package, problem.mechanism)
        self.call = self.both if direction == BOTH else self.forward
        self.draw(package, problem.arguments)

    def draw(self, package: str, arguments: Callable[[np.random.Generator], Mapping[str, Any]]) -> None:
        """Arguments and cotangents, the same each time."""
        random = np.random.default_rng(0)
        drawn = arguments(random)
        self.inputs = {n: x.astype(PRECISIONS[package]) if _is_real(x) else x for n, x in drawn.items()}
        y = self.mechanism(**self.inputs)
        outputs = y if isinstance(y, tuple) else (y,)
        self.d = tuple(random.standard_normal(x.shape).astype(x.dtype) for x in outputs)
        self.call()

    def forward(self) -> tuple[Any, dict[str, Any] | None]:
        """The outputs, and no gradients."""
        return self.mechanism(**self.inputs), None

    def both(self) -> tuple[Any, dict[str, Any] | None]:
        """The outputs, and all gradients."""
        y, pullback = self.mechanism.vjp(**self.inputs)
        return y, pullback(*self.d)

    def time_call(self, package: str, case: str, direction: str) -> None:
        self.call()

    def peakmem_process(self, package: str, case: str, direction: str) -> None:
        """Of a process that has imported, drawn, and loaded or compiled nothing but what it needs."""
        self.call()

    def track_error_over_budget(self, package: str, case: str, direction: str) -> float:
        """The worst of all elements of all outputs and gradients: above 1, `refattn check` would refuse it."""
        problem = self.problems[case]
        if problem.twins_only:
            return math.nan
        if problem.smaller is not None:
            self.draw(package, problem.smaller)
        from refattn.testing.checking import compare_given  # noqa: PLC0415  (not there at the first commits)

        y, gradients = self.call()
        reference, dtype = offered("refattn", problem.mechanism), PRECISIONS[package]
        compared = compare_given(y, reference, self.inputs, gradients=gradients, cotangents=self.d, dtype=dtype)
        return max(r.error_over_budget for r in compared if r.error_over_budget is not None)

    track_error_over_budget.unit = "of its budget"  # pyright: ignore[reportFunctionMemberAccess]


def _is_real(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"
