"""Units worked through by any `concurrent.futures.Executor`, with no unit lost where a worker is.

A kernel may end the process that runs it, and take others' work with it: a pool of processes breaks as a whole, and a cluster
blames all tasks of the worker. So what has failed together is handed in again by halves, and counts against a unit only where it
fails alone. After each unit that no suspicion falls on, twice as many go in. Where nothing is heard for long, what is outstanding
is handed in once more, and the first answer taken: engines have been seen to lose one.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from refattn.testing.jobs import Job, brief, done, failed_unit, greeting
from refattn.testing.report import Result
from refattn.testing.units import Unit

ATTEMPTS = 3
"""How often a unit is handed in before it counts as failed."""
PATIENCE = 60.0
"""Seconds without any answer, after which what is outstanding is handed in again; twice as many the next time."""
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
        self.tries: Counter[Unit] = Counter()  # failures of a unit alone
        self.calls: Counter[Unit] = Counter()
        self.flying: dict[Unit, list[Future[Any]]] = {}
        self.landed: SimpleQueue[tuple[Unit, Future[Any]]] = SimpleQueue()
        self.failed: list[tuple[Unit, BaseException]] = []
        self.suspects: set[Unit] = set()
        self.at_once = MOST

    def finished(self) -> Iterator[Finished]:
        try:
            self._greet()
            while self.work or self.flying:
                while self.work and len(self.flying) < self.at_once and not self.failed:
                    self._hand_in(self.work.popleft())
                while self.flying and (self.failed or not self.work or len(self.flying) >= self.at_once):
                    yield from self._landed()
                if self.failed:
                    yield from self._again()
        finally:
            for futures in self.flying.values():
                self._cancel(futures)
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

    def _hand_in(self, unit: Unit) -> None:
        try:
            future = self.pool.submit(done, self.job, unit, self.calls[unit])
        except Exception as error:  # broken while nobody looked
            self.flying.pop(unit, None)
            self.failed.append((unit, error))
            return
        self.calls[unit] += 1
        self.flying.setdefault(unit, []).append(future)
        future.add_done_callback(lambda future: self.landed.put((unit, future)))

    def _landed(self) -> Iterator[Finished]:
        """Wait for one unit."""
        unit, future = self._next()
        if unit is None or future is None or future not in self.flying.get(unit, []):  # another call of it has answered
            return
        futures = self.flying.pop(unit)
        error = CancelledError("cancelled") if future.cancelled() else future.exception()
        if error is not None:
            self.failed.append((unit, error))
            return
        self._cancel(futures)
        self.suspects.discard(unit)
        if not self.suspects:
            self.at_once = min(2 * self.at_once, MOST)
        yield unit, future.result(), True

    def _next(self) -> tuple[Unit | None, Future[Any] | None]:
        patience = PATIENCE
        while self.flying:
            try:
                return self.landed.get(timeout=patience)
            except Empty:
                for unit in [u for u, futures in self.flying.items() if len(futures) < ATTEMPTS]:
                    self._hand_in(unit)
                patience *= 2
        return None, None

    def _cancel(self, futures: Iterable[Future[Any]]) -> None:
        for future in futures:
            future.cancel()

    def _again(self) -> Iterator[Finished]:
        """Hand in what has failed: half of it at once, where it was more than one."""
        failed, self.failed = self.failed, []
        broken = any(isinstance(error, BrokenExecutor) for _, error in failed)
        if broken:
            self.pool.close()
        stuck = broken and self.pool.make is None
        self.suspects = {unit for unit, _ in failed}
        self.at_once = max(1, len(failed) // 2)
        for unit, error in reversed(failed):
            self.tries[unit] += stuck or len(failed) == 1
            if self.tries[unit] < ATTEMPTS:
                self.work.appendleft(unit)
            else:
                self.suspects.discard(unit)
                hint = " (in place of an executor, a function that makes one is called again)" if stuck else ""
                yield unit, [failed_unit(unit, f"no result in {ATTEMPTS} attempts: {brief(error)}{hint}")], False


def _not_sent(error: BaseException) -> TypeError:
    return TypeError(
        f'candidate cannot be sent to the workers of this executor: give "module:callable" or a function of a module ({brief(error)})'
    )
