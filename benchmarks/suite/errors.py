"""The worst error of any output or gradient, over what an honest kernel may have: above 1, `refattn check` would refuse it."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from itertools import chain

from . import measured

PROBLEMS = {name: problem for name, problem in measured.problems_of(*measured.MODULES).items() if not problem.twins_only}


class Errors:
    """All are measured by one process; those that asv starts for each only read them."""

    params = [list(measured.PRECISIONS), list(PROBLEMS)]
    param_names = ["package", "case"]
    timeout = 120.0

    def setup_cache(self) -> dict[tuple[str, str], float | str]:
        """The packages side by side."""
        measured.compile_kernels()
        with ProcessPoolExecutor(len(measured.PRECISIONS)) as pool:
            return dict(chain.from_iterable(pool.map(found_of, measured.PRECISIONS)))

    setup_cache.timeout = 900  # pyright: ignore[reportFunctionMemberAccess]

    def setup(self, found: dict[tuple[str, str], float | str], package: str, case: str) -> None:
        if (package, case) not in found:
            raise NotImplementedError(f"{package} has no {case}")

    def track_over_budget(self, found: dict[tuple[str, str], float | str], package: str, case: str) -> float:
        error = found[package, case]
        if isinstance(error, str):
            raise RuntimeError(error)
        return error

    track_over_budget.unit = "of its budget"  # pyright: ignore[reportFunctionMemberAccess]


def found_of(package: str) -> list[tuple[tuple[str, str], float | str]]:
    """For each case the error, or what kept it from being measured; what is not there is left out."""
    found = []
    for case, problem in PROBLEMS.items():
        try:
            found.append(((package, case), over_budget(package, problem)))
        except NotImplementedError:
            continue
        except Exception as error:  # told where this case is asked for
            found.append(((package, case), f"{type(error).__name__}: {error}"))
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
