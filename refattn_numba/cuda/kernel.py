"""What a kernel is before it is compiled, and what it is after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

Type: TypeAlias = Literal["pointer", "int32", "int64", "float32"]
"""What a parameter is: an address of device memory, 0 where there is none, or a number."""

Parameters: TypeAlias = tuple[tuple[str, Type], ...]


@dataclass(frozen=True)
class Kernel:
    """One kernel with all sizes that are fixed when it is compiled.

    Attributes
    ----------
    name : str
        Of the entry point too; no two shipped kernels share one.
    builder : callable
        ``builder(ops, config)`` is the Python function to compile, or to run where `ops` is the emulator.
    config : NamedTuple
        The constants that the function closes over.
    parameters : tuple of (str, str)
        Name and type of each, in order.
    threads : int
        In a block.
    shared_bytes : int
        Dynamic shared memory of a block.
    tile : int
        Rows (of queries, or of keys) that one block of the grid makes.
    blocks_per_processor : int
        How many must fit on one multiprocessor at a time, which bounds the registers.
    """

    name: str
    builder: Callable[[Any, Any], Callable[..., None]]
    config: Any
    parameters: Parameters
    threads: int
    shared_bytes: int
    tile: int
    blocks_per_processor: int = 1


class Cubin(NamedTuple):
    """A compiled kernel and what it takes of a multiprocessor.

    Attributes
    ----------
    code : bytes
        The object for one architecture.
    entry : str
        Name of its entry point.
    architecture : str
        Such as ``"sm_90a"``.
    registers : int
        Of a thread.
    shared_bytes : int
        Static shared memory of a block; the dynamic comes on top.
    stack_bytes : int
        Of a thread, in local memory: 0 unless registers were spilled or an array is indexed by a variable.
    """

    code: bytes
    entry: str
    architecture: str
    registers: int
    shared_bytes: int
    stack_bytes: int
