"""What a sweep checks, in a form that reaches other processes: a name that can be imported, or what can be pickled."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refattn.testing import adapters
from refattn.testing.battery import cases
from refattn.testing.candidates import Candidate, as_candidate
from refattn.testing.checking import compare_case
from refattn.testing.handling import handled
from refattn.testing.ledger import result_of
from refattn.testing.precision import named_format
from refattn.testing.report import Result
from refattn.testing.units import HANDED, Unit, drawn, fingerprint, named_mechanism, sources


@dataclass(frozen=True)
class Job:
    """A candidate, and how it is called.

    Attributes
    ----------
    candidate : callable or str
        ``"module:callable"``, a known peer's name, or the function itself.
    gradients : callable, str or None
        As for `refattn.testing.check`, or ``"module:callable"``.
    arguments : tuple of (str, str)
        Pairs of their name and ours.
    layout, framework : str or None, str
        As for `refattn.testing.check`.
    supports : tuple of str or None
        As for `refattn.testing.check`.
    version : str
        The `fingerprint` of the package that made the job; its workers must have the same.
    """

    candidate: Any
    gradients: Any = None
    arguments: tuple[tuple[str, str], ...] = ()
    layout: str | None = None
    framework: str = "numpy"
    supports: tuple[str, ...] | None = None
    version: str = ""

    def made(self, mechanism: str) -> Candidate:
        """The candidate for one mechanism; what has a name is made once in a process."""
        named = isinstance(self.candidate, str) and isinstance(self.gradients, (str, type(None)))
        return _named_candidate(self, mechanism) if named else _candidate(self, mechanism)


def _candidate(job: Job, mechanism: str) -> Candidate:
    if isinstance(job.candidate, str) and ":" not in job.candidate:
        ((_, candidate),) = adapters.resolve(job.candidate, mechanism)
        return candidate
    return as_candidate(
        imported(job.candidate),
        named_mechanism(mechanism),
        gradients=imported(job.gradients),
        arguments=dict(job.arguments),
        layout=job.layout,
        framework=job.framework,
        supports=job.supports,
    )


_named_candidate = functools.lru_cache(maxsize=256)(_candidate)


def imported(target: Any) -> Any:
    """What ``"module:callable"`` names; anything else as it is.

    Parameters
    ----------
    target : Any
        A string, or the thing itself.

    Returns
    -------
    Any
        LookupError or ImportError where a string names nothing.
    """
    if not isinstance(target, str):
        return target
    module, colon, path = target.partition(":")
    if not colon or not module or not path:
        raise LookupError(f"{target!r} is not module:callable")
    try:
        return functools.reduce(getattr, path.split("."), adapters._imported(module))
    except AttributeError as error:
        raise LookupError(str(error)) from None


def done(job: Job, unit: Unit, attempt: int = 0) -> list[Result]:
    """The results of one unit.

    Parameters
    ----------
    job : Job
        What is checked.
    unit : Unit
        On what.
    attempt : int, optional
        How often it was tried before: engines that know a call by its arguments must not take one attempt for another.

    Returns
    -------
    list of Result
        Whatever happens: an error of the check itself is a failure of the unit.
    """
    if job.version != fingerprint():
        raise RuntimeError(f"refattn is {fingerprint()} in this worker, but {job.version} where the work was given out")
    try:
        candidate, mechanism, target = job.made(unit.mechanism), named_mechanism(unit.mechanism), named_format(unit.dtype)
        calls = (
            handled(candidate, mechanism, cases(mechanism, unit.level, unit.seed), far=unit.level != "quick")
            if unit.case == HANDED
            else [(candidate, drawn(unit))]
        )
        found = (r for run, case in calls for r in compare_case(run, mechanism, case, target))
        return [result_of(r.as_dict()) for r in found]  # what JSON holds of them, wherever they were made
    except Exception as error:
        return [failed_unit(unit, f"could not be compared: {brief(error)}")]


def greeting(job: Job, mechanism: str, attempt: int = 0) -> str:
    """Whether a worker can do this job: "" where it can, else why not."""
    if job.version != fingerprint():
        return f"refattn is {fingerprint()} there, but {job.version} here"
    try:
        job.made(mechanism)
    except Exception as error:
        return brief(error)
    return ""


def failed_unit(unit: Unit, reason: str) -> Result:
    """The result of a unit without results."""
    return Result(unit.mechanism, unit.case, "all", unit.dtype, "fail", reason=reason)


def brief(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}"[:200].removesuffix(": ")


def identity(job: Job) -> dict[str, Any]:
    """What results depend on besides the unit, for JSON.

    A function is known by its name and by the bytes of the file that defines it, a peer by its version, any other callable by
    its pickle. What a function calls in other files is not looked at.

    Parameters
    ----------
    job : Job
        What is checked.

    Returns
    -------
    dict
        TypeError where a candidate has neither a name nor a pickle.
    """
    return {
        "refattn": job.version,
        "candidate": _identified("candidate", job.candidate),
        "gradients": _identified("gradients", job.gradients),
        "arguments": dict(job.arguments),
        "layout": job.layout,
        "framework": job.framework,
        "supports": None if job.supports is None else list(job.supports),
    }


def _identified(what: str, target: Any) -> str | None:
    if target is None:
        return None
    if isinstance(target, str) and ":" not in target:
        package, _ = adapters.ADAPTERS[target]
        return f"{target} {importlib.metadata.version(package)}" + f" {sources(target)}" * (target == "refattn_numba")
    thing = imported(target)
    name = target if isinstance(target, str) else _name(thing)
    if isinstance(target, str) or inspect.isroutine(thing):
        if "<" in name:  # <lambda>, <locals>: another one may have the same name
            raise TypeError(
                f"{what} is {name}, but a ledger needs one with a name of its own: a function of a module, or 'module:callable'"
            )
        return f"{name} {_digest(_file(thing))}"
    try:
        return f"{name} {_digest(_file(type(thing)))} {hashlib.sha256(pickle.dumps(thing, 4)).hexdigest()[:16]}"
    except Exception as error:
        raise TypeError(f"{what} is a {name}, which a ledger cannot tell from others ({brief(error)}): give 'module:callable'") from None


def _name(thing: Any) -> str:
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"


def _file(thing: Callable[..., Any]) -> bytes:
    """The bytes of the file that defines it; none where there is no such file."""
    unwrapped: Any = inspect.unwrap(thing)
    module = inspect.getmodule(unwrapped if hasattr(unwrapped, "__module__") else type(unwrapped))
    path = getattr(module, "__file__", None)
    return Path(path).read_bytes() if path and Path(path).is_file() else b""


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16] if content else "no file"
