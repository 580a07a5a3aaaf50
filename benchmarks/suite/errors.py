"""The worst error of any output or gradient, over what an honest kernel may have: above 1, `refattn check` would refuse it."""

from __future__ import annotations

from itertools import product
from typing import TypeAlias

from . import measured

Found: TypeAlias = dict[tuple[str, str], float | str]

PROBLEMS = {name: problem for name, problem in measured.problems_of(*measured.MODULES).items() if not problem.twins_only}


class Errors:
    """All are measured by few processes; those that asv starts for each only read them."""

    params = [list(measured.PRECISIONS), list(PROBLEMS)]
    param_names = ["package", "case"]
    timeout = 120.0

    def setup_cache(self) -> Found:
        """The packages side by side, and each module's cases."""
        measured.compile_kernels()
        tasks = list(product(measured.PRECISIONS, measured.MODULES))
        found: Found = {}
        for (package, module), answer in zip(tasks, measured.apart(found_of, *zip(*tasks, strict=True)), strict=True):
            told = dict.fromkeys(cases_of(module), "the process died, as is told above") if answer is None else answer
            found |= {(package, case): error for case, error in told.items()}
        return found

    setup_cache.timeout = 900  # pyright: ignore[reportFunctionMemberAccess]

    def setup(self, found: Found, package: str, case: str) -> None:
        if (package, case) not in found:
            raise NotImplementedError(f"{package} has no {case}")

    def track_over_budget(self, found: Found, package: str, case: str) -> float:
        error = found[package, case]
        if isinstance(error, str):
            raise RuntimeError(error)
        return error

    track_over_budget.unit = "of its budget"  # pyright: ignore[reportFunctionMemberAccess]


def cases_of(module: str) -> list[str]:
    """The names of its problems."""
    return [case for case in PROBLEMS if case.startswith(f"{module}, ")]


def found_of(package: str, module: str) -> dict[str, float | str]:
    """For each case the error, or what kept it from being measured; what is not there is left out."""
    found: dict[str, float | str] = {}
    for case in cases_of(module):
        try:
            found[case] = over_budget(package, PROBLEMS[case])
        except NotImplementedError:
            continue
        except Exception as error:  # told where this case is asked for
            found[case] = f"{type(error).__name__}: {error}"
    return found


def over_budget(package: str, problem: measured.Problem) -> float:
    """The worst of all elements of all outputs and gradients."""
    call = measured.Call(package, problem, smaller=True)
    compare_given = measured.offered("refattn.testing.checking", "compare_given")  # not there at the first commits
    y, gradients = call.both()
    reference = measured.offered("refattn", problem.mechanism)
    dtype = measured.PRECISIONS[package]
    compared = compare_given(y, reference, call.inputs, gradients=gradients, cotangents=call.d, dtype=dtype)
    return max(r.error_over_budget for r in compared if r.error_over_budget is not None)
