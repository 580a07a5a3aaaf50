"""Shared memory of a block on compute capability 9.0 under the emulator: who knows what, boxes on their way, and where numbers stand."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tests.cuda.emulator import LANES, Fault, numbers_of

SHARED_START = 1024 + 384
"""Where a block's begins: a multiple of 128 only."""

POOL = 65_536
MAP_MAGIC = 0x7E50A
MAP_FORMAT = "<IIQ4q3q4I"
"""Of a tensor map here: a mark, bytes of a number, the address, sizes, strides in bytes and the box; the innermost first."""


def encoded_map(itemsize: int, address: int, sizes: Sequence[int], strides: Sequence[int], box: Sequence[int]) -> bytes:
    """128 bytes for a tensor of rank 4, swizzled by 128 bytes and zero outside; what the driver refuses is refused."""
    if address % 16 or any(s % 16 or not 0 < s < 1 << 40 for s in strides):
        raise Fault(f"a tensor map of address {address:#x} and strides {strides}")
    if any(not 0 < n <= 1 << 32 for n in sizes) or any(not 0 < n <= 256 for n in box) or box[0] * itemsize > 128:
        raise Fault(f"a tensor map of sizes {sizes} and box {box}")
    return struct.pack(MAP_FORMAT, MAP_MAGIC, itemsize, address, *sizes, *strides, *box).ljust(128, b"\0")


@dataclass
class Barrier:
    """In shared memory."""

    count: int
    pending: int
    bytes_left: int = 0
    phases: int = 0
    arrived: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    known: list[np.ndarray] = field(default_factory=list)
    made_at: int | None = None


class Load(NamedTuple):
    """A box on its way."""

    at: np.ndarray
    content: np.ndarray
    barrier: int


class Written(NamedTuple):
    """By a warp's own copies: at which of its times they were shown to products."""

    place: int
    shown: int | None


class Products(NamedTuple):
    """A group under way."""

    sums: tuple[np.ndarray, ...]
    read: np.ndarray
    run: Callable[[], np.ndarray]


class Block:
    """What warps of a block share."""

    def __init__(self, kernel: Any, *, late: bool) -> None:
        self.warps, self.late = kernel.threads // 32, late
        self.content = np.full(kernel.shared_bytes, 0xC1, np.uint8)
        self.source: list[tuple[int, int] | Written | None] = [None] * (kernel.shared_bytes // 16)
        self.is_arriving = np.zeros(kernel.shared_bytes // 16, bool)
        self.read = np.full((self.warps, kernel.shared_bytes // 16), -1)
        self.writer, self.written = np.full(kernel.shared_bytes // 16, -1), np.full(kernel.shared_bytes // 16, -1)
        self.barriers: dict[int, Barrier] = {}
        self.loads: list[Load] = []
        self.numbered: dict[int, list[int]] = {}
        self.clocks_at: dict[int, np.ndarray] = {}
        self.passed: dict[int, int] = {}
        launched = POOL // kernel.threads // 8 * 8
        self.registers = [launched] * self.warps
        self.running: list[Any] = []

    def barrier(self, address: Any, warp: Any) -> Barrier:
        found = self.barriers.get(int(address))
        if found is None or found.made_at is None or warp.clock[0] < found.made_at:
            raise Fault("a barrier in shared memory is used that was not made, or of which this warp or copies do not know")
        return found

    def finish_phase(self, barrier: Barrier) -> None:
        if barrier.pending == 0 and barrier.bytes_left == 0:
            barrier.known.append(barrier.arrived.copy())
            barrier.phases, barrier.pending, barrier.arrived = barrier.phases + 1, barrier.count, np.zeros(self.warps, int)

    def land(self) -> bool:
        """Let the oldest box arrive, if one is on its way."""
        if not self.loads:
            return False
        load = self.loads.pop(0)
        barrier = self.barriers[load.barrier]
        self.content[load.at] = load.content
        chunks = np.unique(load.at // 16)
        self.is_arriving[chunks] = False
        for chunk in chunks:
            self.source[chunk] = (load.barrier, barrier.phases)
        barrier.bytes_left -= load.content.size
        self.finish_phase(barrier)
        return True


def swizzled(addresses: np.ndarray) -> np.ndarray:
    """Where a byte of a block stands: bits 4-6 of its address changed by bits 7-9."""
    return addresses ^ ((addresses >> 7) & 7) << 4


def fields_of(descriptor: int) -> tuple[int, int, int]:
    """Address, and bytes to the next block and to the next 8 rows."""
    if descriptor >> 62 & 3 != 1:
        raise Fault("an operand of products without the swizzle of 128 bytes")
    return tuple((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))  # type: ignore[return-value]


def by_columns(descriptor: int, rows: int, width: int) -> np.ndarray:
    """Addresses of 32 bytes of each row, which stand side by side, number by number."""
    start, _, eight = fields_of(descriptor)
    row = np.arange(rows)[:, None]
    return start + row // 8 * eight + row % 8 * 128 + width * np.arange(32 // width)


def by_rows(descriptor: int, columns: int) -> np.ndarray:
    """Addresses of 16 rows of numbers, 64 of which stand side by side."""
    start, block, eight = fields_of(descriptor)
    row, column = np.arange(16)[:, None], np.arange(columns)
    return start + column // 64 * block + row // 8 * eight + row % 8 * 128 + column % 64 * 2


def sum_rows(columns: int) -> np.ndarray:
    return np.stack([LANES // 4 + 8 * (i // 2 % 2) for i in range(columns // 2)])


def sum_columns(columns: int) -> np.ndarray:
    return np.stack([i // 4 * 8 + 2 * (LANES % 4) + i % 2 for i in range(columns // 2)])


def left_of(registers: Sequence[Any], dtype: str) -> np.ndarray:
    """16 by 16 or 32 numbers of four registers (PTX ISA, "Register fragments for wgmma.mma_async.m64nNk16", and "...m64nNk32")."""
    numbers = numbers_of(registers, dtype)
    each = numbers.shape[-1]
    made = np.zeros((16, 8 * each), np.float32)
    for i, x in enumerate(numbers):
        made[(LANES // 4 + 8 * (i % 2))[:, None], (each * (LANES % 4) + 4 * each * (i // 2))[:, None] + np.arange(each)] = x
    return made
