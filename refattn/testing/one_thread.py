"""NumPy's matrix products on one thread, while small ones are computed.

OpenBLAS splits a product from about 64 x 64 x 64 on, and its threads wait for each other by turning. Where another process holds a
core, each product then waits until that one is put aside: 70 ms instead of one. What a check computes is too small to gain by it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

SPELLINGS = [f"{prefix}openblas_{{}}_num_threads{suffix}" for prefix in ("scipy_", "") for suffix in ("64_", "_64", "")]
_LOCK = threading.Lock()
_STATE = {"depth": 0, "threads": 1}


class Library(NamedTuple):
    """How many threads OpenBLAS uses."""

    get: Callable[[], int]
    set: Callable[[int], Any]


@functools.cache
def library() -> Library | None:
    """That of NumPy; None where it has another one, or where it cannot be reached.

    An extension module's handle finds the symbols of the libraries that it was linked to, on Linux and macOS.
    """
    try:
        found = ctypes.CDLL(importlib.import_module("numpy.linalg._umath_linalg").__file__ or "")
    except (ImportError, OSError):
        return None
    for name in SPELLINGS:
        if hasattr(found, name.format("set")) and hasattr(found, name.format("get")):
            return Library(getattr(found, name.format("get")), getattr(found, name.format("set")))
    return None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within the block, or the decorated function, NumPy's OpenBLAS uses one thread; other libraries are left alone.

    The number is the process's own. Blocks may be nested and may run side by side: the last one to end restores it.
    """
    blas = library()
    if blas is None:
        yield
        return
    with _LOCK:
        if not _STATE["depth"]:
            _STATE["threads"] = blas.get()
            blas.set(1)
        _STATE["depth"] += 1
    try:
        yield
    finally:
        with _LOCK:
            _STATE["depth"] -= 1
            if not _STATE["depth"]:
                blas.set(_STATE["threads"])
