"""How the CPU kernels are compiled.

Only kernels are cached on disk; they carry the compiled code of all that they call. Numba looks at the time and size of a kernel's own
file to see whether its cache is stale, which a change elsewhere leaves alone, and so does an upgrade to a wheel, whose files all have one
time: the old code would meet new records. What it compares is therefore replaced by the text of all that a kernel imports.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias, TypeVar, cast

import numba
from numba import int64, njit
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.extending import overload

from refattn_numba._sources import digest
from refattn_numba.cpu.instructions import HOST

LOGGER = logging.getLogger("refattn_numba")

Source: TypeAlias = Literal["compiled", "disk", "memory"]

Function = TypeVar("Function", bound=Callable[..., Any])

# NaN and infinities keep their meaning under each set of flags: a row of NaN has to stay one.
EXACT = {"contract", "nsz", "arcp"}
REORDERED = {*EXACT, "reassoc"}


class Part(JITCodeLibrary):
    """The code of a helper, which is never run by itself: only a kernel, with all that it calls, is optimised and made machine code."""

    def _optimize_final_module(self) -> None:
        """Numba's first passes alone: what is costly would be done again in all that calls it."""
        passes, builder = self._codegen._module_pass_manager(loop_vectorize=False, slp_vectorize=False, opt=0, cost="cheap")
        passes.run(self._final_module, builder)

    def _finalize_final_module(self) -> None:
        """What linking needs, and no machine code."""
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True

    @property
    def codegen(self) -> Any:
        """As Numba asks for it, to tell machine code where its environment is."""
        return SimpleNamespace(set_env=lambda name, env: None)


class PartCompiler(Compiler):
    """Numba's own, but for where the code goes."""

    def define_pipelines(self) -> Any:
        """The usual passes."""
        self.state.library = Part(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        return super().define_pipelines()


WITHIN: Any = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
if numba.__version__.startswith("0.68."):  # `Part` is made of what Numba keeps to itself, and was tried with this one
    WITHIN["pipeline_class"] = PartCompiler


def compiled(function: Function) -> Function:
    """A helper of kernels, with no way in from Python, whose sums run in the order in which they are written."""
    return cast(Function, njit(fastmath=EXACT, **WITHIN)(function))


def reordered(function: Function) -> Function:
    """A helper whose sums may be taken in any order, as a matrix product's are."""
    return cast(Function, njit(fastmath=REORDERED, **WITHIN)(function))


def by_type(choose: Function) -> Function:
    """A helper that is one function or another: `choose` takes the types of the arguments, and returns the one to compile."""

    @functools.wraps(choose)
    def within_kernels(*args: Any) -> Any:
        raise TypeError(f"{choose.__name__} is known in kernels alone")

    options: Any = {"fastmath": EXACT, **WITHIN}
    overload(within_kernels, jit_options=options, strict=False)(choose)
    return cast(Function, within_kernels)


def kernel(function: Function) -> Function:
    """What Python calls, on several threads at once (`threads`)."""
    made: Any = njit(nogil=True, cache=True, fastmath=EXACT, error_model="numpy")(function)
    made._cache._cache_file._source_stamp = HOST.name, digest(function.__module__)  # Numba has no public way
    return cast(Function, made)


@contextmanager
def noticed(what: str) -> Iterator[None]:
    """Say what is being compiled where that takes more than a second; ``logging.getLogger("refattn_numba")`` can be told not to."""
    notice = threading.Timer(1.0, LOGGER.warning, [f"refattn_numba compiles {what}: once on this machine, for some seconds"])
    notice.daemon = True
    with suppress(RuntimeError):  # where the system gives no thread, nothing is said
        notice.start()
    try:
        yield
    finally:
        notice.cancel()


@cache
def compile_once(kernel: Any, *types: Any) -> tuple[Source, float]:
    """Compile a kernel for some types, or read what an earlier process has compiled; where it came from, and the seconds."""
    known, read, start = len(kernel.signatures), sum(kernel.stats.cache_hits.values()), time.perf_counter()
    precision = next(t.dtype for t in reversed(types) if hasattr(t, "dtype") and t.dtype != int64)
    with noticed(f"{kernel.__module__.rpartition('.')[2]} for {precision}{', with options' * (types[0] == types[1])}"):
        kernel.compile(types)
    source = "disk" if sum(kernel.stats.cache_hits.values()) > read else "compiled" if len(kernel.signatures) > known else "memory"
    return source, time.perf_counter() - start
