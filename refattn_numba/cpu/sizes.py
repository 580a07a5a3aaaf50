"""Minimum, maximum and rounding up, as kernels need them for the sizes of their tiles."""

from __future__ import annotations

from typing import Any

from refattn_numba.cpu.jit import compiled


@compiled
def smaller(a: Any, b: Any) -> Any:
    """``min``, which takes Numba a second to compile."""
    return a if a < b else b  # noqa: FURB136


@compiled
def larger(a: Any, b: Any) -> Any:
    """``max`` likewise; b where a is NaN."""
    return a if a > b else b  # noqa: FURB136


@compiled
def ceil_to(n: int, step: int) -> int:
    """The smallest multiple of `step` that holds n."""
    return (n + step - 1) // step * step
