"""The cases of softmax attention: the compiled twin beside PyTorch, and beside what the machine can do at most.

Names give batch x heads (query heads : key heads) x length x head_dim.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.caches import decode, packed, quantised
from benchmarks.cases import Case, Work
from benchmarks.ours import attention
from benchmarks.softmax import Problem

TOLERANCE = {"float64": 1e-12, "float32": 1e-4, "bfloat16": 0.1}


def _case(
    name: str, floor: float | None, percent: float | None, size: tuple[int, int, int, int, int],
    *, quick: bool = False, backward: bool = False, **options: Any,
) -> Case:  # fmt: skip
    batch, heads, kv_heads, length, head_dim = size
    problem = Problem(batch, heads, kv_heads, length, length, head_dim, backward=backward, **options)
    shared = "" if heads == kv_heads else f":{kv_heads}"
    full = f"{'forward and backward' if backward else 'forward'}, {name}, {batch}x{heads}{shared}x{length}x{head_dim}"
    work = Work(problem.dtype, problem.operations)
    return Case(full, partial(attention, problem), TOLERANCE[problem.dtype], floor, percent, work=work, quick=quick)


def _decode(name: str, make: Any, percent: float | None, kv_heads: int, stored: str = "", **more: Any) -> Case:
    problem = Problem(8, 32, kv_heads, 1, 4096, 128)
    shared = "" if kv_heads == 32 else f":{kv_heads}"
    full = f"{name}, 8x32{shared}, 4096 keys, 128"
    return Case(
        full, partial(make, problem), 1e-4, percent_floor=percent, work=Work("read", problem.read_bytes(stored)), quick=False, **more
    )


LATENCY = [(1, 8, 8, n, 64) for n in (128, 256, 512)]
LONG = [(1, 8, 8, 2048, 64), (2, 12, 12, 1024, 64), (1, 32, 8, 1024, 128), (1, 8, 8, 4096, 128)]
BOTH = [(1, 8, 8, 512, 64), (1, 8, 8, 2048, 64), (1, 32, 8, 1024, 128)]
ONE, PACKED = (1, 8, 8, 1024, 64), (1531, 64, 702, 1024, 333, 2048, 97, 505, 911, 12, 768, 197)

CASES = (
    *(_case(kind, 1.4, None, size, causal=kind == "causal", quick=size[3] != 256) for size in LATENCY for kind in ("full", "causal")),
    *(case for size in LONG for case in (_case("full", 1.2, 88, size), _case("causal", 1.35, 82, size, causal=True))),
    *(
        case
        for size in BOTH
        for case in (
            _case("full", 1.2, 85, size, backward=True, quick=size[3] == 512),
            _case("causal", 1.4, 80, size, backward=True, causal=True, quick=size[3] == 512),
        )
    ),
    _case("bfloat16, full", 2.3, None, ONE, dtype="bfloat16", quick=True),
    _case("bfloat16, causal", 2.3, None, ONE, dtype="bfloat16", causal=True),
    _case("bfloat16, full", 1.8, None, ONE, dtype="bfloat16", backward=True),
    _case("bfloat16, causal", 1.8, None, ONE, dtype="bfloat16", backward=True, causal=True),
    _case("float64, full", 1.5, None, ONE, dtype="float64", backward=True),
    _case("boolean mask", 1.5, None, (1, 8, 8, 2048, 64), option="mask"),
    _case("bias", 1.5, None, ONE, option="bias", backward=True),
    _case("window of 256", 25.0, None, (1, 8, 8, 8192, 64), window=256),
    _case("mask of blocks, 9% kept", None, None, (1, 8, 8, 8192, 64), option="blocks"),
    Case(
        "forward, 12 causal sequences of 12 to 2048, 8 heads, 64",
        partial(packed, Problem(1, 8, 8, sum(PACKED), sum(PACKED), 64, causal=True), PACKED),
        1e-4,
        work=Work("float32", 2.0 * 8 * 64 * sum(n * n for n in PACKED)),
        quick=False,
    ),
    _decode("decode", decode, 80, 32),
    _decode("decode", decode, 70, 8),
    _decode("decode by attention", attention, None, 32),
    _decode("decode by attention", attention, None, 8),
    _decode("decode, int8 cache beside our float32", quantised, None, 32, "int8", floor=1.6, baseline="refattn_numba float32"),
    _decode("decode, int8 cache beside our float32", quantised, None, 8, "int8", floor=1.6, baseline="refattn_numba float32"),
)
