"""The rows of ``python -m benchmarks.gpu``: what each child process does, and how long it may take."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import gpu_conv_battery
from benchmarks.gpu_battery import DTYPES, FLOAT8, OnCuda, results, summary
from benchmarks.gpu_conv_timing import convolutions
from benchmarks.gpu_decode import decode
from benchmarks.gpu_timing import Shape, attention, float8_forward, limits
from benchmarks.gpu_triton import SHAPES, beside_triton

START_SECONDS = 20
"""To import PyTorch and make a context, which every child has to do."""


class Row(NamedTuple):
    """One row.

    Attributes
    ----------
    name : str
        As ``--only`` and ``--row`` take it.
    seconds : int
        What it may take; after that it counts as hung.
    work : callable
        Takes the module `torch` and returns what JSON can hold, with ``"ok"``.
    quick : bool
        Whether ``--quick`` has it.
    alone : bool
        Whether nothing else may run meanwhile, since it measures time.
    """

    name: str
    seconds: int
    work: Callable[[Any], Mapping[str, Any]]
    quick: bool = False
    alone: bool = True


def battery(torch: Any, dtype: str) -> Mapping[str, Any]:
    """All cases of the oracle and our own in one type."""
    made = summary(list(results(OnCuda(torch), dtype)))
    return {**made, "ok": not made["failed"] and made["compared"] > 0}


def convolution_battery(torch: Any, dtype: str) -> Mapping[str, Any]:
    """The same of convolutions, with channels first and, of what has two or three axes of positions, last in memory."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}

    def lying_last(x: Any) -> Any:
        return x.to(memory_format=formats[x.ndim]) if x.ndim in formats else x

    found = list(gpu_conv_battery.results(OnCuda(torch), dtype))
    made = summary([*found, *gpu_conv_battery.results(OnCuda(torch), dtype, lying_last)])
    return {**made, "ok": not made["failed"] and made["compared"] > 0}


def portable_battery(torch: Any, of: Callable[[Any, str], Mapping[str, Any]] | None = None) -> Mapping[str, Any]:
    """The same by the kernels that other devices take, in a process that then takes no others."""
    os.environ["REFATTN_CUDA_PORTABLE"] = "1"
    return (of or battery)(torch, "bfloat16")


def _shapes() -> Sequence[tuple[Shape, bool]]:
    """Shapes, and whether they are among the quick ones: always 16 k queries and 2048 features in all."""
    found = []
    for head_dim in (128, 64, 256):
        for causal in (False, True):
            for length in (4096,) if head_dim == 256 and causal else (4096, 16384):
                heads = 2048 // head_dim
                is_quick = head_dim == 128 and length == 4096
                found.append((Shape("bfloat16", 16384 // length, heads, heads, length, head_dim, causal), is_quick))
    found.append((Shape("bfloat16", 4, 32, 4, 4096, 128, True), False))
    found.append((Shape("float32", 1, 8, 8, 2048, 64, False), False))
    return found


def rows() -> tuple[Row, ...]:
    """In the order in which they run: whether results are right comes first, then how fast they are."""
    batteries = [Row(f"battery {dtype}", 150, lambda torch, d=dtype: battery(torch, d), quick=True, alone=False) for dtype in DTYPES]
    batteries.append(Row("battery bfloat16 portable", 150, portable_battery, quick=True, alone=False))
    batteries += [
        Row(f"battery of convolutions {dtype}", 150, lambda torch, d=dtype: convolution_battery(torch, d), quick=True, alone=False)
        for dtype in DTYPES
        if dtype != FLOAT8
    ]
    portable = "battery of convolutions bfloat16 portable"
    batteries.append(Row(portable, 150, lambda torch: portable_battery(torch, convolution_battery), quick=True, alone=False))
    times = [Row(f"attention {shape}", 40, lambda torch, s=shape: attention(torch, s), quick=quick) for shape, quick in _shapes()]
    eight = Shape(FLOAT8, 4, 16, 16, 4096, 128, False)
    times.append(Row(f"attention {eight}", 20, lambda torch: float8_forward(torch, eight), quick=True))
    others = (
        Row("limits", 30, limits, quick=True),
        Row("decode", 40, decode, quick=True),
        Row("convolutions", 60, convolutions, quick=True),
    )
    triton = [Row(f"attention {shape}, Triton", 90, lambda torch, s=shape: beside_triton(torch, s)) for shape in SHAPES]
    return (*batteries, *others, *times, *triton)


def run(name: str) -> Mapping[str, Any]:
    """What a child process does; errors are part of the result."""
    row = next((row for row in rows() if row.name == name), None)
    if row is None:
        raise ValueError(f"no row is named {name!r}")
    try:
        return row.work(importlib.import_module("torch"))
    except Exception as error:  # whatever it is, it costs this row alone
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}
