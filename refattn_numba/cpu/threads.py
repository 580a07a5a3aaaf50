"""Kernels on all cores.

A kernel takes tasks from a counter until none is left (`run_tasks`), or does those of one share (`run`); no task reads or writes what
another writes, so that results do not depend on the number of threads. Threads are Python's, as kernels release the
lock: with ``prange`` Numba optimizes a kernel's code four times more, some of its thread layers end the process after a fork
or when two threads call, and OpenMP's threads and those of NumPy's own products slow each other down.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from functools import cache
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import numba
import numpy as np

from refattn._core import Integers
from refattn_numba.cpu.call import ALWAYS, Call, Record, Spans, address_of, aligned, moved
from refattn_numba.cpu.jit import compile_once

SHARES = 4  # for each thread, so that a core which is busy elsewhere holds nobody up
SMALL = 1_000_000  # multiplications that take less time than waking a thread


class Helper:
    """A thread that does one thing at a time for whoever holds it: sooner awake than an executor's."""

    def __init__(self) -> None:
        self._given: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()
        self._done: SimpleQueue[None] = SimpleQueue()
        self._error: BaseException | None = None
        self.is_busy = False
        Thread(target=self._work, name="refattn", daemon=True).start()

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin; `wait` has to follow."""
        self._error, self.is_busy = None, True
        self._given.put((function, arguments))

    def wait(self) -> None:
        """Return when it is done, or raise what it raised; may be interrupted, and called again."""
        while self.is_busy:
            self._done.get()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            function, arguments = self._given.get()
            try:
                function(*arguments)
            except BaseException as error:
                self._error = error
            del function, arguments
            self.is_busy = False
            self._done.put(None)


_IDLE: list[Helper] = []  # each belongs to one call at a time, so that calls of several Python threads do not wait for one another

os.register_at_fork(after_in_child=_IDLE.clear)


def on_threads(count: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function on `count` threads, of which this is one, or on fewer where the system gives no more."""
    helpers: list[Helper] = []
    try:
        for _ in range(count - 1):
            try:
                helpers.append(_IDLE.pop() if _IDLE else Helper())
            except (IndexError, RuntimeError):
                break
            helpers[-1].start(function, *arguments)
        function(*arguments)
    finally:
        _settle(helpers)


def _settle(helpers: list[Helper]) -> None:
    """Wait for all, whatever happens meanwhile: what they read and write has to stay until they are done. Then raise the first error."""
    errors: list[BaseException] = []
    while helpers:
        try:
            helpers[-1].wait()
        except BaseException as error:
            errors.append(error)
        if not helpers[-1].is_busy:
            _IDLE.append(helpers.pop())
    if errors:
        raise errors[0]


def run(kernel: Callable[..., Any], *arguments: Any, tasks: int, cost: int) -> None:
    """Call ``kernel(*arguments, share, shares)`` for each share; `cost` is the number of multiplications in all."""
    threads = min(numba.get_num_threads(), tasks) if cost > SMALL else 1
    if threads <= 1:
        kernel(*arguments, 0, 1)
        return
    shares = min(tasks, threads * SHARES)
    waiting = deque(range(shares))

    def work() -> None:
        while True:
            try:
                share = waiting.popleft()
            except IndexError:
                return
            kernel(*arguments, share, shares)

    on_threads(threads, work)


@cache
def kernel_types(dtype: Any, *, has_options: bool, layout: Any = Call) -> tuple[Any, ...]:
    """The types of a kernel's arguments, as `specialisations` lists them."""
    calls = numba.typeof(np.zeros(1, layout))
    arrays = numba.typeof(np.zeros(1, dtype)), numba.typeof(np.zeros(1, np.int64))
    return calls, calls if has_options else numba.types.none, *arrays


@cache
def _compile(kernel: Any, dtype: Any, has_options: bool, layout: Any) -> None:
    """Types are slow to compare, so that a call asks by what they follow from."""
    compile_once(kernel, *kernel_types(dtype, has_options=has_options, layout=layout))


class Repeated(NamedTuple):
    """The record of a call without options of pairs, of which most are as an earlier one was, but for where its arrays lie.

    `arrays` are those that are there `ALWAYS`, of which the first three are given; all else in the record follows from their shapes and
    `options`.
    """

    make: Callable[[], Record]
    arrays: tuple[Any, ...]
    options: tuple[Any, ...]

    def packed(self, tasks: int) -> tuple[np.ndarray[Any, Any], int]:
        """As the kernel takes it, and how many numbers a thread works on."""
        given = self.arrays[:3]
        face = (self.options, *((x.dtype, x.shape, x.strides, x.flags.aligned) for x in given))
        known = _KNOWN.get(face)
        if known is not None:
            return moved(known[0], *self.arrays), known[1]
        call = self.make()
        calls, memory_size = call.packed(), int(call.fields["memory_size"])
        calls["end_task"] = tasks
        if all(call.fields[name] == address_of(x) for name, x in zip(ALWAYS, given, strict=False)):  # none was copied
            if len(_KNOWN) >= MOST_KNOWN:
                _KNOWN.clear()
            _KNOWN[face] = calls.view(np.int64).copy(), memory_size
        return calls, memory_size


MOST_KNOWN = 256  # records that are kept
_KNOWN: dict[Any, tuple[Integers, int]] = {}


def run_tasks(
    kernel: Callable[..., Any],
    call: Record | Repeated,
    has_options: bool,
    tasks: int | Integers,
    cost: int,
    dtype: Any,
    spans: Spans | None = None,
) -> None:
    """Call a kernel on each thread, which takes tasks until none is left; with `spans` it has `tasks` of each of them."""
    if isinstance(call, Repeated):
        total = int(tasks)
        calls, memory_size = call.packed(total)
    else:
        memory_size = int(call.fields["memory_size"])
        if spans is None:
            calls, total = call.packed(), int(tasks)
            if "end_task" in call.layout.fields:
                calls["end_task"] = total
        else:
            calls, ends = call.packed_spans(spans, np.dtype(dtype).itemsize), np.cumsum(tasks)
            calls["end_task"], total = ends, int(ends[-1]) if ends.size else 0
    if not total:
        return
    counters = np.zeros(2, np.int64)
    threads = max(1, min(numba.get_num_threads(), total)) if cost > SMALL else 1
    if "threads" in (calls.dtype.fields or {}):
        calls["threads"] = threads
    memory = aligned(memory_size * threads * (2 if dtype == np.uint16 else 1), dtype)  # bfloat16 is summed in float32
    given = calls, calls if has_options else None, memory, counters
    _compile(kernel, dtype, has_options, calls.dtype)
    on_threads(threads, kernel, *given)
