"""An operation of one thread or one warp: written once, over a machine that either makes code or carries it out.

A machine has the instructions (`ptx.Machine` makes code of them, the tests' emulator does them to 32 lanes), and its values have Python's
operators. What an operation loops over is unrolled as it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

Scalar: TypeAlias = Literal["int32", "int64", "bits", "float32"]
"""What a register holds; `bits` are 32 that mean what an instruction takes them for."""


class Many(NamedTuple):
    """A tuple of registers."""

    kind: Scalar
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]


Kind: TypeAlias = Scalar | Many


@dataclass(frozen=True)
class Operation:
    """What to do, and the types of what it takes and gives.

    Attributes
    ----------
    run : callable
        ``run(machine, *values)``; a `Many` is a tuple of values.
    takes : tuple of Kind
        Types of the values.
    gives : Kind, or None
        Type of the result.
    """

    run: Callable[..., Any]
    takes: tuple[Kind, ...]
    gives: Kind | None
