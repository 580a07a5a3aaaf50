"""Units worked through by any `concurrent.futures.Executor`, with no unit lost where a worker is.

A kernel may end the process that runs it. An engine that answers for each task by itself, such as dask, then fails one task,
which is handed in again. A pool of processes breaks as a whole, and any task in flight may have been the cause: the pool is made
anew, half as many tasks go in at once, and again, until one task alone breaks it; that one is handed in a few times more. After
each task that no suspicion falls on, twice as many go in.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from queue import SimpleQueue
from typing import Any, TypeAlias

from refattn.testing.jobs import Job, brief, done, failed, greeting
from refattn.testing.report import Result
from refattn.testing.units import Unit

ATTEMPTS = 3
"""How often a unit is handed in before it counts as failed."""
MOST = 4096
"""Units handed in at once: more than a large cluster has workers, few enough to be forgotten when interrupted."""

Engine: TypeAlias = Executor | Callable[[], Executor]
Finished: TypeAlias = tuple[Unit, list[Result], bool]


def finished(units: Iterable[Unit], job: Job, executor: Engine | None = None) -> Iterator[Finished]:
    """The results of each unit as it is done, in any order, and whether they are those of a comparison.

    Parameters
    ----------
    units : iterable of Unit
        The work.
    job : Job
        What is checked.
    executor : Executor, callable or None, optional
        Who works; a function without arguments makes one, again where it breaks. None is this thread.

    Yields
    ------
    unit, list of Result, bool
        False for the one failure of a unit whose workers have ended each time.
    """
    work = deque(units)
    if executor is None:
        yield from ((unit, done(job, unit), True) for unit in work)
    elif work:
        yield from _Run(_Pool(executor), job, work).finished()


class _Pool:
    """An executor, or a function that makes one again and again."""

    def __init__(self, given: Engine) -> None:
        self.make: Callable[[], Executor] | None = None
        self.executor: Executor | None = None
        if isinstance(given, Executor):
            self.executor = given
        elif callable(given) and not hasattr(given, "get_executor"):
            self.make = given
        else:
            hint = ": give its get_executor()" if hasattr(given, "get_executor") else ""
            raise TypeError(f"executor is a {type(given).__name__}, but must be a concurrent.futures.Executor or make one{hint}")

    def submit(self, *task: Any) -> Future[Any]:
        if self.executor is None and self.make is not None:
            self.executor = self.make()
        if not isinstance(self.executor, Executor):
            raise TypeError(f"executor made a {type(self.executor).__name__}, but must make a concurrent.futures.Executor")
        return self.executor.submit(*task)

    def close(self) -> None:
        """Close what was made here; the next task makes another."""
        if self.make is not None and isinstance(self.executor, Executor):
            self.executor.shutdown(wait=True)
            self.executor = None


class _Run:
    """One pass over the work."""

    def __init__(self, pool: _Pool, job: Job, work: deque[Unit]) -> None:
        self.pool, self.job, self.work = pool, job, work
        self.tries: Counter[Unit] = Counter()
        self.flying: dict[Future[Any], Unit] = {}
        self.landed: SimpleQueue[Future[Any]] = SimpleQueue()
        self.suspects: set[Unit] = set()
        self.at_once = MOST

    def finished(self) -> Iterator[Finished]:
        try:
            self._greet()
            while self.work or self.flying:
                broken: list[tuple[Unit, BaseException]] = []
                while self.work and len(self.flying) < self.at_once and not broken:
                    self._hand_in(broken)
                while self.flying and (broken or not self.work or len(self.flying) >= self.at_once):
                    yield from self._landed(broken)
                if broken:
                    yield from self._repair(broken)
        finally:
            for future in self.flying:
                future.cancel()
            self.pool.close()

    def _greet(self) -> None:
        """Before anything is handed in, see that a worker can make the candidate."""
        for attempt in range(ATTEMPTS):
            try:
                why = self.pool.submit(greeting, self.job, self.work[0].mechanism, attempt).result()
            except (AttributeError, TypeError, ValueError) as error:  # what cannot be pickled
                raise _not_sent(error) from None
            except Exception as error:
                if "pickle" in type(error).__name__.lower():
                    raise _not_sent(error) from None
                if attempt == ATTEMPTS - 1:
                    raise RuntimeError(f"executor: no worker could make the candidate: {brief(error)}") from error
                if isinstance(error, BrokenExecutor):
                    self.pool.close()
            else:
                if why:
                    raise ValueError(f"executor: its workers cannot make the candidate: {why}")
                return

    def _hand_in(self, broken: list[tuple[Unit, BaseException]]) -> None:
        unit = self.work.popleft()
        try:
            future = self.pool.submit(done, self.job, unit, self.tries[unit])
        except Exception as error:  # broken while nobody looked
            broken.append((unit, error))
            return
        self.flying[future] = unit
        future.add_done_callback(self.landed.put)

    def _landed(self, broken: list[tuple[Unit, BaseException]]) -> Iterator[Finished]:
        """Wait for one unit."""
        future = self.landed.get()
        unit = self.flying.pop(future)
        error = CancelledError("cancelled") if future.cancelled() else future.exception()
        if error is None:
            self.suspects.discard(unit)
            if not self.suspects:
                self.at_once = min(2 * self.at_once, MOST)
            yield unit, future.result(), True
        elif isinstance(error, BrokenExecutor):
            broken.append((unit, error))
        else:
            yield from self._again(unit, error)

    def _repair(self, broken: list[tuple[Unit, BaseException]]) -> Iterator[Finished]:
        self.pool.close()
        self.suspects = {unit for unit, _ in broken}
        self.at_once = max(1, len(broken) // 2)
        if len(broken) == 1 or self.pool.make is None:
            for unit, error in broken:
                yield from self._again(unit, error)
        else:
            self.work.extendleft(unit for unit, _ in reversed(broken))

    def _again(self, unit: Unit, error: BaseException) -> Iterator[Finished]:
        self.tries[unit] += 1
        if self.tries[unit] < ATTEMPTS:
            self.work.appendleft(unit)
        else:
            self.suspects.discard(unit)
            stuck = isinstance(error, BrokenExecutor) and self.pool.make is None
            hint = " (in place of an executor, a function that makes one is called again)" if stuck else ""
            yield unit, [failed(unit, f"no result in {ATTEMPTS} attempts: {brief(error)}{hint}")], False


def _not_sent(error: BaseException) -> TypeError:
    return TypeError(
        f'candidate cannot be sent to the workers of this executor: give "module:callable" or a function of a module ({brief(error)})'
    )
