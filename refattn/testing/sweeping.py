"""Many checks of one candidate: mechanisms, formats, levels and seeds, on as many processes and machines as there are."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from refattn.testing import adapters
from refattn.testing.battery import Level
from refattn.testing.candidates import refuse_what_is_no_mechanism
from refattn.testing.engines import Engine, finished
from refattn.testing.jobs import Job, identity
from refattn.testing.ledger import Ledger
from refattn.testing.precision import named_format
from refattn.testing.report import Report, Result
from refattn.testing.units import Unit, fingerprint, named_mechanism, units


def sweep(
    candidate: Any,
    mechanisms: Any = None,
    *,
    dtypes: Sequence[Any] = ("float32",),
    levels: Sequence[Level] = ("quick",),
    seeds: Sequence[int] = (0,),
    executor: Engine | None = None,
    ledger: str | os.PathLike[str] | None = None,
    gradients: Any = None,
    arguments: Mapping[str, str] | None = None,
    layout: str | None = None,
    framework: str = "numpy",
    supports: Collection[str] | None = None,
) -> Report:
    """Check a candidate on all combinations of mechanism, level, seed and format, on any executor.

    The unit of work is one case. Its arrays are made where it is worked on, and results are put in the order of the units, so
    that the report does not depend on who did what when.

    Parameters
    ----------
    candidate : callable or str
        As for `check`; or ``"module:callable"``, which each worker imports; or a known peer, such as ``"torch"``.
    mechanisms : mechanism, str, or sequence of these, optional
        What it should be. Default: all that a peer has, or what the callable is named like.
    dtypes : sequence of str or dtype, optional
        As for `check`, each.
    levels : sequence of str, optional
        As for `check`, each.
    seeds : sequence of int, optional
        Each gives the cases other numbers.
    executor : concurrent.futures.Executor, callable or None, optional
        Threads, processes, ``loky``, dask's ``Client.get_executor()``, ``mpi4py.futures``, ...; or a function without arguments
        that makes one, which is called again where a kernel has ended the process that ran it. None is this thread.
    ledger : path or None, optional
        A file that takes each unit as it is done; where it is there already, its units are not done again.
    gradients, arguments, layout, framework, supports : optional
        As for `check`; `gradients` may be ``"module:callable"``.

    Returns
    -------
    Report
        A unit whose workers ended each time is a failure, and not in the ledger.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> import refattn
    >>> with ThreadPoolExecutor(2) as threads:
    ...     report = refattn.testing.sweep(refattn.softmax, dtypes=["float32", "float64"], seeds=range(3), executor=threads)
    >>> report.passed
    True
    """
    job = Job(
        candidate,
        gradients,
        tuple((arguments or {}).items()),
        layout,
        framework,
        None if supports is None else tuple(sorted(supports)),
        fingerprint(),
    )
    own = {"gradients": gradients, "arguments": arguments, "layout": layout, "supports": supports}
    if isinstance(candidate, str) and ":" not in candidate and (given := [n for n, x in own.items() if x is not None]):
        raise ValueError(f"{given[0]} is given, but {candidate} is a known peer, whose own are known")
    formats = [named_format(d).name for d in _several("dtypes", dtypes)]
    numbers = [operator.index(seed) for seed in _several("seeds", seeds)]
    work = list(units(_names(candidate, mechanisms), formats, _several("levels", levels), numbers, handed=True))
    return Report([r for _, results in sorted(swept(job, work, executor, ledger)) for r in results])


def swept(
    job: Job, work: Sequence[Unit], executor: Engine | None = None, ledger: str | os.PathLike[str] | None = None
) -> Iterator[tuple[int, list[Result]]]:
    """The place of each unit in the work and its results, as they are done.

    Parameters
    ----------
    job : Job
        What is checked.
    work : sequence of Unit
        On what.
    executor, ledger : optional
        As for `sweep`.

    Yields
    ------
    int, list of Result
        Those in the ledger first.
    """
    for mechanism in dict.fromkeys(unit.mechanism for unit in work):
        job.made(mechanism)  # what is no candidate is refused here, before anybody is asked to work
    place = {unit: i for i, unit in enumerate(work)}
    with Ledger(ledger, identity(job)) if ledger is not None else nullcontext() as book, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a candidate's own warnings are not what was asked
        known = book.done if book is not None else {}
        yield from ((i, known[unit]) for unit, i in place.items() if unit in known)
        for unit, results, compared in finished([unit for unit in place if unit not in known], job, executor):
            if book is not None and compared:
                book.add(unit, results)
            yield place[unit], results


def _several(what: str, given: Any) -> Sequence[Any]:
    """What was given, if it is more than one thing by its nature."""
    if isinstance(given, (str, bytes)) or not hasattr(given, "__iter__"):
        raise TypeError(f"{what} is a {type(given).__name__}, but must be a sequence")
    return list(dict.fromkeys(given))


def _names(candidate: Any, mechanisms: Any) -> list[str]:
    if mechanisms is None:
        return _default(candidate)
    given = [mechanisms] if isinstance(mechanisms, str) or hasattr(mechanisms, "spec") else mechanisms
    names = []
    for m in _several("mechanisms", given):
        if not isinstance(m, str):
            refuse_what_is_no_mechanism(m)
        names.append(named_mechanism(m if isinstance(m, str) else m.spec.name).spec.name)
    return names


def _default(candidate: Any) -> list[str]:
    if isinstance(candidate, str):
        return [m.spec.name for m, _ in adapters.resolve(candidate)]
    name = getattr(candidate, "__name__", type(candidate).__name__)
    try:
        return [named_mechanism(name).spec.name]
    except LookupError:
        raise LookupError(f"no mechanism is named {name!r}: say which one the candidate should be") from None
