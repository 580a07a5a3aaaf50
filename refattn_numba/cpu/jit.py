"""How the CPU kernels are compiled.

Only kernels are cached on disk; they carry the compiled code of all that they call. Numba looks at a kernel's own file alone
to see whether its cache is stale: after editing what kernels call, delete ``__pycache__``.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar, cast

from numba import njit
from numba.extending import overload, register_jitable

LOGGER = logging.getLogger("refattn_numba")

Function = TypeVar("Function", bound=Callable[..., Any])

# NaN and infinities keep their meaning under each set of flags: a row of NaN has to stay one.
EXACT = {"contract", "nsz", "arcp"}
REORDERED = {*EXACT, "reassoc"}


def compiled(function: Function) -> Function:
    """A helper whose sums run in the order in which they are written."""
    return cast(Function, njit(fastmath=EXACT, **WITHIN)(function))


def reordered(function: Function) -> Function:
    """A helper whose sums may be taken in any order, as a matrix product's are."""
    return cast(Function, njit(fastmath=REORDERED, error_model="numpy")(function))


WITHIN = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def helper(function: Function) -> Function:
    """`compiled`, a quarter faster to compile: there is no way in from Python, which runs the function as it is written."""
    return cast(Function, register_jitable(fastmath=EXACT, **WITHIN)(function))


def reordered_helper(function: Function) -> Function:
    """`reordered`, likewise."""
    return cast(Function, register_jitable(fastmath=REORDERED, **WITHIN)(function))


def by_type(choose: Function) -> Function:
    """A helper that is one function or another: `choose` takes the types of the arguments, and returns the one to compile."""

    @functools.wraps(choose)
    def within_kernels(*args: Any) -> Any:
        raise TypeError(f"{choose.__name__} is known in kernels alone")

    overload(within_kernels, jit_options={"fastmath": EXACT, "error_model": "numpy"}, strict=False)(choose)
    return cast(Function, within_kernels)


def kernel(function: Function) -> Function:
    """What Python calls, on several threads at once (`threads.run`)."""
    return cast(Function, njit(nogil=True, cache=True, fastmath=EXACT, error_model="numpy")(function))


@contextmanager
def noticed(what: str) -> Iterator[None]:
    """Say what is being compiled where that takes more than a second; ``logging.getLogger("refattn_numba")`` can be told not to."""
    notice = threading.Timer(1.0, LOGGER.warning, [f"refattn_numba compiles {what}: once on this machine, for some seconds"])
    notice.daemon = True
    notice.start()
    try:
        yield
    finally:
        notice.cancel()


@cache
def compile_once(kernel: Any, *types: Any) -> None:
    """Compile a kernel for some types, or read what an earlier process has compiled."""
    with noticed(f"{kernel.__name__} for {types[2].dtype}{', with options' * (str(types[1]) != 'none')}"):
        kernel.compile(types)
