"""What the machine can do at most: multiply-adds of registers alone, and reading memory; on as many threads as are asked for.

Each is a loop to be timed like any contender, between them, and the shortest of its times counts: a limit is a maximum, and all
that other programs, sleeping threads or a processor still cold can do is to make it look lower.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils

from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.jit import kernel
from refattn_numba.cpu.matrix_tiles import I8, NOTHING, SIDE, leave_tiles, take_tiles
from refattn_numba.cpu.simd import Vector, call_llvm, constant, couple_dot, filled, fused, instruction, lanes_of, load, pointer_to, total_of

STEPS = 2_000_000  # of the multiply-add loop: some milliseconds, beside which waking a thread is nothing
REGISTERS = 12
READ_BYTES = 1 << 28  # far more than caches hold


def _chains(step: Callable[..., Any]) -> Any:
    """As many independent sums as keep all units busy; nothing is read. ``step(builder, sum, factor)`` is the sum after a step."""

    @instruction
    def run(typing: Any, like: Any, steps: Any) -> Any:
        vector = Vector(like.dtype)

        def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            places = [cgutils.alloca_once(builder, vector.ir) for _ in range(REGISTERS)]
            for i, place in enumerate(places):
                builder.store(constant(vector.ir, float(i)), place)
            factor = constant(vector.ir, 0.999)
            with cgutils.for_range(builder, args[1]):
                for place in places:
                    builder.store(step(builder, builder.load(place), factor), place)
            total = builder.load(places[0])
            for place in places[1:]:
                total = builder.fadd(total, builder.load(place))
            return total

        return vector(like, types.intp), build

    return run


_multiply_adds = _chains(lambda builder, total, factor: fused(builder, total, factor, factor))
_dots = _chains(lambda builder, total, factor: couple_dot(builder, factor, factor, total))


@instruction
def _tile_products(typing: Any, times: Any) -> Any:
    """Four products of tiles that hold anything, so many times."""

    def build(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        with cgutils.for_range(builder, args[0]):
            for tile in range(4):
                call_llvm(builder, "llvm.x86.tdpbf16ps", NOTHING, I8(tile), I8(4), I8(6))
        return context.get_dummy_value()

    return types.void(types.intp), build


@kernel
def _multiply_add_loop(like: Any, steps: int) -> float:
    return total_of(_multiply_adds(pointer_to(like.ctypes.data, like), steps))


@kernel
def _dot_loop(like: Any, steps: int) -> float:
    return total_of(_dots(pointer_to(like.ctypes.data, like), steps))


@kernel
def _tile_loop(like: Any, steps: int) -> None:
    take_tiles(like)
    _tile_products(steps)
    leave_tiles(like)


@kernel
def _read(x: Any) -> float:
    start = pointer_to(x.ctypes.data, x)
    lanes = lanes_of(start)
    a = b = c = d = filled(start, 0.0)
    for i in range(0, x.size - 4 * lanes + 1, 4 * lanes):
        a, b = a + load(start, i), b + load(start, i + lanes)
        c, d = c + load(start, i + 2 * lanes), d + load(start, i + 3 * lanes)
    return total_of(a + b + (c + d))


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count)


def _on_threads(threads: int, call: Callable[[int], Any]) -> None:
    others = [_threads(threads).submit(call, i) for i in range(1, threads)]
    call(0)
    for other in others:
        other.result()


def limit(name: str, threads: int) -> tuple[str, Callable[[], Any], float]:
    """The name of a limit, a call that runs there, and how many operations or bytes it is.

    "float32", "float64", "bfloat16" or "read"; products of bfloat16 are those of matrix tiles, of its dot product, or of float32,
    whichever is the first that the processor has.
    """
    if name == "read":
        x = np.ones(READ_BYTES // 4, np.float32)
        parts = np.array_split(x, threads)
        return name, (lambda: _on_threads(threads, lambda i: _read(parts[i]))), float(READ_BYTES)
    if name == "bfloat16" and HOST.has_tiles:
        steps, stored = STEPS // 8, np.zeros(1, np.uint16)  # each takes as long as eight of the others
        operations = 4.0 * 2 * SIDE * SIDE * 2 * SIDE * steps * threads
        return name, (lambda: _on_threads(threads, lambda i: _tile_loop(stored, steps))), operations
    has_dot = name == "bfloat16" and HOST.has_bfloat16_dot
    name = name if name != "bfloat16" or has_dot else "float32"
    like, loop = np.empty(1, "float32" if has_dot else name), _dot_loop if has_dot else _multiply_add_loop
    operations = (4.0 if has_dot else 2.0) * REGISTERS * (HOST.register_bytes // like.itemsize) * STEPS * threads
    return name, (lambda: _on_threads(threads, lambda i: loop(like, STEPS))), operations
