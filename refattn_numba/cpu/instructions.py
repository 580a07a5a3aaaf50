"""The vector instructions that kernels are compiled for.

One table; the first row whose features the processor has is taken. Kernels are written in vectors of one register, and LLVM
lowers what they do to any processor, so that a row states sizes and not instructions: how many numbers a register holds, and
how many registers a product may keep its sums in. The exceptions are fused multiply-add, the bfloat16 dot product and matrix
tiles, which a processor without them cannot run: the table alone says where they are used. Tiles take a permission of the system too.

Numba compiles for the processor and the features that it is told (``NUMBA_CPU_NAME``, ``NUMBA_CPU_FEATURES``), else for this
machine's; the same are looked up here.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Set
from typing import Any, NamedTuple, cast

from numba.core import config
from numba.core.codegen import get_host_cpu_features


class InstructionSet(NamedTuple):
    """One row.

    Attributes
    ----------
    name : str
        What people call it.
    features : frozenset of str
        LLVM's names of what a processor must have.
    register_bytes : int
        Width of a vector register.
    panel : (int, int)
        A product keeps a block of ``(registers of lanes, lines)`` sums; with the operands of one step they fill the registers.
    has_fma : bool
        Multiply and add in one instruction, with one rounding.
    has_permute : bool
        A register's elements by a register of indices: a table that costs no memory.
    has_bfloat16_dot : bool
        Products of pairs of bfloat16, summed in float32.
    has_tiles : bool
        Products of matrices of such pairs (`matrix_tiles`).
    """

    name: str
    features: frozenset[str]
    register_bytes: int
    panel: tuple[int, int]
    has_fma: bool
    has_permute: bool = False
    has_bfloat16_dot: bool = False
    has_tiles: bool = False


AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
BFLOAT16, TILES = frozenset({"avx512bf16"}), frozenset({"amx-tile", "amx-bf16"})
TABLE = (
    InstructionSet(
        "AVX-512 with AMX", AVX512 | BFLOAT16 | TILES, 64, (4, 6), has_fma=True, has_permute=True, has_bfloat16_dot=True, has_tiles=True
    ),
    InstructionSet("AVX-512 with bfloat16", AVX512 | BFLOAT16, 64, (4, 4), has_fma=True, has_permute=True, has_bfloat16_dot=True),
    InstructionSet("AVX-512", AVX512, 64, (4, 4), has_fma=True, has_permute=True),
    InstructionSet("AVX2", frozenset({"avx2", "fma"}), 32, (2, 6), has_fma=True),
    InstructionSet("NEON", frozenset({"neon"}), 16, (4, 6), has_fma=True),
    InstructionSet("generic", frozenset(), 16, (2, 4), has_fma=False),
)


def chosen(features: Set[str]) -> InstructionSet:
    """The first row that a processor with these features can run."""
    return next(row for row in TABLE if row.features <= features)


def compiled_for() -> frozenset[str]:
    """The features that Numba compiles for."""
    told = cast("Any", config).CPU_FEATURES
    listed = get_host_cpu_features() if told is None else told
    found = {name[1:] for name in listed.split(",") if name.startswith("+")}
    return frozenset(found | ({"neon"} if platform.machine() in {"aarch64", "arm64"} else set()))  # part of every 64-bit ARM


def permitted_tiles() -> bool:
    """Ask Linux for the tile registers, which it keeps from a process until then: a thread that uses them has 8 KiB more to be saved."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18  # Linux's numbers: Documentation/arch/x86/xstate.rst
    try:
        return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0
    except (OSError, AttributeError):
        return False


def of_this_process() -> InstructionSet:
    """The row that this process may use."""
    found = compiled_for()
    return chosen(found if found >= TILES and permitted_tiles() else found - TILES)


HOST = of_this_process()
