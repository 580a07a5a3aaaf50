"""Kernels on all cores.

A kernel's last arguments are ``share, shares``: it does the tasks that fall to one share, which write nothing that another
share reads or writes. Results do not depend on the number of threads, then. Threads are Python's, as kernels release the
lock: with ``prange`` Numba optimizes a kernel's code four times more, some of its thread layers end the process after a fork
or when two threads call, and OpenMP's threads and those of NumPy's own products slow each other down.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from functools import cache
from threading import Lock, Thread
from typing import Any, cast

import numba
import numpy as np

from refattn._core import Integers
from refattn_numba.cpu.call import Call, Record, Spans, aligned
from refattn_numba.cpu.jit import compile_once

SHARES = 4  # for each thread, so that a core which is busy elsewhere holds nobody up
SMALL = 1_000_000  # multiplications that take less time than waking a thread


class Helper:
    """A thread that does one thing at a time for whoever holds it: sooner awake than an executor's."""

    def __init__(self) -> None:
        self._given, self._done = Lock(), Lock()
        self._given.acquire()
        self._done.acquire()
        Thread(target=self._work, name="refattn", daemon=True).start()

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin; `wait` has to follow."""
        self._call, self._error = (function, arguments), None
        self._given.release()

    def wait(self) -> None:
        """Return when it is done, or raise what it raised."""
        self._done.acquire()
        error, self._call, self._error = self._error, None, None
        if error is not None:
            raise error

    def _work(self) -> None:
        while True:
            self._given.acquire()
            function, arguments = cast("Any", self._call)
            try:
                function(*arguments)
            except BaseException as error:
                self._error = error
            del function, arguments
            self._done.release()


_IDLE: list[Helper] = []  # each belongs to one call at a time, so that calls of several Python threads do not wait for one another

os.register_at_fork(after_in_child=_IDLE.clear)


def on_threads(count: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function on `count` threads, of which this is one."""
    helpers: list[Helper] = []
    try:
        for _ in range(count - 1):
            try:
                helper = _IDLE.pop()
            except IndexError:
                helper = Helper()
            helper.start(function, *arguments)
            helpers.append(helper)
        function(*arguments)
    finally:  # what is read and written has to stay until all are done
        for helper in helpers:
            helper.wait()
            _IDLE.append(helper)


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
    """The types of a kernel's arguments, of which there are four sets for attention and for decoding, and two for scans."""
    calls = numba.typeof(np.zeros(1, layout))
    arrays = numba.typeof(np.zeros(1, dtype)), numba.typeof(np.zeros(1, np.int64))
    return calls, calls if has_options else numba.types.none, *arrays


@cache
def _compile(kernel: Any, dtype: Any, has_options: bool, layout: Any) -> None:
    """Types are slow to compare, so that a call asks by what they follow from."""
    compile_once(kernel, *kernel_types(dtype, has_options=has_options, layout=layout))


def run_tasks(
    kernel: Callable[..., Any],
    call: Record,
    has_options: bool,
    tasks: int | Integers,
    cost: int,
    dtype: Any,
    spans: Spans | None = None,
) -> None:
    """Call a kernel on each thread, which takes tasks until none is left; with `spans` it has `tasks` of each of them."""
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
    if "threads" in call.layout.fields:
        calls["threads"] = threads
    memory = aligned(int(call.fields["memory_size"]) * threads * (2 if dtype == np.uint16 else 1), dtype)  # bfloat16 is summed in float32
    given = calls, calls if has_options else None, memory, counters
    _compile(kernel, dtype, has_options, call.layout)
    on_threads(threads, kernel, *given)
