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
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np

from refattn._core import Integers
from refattn_numba.cpu.call import Call, Record, Spans, aligned
from refattn_numba.cpu.jit import compile_once

SHARES = 4  # for each thread, so that a core which is busy elsewhere holds nobody up
SMALL = 1_000_000  # multiplications that take less time than waking a thread


@cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, "refattn")


os.register_at_fork(after_in_child=_pool.cache_clear)


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

    others = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()


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
    memory = aligned(int(call.fields["memory_size"]) * threads * (2 if dtype == np.uint16 else 1), dtype)  # bfloat16 is summed in float32
    given = calls, calls if has_options else None, memory, counters
    _compile(kernel, dtype, has_options, call.layout)
    others = [_pool(threads - 1).submit(kernel, *given) for _ in range(threads - 1)]
    kernel(*given)
    for other in others:
        other.result()
