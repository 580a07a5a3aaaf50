"""``refattn check --jobs N --ledger FILE``: the same check in several processes, or where it was interrupted."""

from __future__ import annotations

import gc
import os
from argparse import Namespace
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

from refattn.testing import adapters
from refattn.testing.jobs import Job
from refattn.testing.precision import named_format
from refattn.testing.report import Report
from refattn.testing.sweeping import swept
from refattn.testing.units import fingerprint, units
from refattn.view.table import progress

MADE = 50_000
"""Objects after which Python looks for those that refer to each other alone: each time it may look at all of a compiler's."""
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def swept_with(target: str, args: Namespace, arguments: Mapping[str, str]) -> Report:
    """The report that one process would write."""
    if args.jobs < 1:
        raise ValueError(f"--jobs is {args.jobs}, but must be at least 1")
    how = {"framework": args.framework, "layout": args.layout}
    found = adapters.resolve(target, args.name, arguments=arguments, **how)
    names = [m.spec.name for m, _ in found]
    work = list(units(names, [named_format(d).name for d in args.dtype or ("float32",)], [args.level], [args.seed], handed=True))
    engine = None if args.jobs == 1 else _processes(args.jobs)
    if engine is not None and args.name is None and target in adapters.PREPARED:
        engine = _prepared(engine, target, list(dict.fromkeys(unit.dtype for unit in work)), args.level)
    job = Job(target, arguments=tuple(arguments.items()), version=fingerprint(), **how)
    done = swept(job, work, engine, args.ledger)
    return Report([r for _, results in sorted(progress(done, len(work), f"checking {target}")) for r in results])


def _prepared(make: Callable[[], Executor], target: str, dtypes: list[str], level: str) -> Callable[[], Executor]:
    """The same, but for the first ones: these have prepared the target, and hold what they have made."""
    first = [make()]
    try:
        adapters.PREPARED[target](dtypes, level, first[0])
    except BaseException:
        first[0].shutdown(cancel_futures=True)
        raise
    return lambda: first.pop() if first else make()


def _processes(count: int) -> Callable[[], Executor]:
    """Processes that share nothing with this one, and the cores with each other."""
    import multiprocessing  # noqa: PLC0415  # it renames __main__, which nobody who imports this has asked for
    from concurrent.futures import ProcessPoolExecutor  # noqa: PLC0415

    for name in THREADS:
        os.environ.setdefault(name, str(max(1, (os.cpu_count() or 1) // count)))
    return lambda: ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), gc.set_threshold, (MADE,))
