"""What every problem is measured by: the time of one direction and of both; memory and errors have modules of their own.

Wherever something is not installed, or not there at the commit that is measured, ``NotImplementedError`` in `setup` leaves it out.
asv starts a process for each benchmark and each of its parameters, which costs about a second: there are no more than tell something.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import json
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

PRECISIONS = {"refattn": "float64", "refattn_numba": "float32"}
MODULES = ("attention", "convolution", "linear")


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


class Call:
    """A problem's mechanism with its arguments, and cotangents, the same each time."""

    def __init__(self, package: str, problem: Problem, *, smaller: bool = False) -> None:
        random = np.random.default_rng(0)
        drawn = (problem.smaller if smaller and problem.smaller else problem.arguments)(random)
        self.mechanism = offered(package, problem.mechanism)
        self.inputs = {n: x.astype(PRECISIONS[package]) if _is_real(x) else x for n, x in drawn.items()}
        try:
            inspect.signature(self.mechanism).bind(**self.inputs)
        except TypeError as error:
            raise NotImplementedError(f"{problem.mechanism} of {package} takes other arguments: {error}") from error
        y = self.forward()
        outputs = y if isinstance(y, tuple) else (y,)
        self.d = tuple(random.standard_normal(x.shape).astype(x.dtype) for x in outputs)

    def forward(self) -> Any:
        """The outputs, and no gradients."""
        return self.mechanism(**self.inputs)

    def both(self) -> tuple[Any, dict[str, Any]]:
        """The outputs, and all gradients."""
        y, pullback = self.mechanism.vjp(**self.inputs)
        return y, pullback(*self.d)


class Measured(ABC):
    """Abstract, as asv would run it otherwise, and once more in each module that imports it."""

    problems: ClassVar[dict[str, Problem]] = {}
    params: ClassVar[Any]
    param_names: ClassVar[Any] = ["package", "case"]
    timeout = 120.0
    sample_time, warmup_time, repeat, rounds = 0.02, 0.05, (3, 8, 1.0), 1

    def __init_subclass__(cls) -> None:
        cls.params = [list(PRECISIONS), list(cls.problems)]

    @property
    @abstractmethod
    def about(self) -> str:
        """What the problems have in common."""

    def setup_cache(self) -> None:
        """In a process of its own, once for all classes: no process that measures compiles, which would be its peak of memory too."""
        compile_kernels()

    setup_cache.timeout = 900  # pyright: ignore[reportFunctionMemberAccess]

    def setup(self, package: str, case: str) -> None:
        """Draw, and call once: nothing is read from disk later, whether or not asv warms up."""
        problem = self.problems[case]
        if package == "refattn" and problem.twins_only:
            raise NotImplementedError("too long for NumPy")
        self.call = Call(package, problem)
        self.call.both()


class Timed(Measured):
    """Abstract too."""

    def time_forward(self, package: str, case: str) -> None:
        self.call.forward()

    def time_both(self, package: str, case: str) -> None:
        self.call.both()


def compile_kernels() -> None:
    """Let Numba compile what all problems need, into its cache on disk, on all cores: it then is there until the package is replaced."""
    if importlib.util.find_spec("numba") is not None:
        apart(call_each, MODULES)


def apart(function: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
    """Call it in a process for each of the arguments, all at once; one that dies takes no other with it, and gives None.

    asv finds the suite by a hook that new processes lack. What goes in and out is JSON.
    """
    root = Path(__file__).parents[__name__.count(".")]
    program = f"import sys; sys.path.insert(0, {str(root)!r}); import json; from {function.__module__} import {function.__name__} as f; "
    program += "print(json.dumps(f(*json.loads(sys.argv[1]))))"
    started = [
        subprocess.Popen([sys.executable, "-c", program, json.dumps(given)], stdout=subprocess.PIPE, text=True)
        for given in zip(*arguments, strict=True)
    ]
    printed = [process.communicate()[0] for process in started]
    return [None if p.returncode else json.loads(text.splitlines()[-1]) for p, text in zip(started, printed, strict=True)]


def call_each(module: str) -> None:
    """Call the twins of a module's problems; what fails will fail where it is measured, and be told there."""
    for problem in problems_of(module).values():
        with contextlib.suppress(Exception):
            Call("refattn_numba", problem).both()


def problems_of(*modules: str) -> dict[str, Problem]:
    """By their names, that of the module first."""
    found = {}
    for module in modules:
        for kind in vars(importlib.import_module(f"{__package__}.{module}")).values():
            if isinstance(kind, type) and issubclass(kind, Measured) and not inspect.isabstract(kind):
                found |= {f"{module}, {case}": problem for case, problem in kind.problems.items()}
    return found


def _is_real(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"
