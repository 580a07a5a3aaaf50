"""Runs a CUDA kernel's source on NumPy, and refuses what a GPU would do wrong without a word.

A warp is a thread of Python whose values are vectors of 32 lanes; one warp runs at a time, until it waits at a barrier. Each access is
checked: that it lies in a buffer or in shared memory, is aligned, reads nothing that was never written or whose copy nobody has waited
for, and is parted by a barrier from what another warp does at the same place. Barriers that not all warps reach are found, not waited for.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from refattn.testing.bits import Tensor
from refattn.testing.bits import stored as bits_of
from refattn.testing.precision import FORMATS

LANES = np.arange(32)
FLOAT8 = "float8_e4m3fn"
SHARED_START = 1024
LARGEST_INT = 2**31 - 1
_GROUP, _PAIR = LANES // 4, 2 * (LANES % 4)


class Fault(AssertionError):  # noqa: N818  # the word for it
    """What a kernel must not do."""


class Buffers:
    """Global memory: the arrays that a kernel may touch."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        ranges: list[tuple[int, int, bool]] = []
        for found in sorted({(*np.lib.array_utils.byte_bounds(a), a.flags.writeable) for a in arrays if a.size}):
            if ranges and found[0] < ranges[-1][1]:  # views of one array
                before = ranges.pop()
                found = (before[0], max(found[1], before[1]), found[2] or before[2])  # noqa: PLW2901
            ranges.append(found)
        self.starts, self.stops = (np.array([r[i] for r in ranges], np.int64) for i in range(2))
        self.writable = [r[2] for r in ranges]
        self.bytes = [np.ctypeslib.as_array((ctypes.c_uint8 * (stop - start)).from_address(start)) for start, stop, _ in ranges]

    def find(self, addresses: np.ndarray, width: int, what: str, alignment: int = 0) -> list[tuple[np.ndarray, int, np.ndarray]]:
        """For each buffer that is touched the lanes that do, which it is, and the places of their bytes."""
        if (addresses % (alignment or width)).any():
            raise Fault(f"{what} of {width} bytes at an address that is not aligned")
        which = np.searchsorted(self.starts, addresses, "right") - 1
        if (which < 0).any() or (addresses + width > self.stops[which]).any():
            raise Fault(f"{what} of {width} bytes outside every buffer")
        found = []
        for i in set(which.tolist()):
            lanes = np.flatnonzero(which == i)
            found.append((lanes, i, (addresses[lanes] - self.starts[i])[:, None] + np.arange(width)))
        return found

    def load(self, addresses: np.ndarray, width: int, alignment: int = 0) -> np.ndarray:
        """Bytes, a row for each address."""
        made = np.zeros((len(addresses), width), np.uint8)
        for lanes, i, places in self.find(addresses, width, "a load", alignment):
            made[lanes] = self.bytes[i][places]
        return made

    def store(self, addresses: np.ndarray, content: np.ndarray) -> None:
        """Bytes, a row for each address."""
        for lanes, i, places in self.find(addresses, content.shape[1], "a store"):
            if not self.writable[i]:
                raise Fault("a store to an array that is only read")
            if len(np.unique(places)) != places.size:
                raise Fault("two lanes store to one place")
            self.bytes[i][places] = content[lanes]


class Shared:
    """Shared memory of one block, in words of 4 bytes, with who did what at which barrier."""

    def __init__(self, size: int, warps: int) -> None:
        words = -(-size // 4)
        self.content = np.full(words, 0x7FC1DEAD, np.uint32)
        self.is_known, self.is_copying = np.zeros(words, bool), np.zeros(words, bool)
        self.writer, self.written = np.full(words, -1), np.full(words, -1)
        self.read = np.full((warps, words), -1)
        self.copied, self.used, self.spread = (np.full((warps, words), -1) for _ in range(3))
        self.size = size

    def words(self, addresses: np.ndarray, width: int) -> np.ndarray:
        """Places, a row for each address."""
        places = addresses - SHARED_START
        if (places % width).any():
            raise Fault(f"an access of {width} bytes to shared memory that is not aligned")
        if (places < 0).any() or (places + width > self.size).any():
            raise Fault("an access outside shared memory")
        return (places // 4)[:, None] + np.arange(width // 4)

    def load(self, addresses: np.ndarray, width: int, warp: int, barriers: int, meetings: int) -> np.ndarray:
        """Words, a row for each address."""
        at = self.words(addresses, width)
        if (self.copied[warp, at] >= meetings).any():
            raise Fault("a race: shared memory is read that another lane may have copied since the lanes last met")
        if self.is_copying[at].any():
            raise Fault("shared memory is read whose copy nobody has waited for")
        if not self.is_known[at].all():
            raise Fault("shared memory is read that was never written")
        if ((self.writer[at] != warp) & (self.written[at] >= barriers)).any():
            raise Fault("a race: shared memory is read that another warp has written since the last barrier")
        self.read[warp, at], self.used[warp, at] = barriers, meetings
        return self.content[at]

    def claim(self, at: np.ndarray, warp: int, barriers: int) -> None:
        """Check that nobody else still uses what is about to be written."""
        reads = self.read[:, at]
        reads[warp] = -1
        if (reads >= barriers).any():
            raise Fault("a race: shared memory is written that another warp has read since the last barrier")
        if ((self.writer[at] != warp) & (self.written[at] >= barriers)).any() or self.is_copying[at].any():
            raise Fault("a race: shared memory is written twice without a barrier or a wait between")

    def store(self, at: np.ndarray, content: np.ndarray, warp: int, barriers: int) -> None:
        """Words that were claimed."""
        self.content[at], self.is_known[at], self.writer[at], self.written[at] = content, True, warp, barriers


class Warp:
    """A machine (`refattn_numba.cuda.operations`) of 32 lanes."""

    def __init__(self, place: int, block: int, shared: Shared, buffers: Buffers) -> None:
        self.place, self.index, self.memory, self.buffers = place, block, shared, buffers
        self.barriers, self.meetings, self.posted, self.outcome = 0, 0, False, False
        self.copies: list[tuple[np.ndarray, np.ndarray]] = []
        self.groups: list[list[tuple[np.ndarray, np.ndarray]]] = []
        self.turn, self.handed_back = threading.Semaphore(0), threading.Semaphore(0)
        self.state, self.error = "ready", None

    # Numbers
    number = staticmethod(np.float32)

    def integer(self, x: int) -> Any:
        return np.int32(x)

    def wide(self, x: Any) -> Any:
        return np.int64(x) if np.ndim(x) == 0 else x.astype(np.int64)

    def float_of(self, x: Any) -> Any:
        return np.asarray(x, np.int32).view(np.float32)

    def bits_of(self, x: Any) -> Any:
        return np.asarray(x, np.float32).view(np.int32)

    def select(self, condition: Any, a: Any, b: Any) -> Any:
        return np.where(condition, a, b)

    def quotient(self, a: Any, b: Any) -> Any:
        return a // b

    def below(self, a: Any, b: Any) -> Any:
        return (a >= 0) & (a < b)

    def smallest(self, a: Any, b: Any) -> Any:
        return np.minimum(a, b)

    def stepped(self, address: Any, step: Any, count: int) -> Any:
        return address + step * count

    def multiply_add_wide(self, a: Any, b: Any, c: Any) -> Any:
        return self.wide(a) * b + c

    multiply_add_longer = multiply_add_wide

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        return np.float32(np.multiply(a, b, dtype=np.float64) + c)

    def largest(self, a: Any, b: Any) -> Any:
        return np.fmax(a, b)

    def exp2(self, x: Any) -> Any:
        return np.exp2(x)

    def log2(self, x: Any) -> Any:
        return np.log2(x)

    def reciprocal(self, x: Any) -> Any:
        return np.float32(1) / x

    def packed(self, low: Any, high: Any, dtype: str) -> Any:
        halves = [np.broadcast_to(bits16(x, dtype), 32).astype(np.uint32) for x in (low, high)]
        return (halves[0] | (halves[1] << 16)).view(np.int32)

    def packed_eights(self, numbers: Sequence[Any]) -> Any:
        return np.stack([np.broadcast_to(bits8(x), 32) for x in numbers], axis=1).copy().view(np.int32)[:, 0]

    def bytes_chosen(self, a: Any, b: Any, which: int) -> Any:
        both = np.stack([np.broadcast_to(x, 32).astype(np.int32) for x in (a, b)], axis=1).view(np.uint8)
        return np.ascontiguousarray(both[:, [which >> 4 * i & 7 for i in range(4)]]).view(np.int32)[:, 0]

    def multiply_add_pairs(self, a: Any, b: Any, c: Any, dtype: str) -> Any:
        x, y, z = (numbers_of([x], dtype)[0].astype(np.float64) for x in (a, b, c))
        return self.packed(*np.float32(x * y + z).T, dtype)

    def narrowed(self, x: Any) -> Any:
        bits = np.broadcast_to(self.bits_of(x), 32).astype(np.int64)
        is_finite = (bits & 0x7F800000) != 0x7F800000
        return np.where(is_finite, (bits + 0x1000) & ~0x1FFF, bits).astype(np.int32)

    def widened(self, x: Any, dtype: str) -> Any:
        bits = np.broadcast_to(x, 32).astype(np.int32)
        return (bits << 16).view(np.float32) if dtype == "bfloat16" else bits.view(np.float16)[::2].astype(np.float32)

    # Where a thread is
    def thread(self) -> Any:
        return (32 * self.place + LANES).astype(np.int32)

    def block(self) -> Any:
        return self.index

    def shared(self) -> Any:
        return SHARED_START

    # Together with other threads
    def barrier(self) -> None:
        self.barrier_any(False)

    def barrier_any(self, condition: Any) -> Any:
        self.posted, self.state = bool(np.any(condition)), "barrier"
        self.handed_back.release()
        self.turn.acquire()
        if self.error is not None:
            raise self.error
        self.meetings += 1
        return int(self.outcome)

    def any_lane(self, condition: Any) -> Any:
        return int(np.any(condition))

    def warp_barrier(self) -> None:
        self.meetings += 1

    def from_lane(self, x: Any, lane: Any) -> Any:
        return np.broadcast_to(x, 32)[np.broadcast_to(lane, 32)]

    def first_lane(self, x: Any) -> Any:
        return int(np.broadcast_to(x, 32)[0])

    def shuffled(self, x: Any, distance: int) -> Any:
        return np.broadcast_to(x, 32)[LANES ^ distance]

    # Memory
    def load(self, address: Any, dtype: str, valid: Any) -> Any:
        shape = np.broadcast_shapes(np.shape(address), np.shape(valid))
        addresses, lanes = np.broadcast_to(address, shape).reshape(-1), np.broadcast_to(valid, shape).reshape(-1)
        width = {"int8": 1, FLOAT8: 1, "float16": 2, "bfloat16": 2}.get(dtype, 4)
        content = np.zeros((len(addresses), width), np.uint8)
        if lanes.any():
            content[lanes] = self.buffers.load(addresses[lanes], width)
        if dtype == FLOAT8:
            made = Tensor(FLOAT8, content).values().astype(np.float32)
        elif dtype == "bfloat16":
            made = (content.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            made = content.view(dtype).astype(np.float32 if dtype.startswith("float") else np.int32)
        made = made.reshape(shape)
        return made if shape else made[()]

    def store(self, address: Any, bits: Any, width: int, valid: Any) -> None:
        addresses, lanes = np.broadcast_to(address, 32), np.broadcast_to(valid, 32)
        content = np.ascontiguousarray(np.broadcast_to(bits, 32)).astype(np.int32).view(np.uint8).reshape(32, 4)[:, :width]
        if lanes.any():
            self.buffers.store(addresses[lanes], content[lanes])

    def load_vector(self, address: Any, valid: Any) -> tuple[Any, ...]:
        addresses, lanes = np.broadcast_to(address, 32), np.broadcast_to(valid, 32)
        content = np.zeros((32, 16), np.uint8)
        if lanes.any():
            content[lanes] = self.buffers.load(addresses[lanes], 16)
        return tuple(content.view(np.int32).T)

    def store_vector(self, address: Any, bits: Sequence[Any], valid: Any) -> None:
        addresses, lanes = np.broadcast_to(address, 32), np.broadcast_to(valid, 32)
        content = np.stack([np.broadcast_to(x, 32) for x in bits], axis=1).astype(np.int32).view(np.uint8)
        if lanes.any():
            self.buffers.store(addresses[lanes], content[lanes])

    def copy_async(self, to: Any, address: Any, size: Any, wanted: Any = True, width: int = 16) -> None:
        to, address, size, wanted = (np.broadcast_to(x, 32) for x in (to, address, size, wanted))
        content = np.zeros((32, width), np.uint8)
        for part in set(size[wanted].tolist()) - {0}:
            lanes = wanted & (size == part)
            content[lanes, :part] = self.buffers.load(address[lanes], part, width)
        at = self.memory.words(to[wanted].astype(np.int64), width)
        self.memory.claim(at, self.place, self.barriers)
        if (self.memory.used[self.place, at] >= self.meetings).any():
            raise Fault("a race: a copy to shared memory that another lane may have read since the lanes last met")
        self.memory.is_copying[at] = True
        self.copies.append((at, content[wanted].view(np.uint32)))

    def commit(self) -> None:
        self.groups.append(self.copies)
        self.copies = []

    def wait(self, running: int) -> None:
        while len(self.groups) > running:
            for at, content in self.groups.pop(0):
                self.memory.is_copying[at] = False
                self.memory.store(at, content, self.place, self.barriers)
                self.memory.copied[self.place, at] = self.meetings

    def load_shared(self, address: Any, count: int = 1) -> Any:
        addresses = np.broadcast_to(address, 32).astype(np.int64)
        found = self.memory.load(addresses, 4 * count, self.place, self.barriers, self.meetings).view(np.int32)
        return found[:, 0] if count == 1 else tuple(found.T)

    def store_shared(self, address: Any, bits: Sequence[Any], valid: Any) -> None:
        lanes = np.broadcast_to(valid, 32)
        at = self.memory.words(np.broadcast_to(address, 32).astype(np.int64)[lanes], 4 * len(bits))
        self.memory.claim(at, self.place, self.barriers)
        if (self.memory.spread[self.place, at] >= self.meetings).any():
            raise Fault("a race: shared memory is written that other lanes may have read since the lanes last met")
        content = np.stack([np.broadcast_to(x, 32) for x in bits], axis=1).astype(np.int32).view(np.uint32)
        self.memory.store(at, content[lanes], self.place, self.barriers)

    def load_matrices(self, address: Any, *, transposed: bool) -> tuple[Any, ...]:
        addresses = np.broadcast_to(address, 32).astype(np.int64)
        rows = self.memory.load(addresses, 16, self.place, self.barriers, self.meetings)
        self.memory.spread[self.place, self.memory.words(addresses, 16)] = self.meetings
        matrices = rows.view(np.uint16).reshape(4, 8, 8)
        matrices = matrices.transpose(0, 2, 1).copy() if transposed else matrices
        return tuple(matrices.reshape(4, 64).view(np.int32))

    # Products
    def product(self, dtype: str, sums: Sequence[Any], a: Sequence[Any], b: Sequence[Any]) -> tuple[Any, ...]:
        """Multiplied and summed in float32, as the operands' bits are exact in it."""
        depth = 8 if dtype == "float32" else 16
        of_left, of_right = _PLACES[depth]
        left, right = np.empty(16 * depth, np.float32), np.empty(8 * depth, np.float32)
        left[of_left], right[of_right] = numbers_of(a, dtype), numbers_of(b, dtype)
        made = (left.reshape(16, depth) @ right.reshape(depth, 8)).reshape(-1)
        return tuple(c + made[places] for c, places in zip(sums, _SUMS, strict=True))


def _places(depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each number of each lane's registers stands in the operands (PTX ISA, "Matrix fragments"): flat, by register, lane, half."""
    halves = 1 if depth == 8 else 2
    half, inner = np.arange(halves), LANES[:, None] % 4 * halves
    step = 4 * halves
    left = [(_GROUP[:, None] + 8 * (i % 2)) * depth + inner + half + step * (i // 2) for i in range(4)]
    right = [(inner + half + step * i) * 8 + _GROUP[:, None] for i in range(2)]
    return np.stack(left), np.stack(right)


_PLACES = {depth: _places(depth) for depth in (8, 16)}
_SUMS = [(_GROUP + 8 * (i // 2)) * 8 + _PAIR + i % 2 for i in range(4)]


def numbers_of(registers: Sequence[Any], dtype: str) -> np.ndarray:
    """What registers hold, as float32, by register, lane and part."""
    bits = np.stack([np.broadcast_to(x, 32) for x in registers]).astype(np.int32)
    if dtype == FLOAT8:
        return Tensor(FLOAT8, bits.view(np.uint8).reshape(-1, 32, 4)).values().astype(np.float32)
    if dtype == "float32":
        return (bits & ~0x1FFF).view(np.float32)[..., None]
    if dtype == "float16":
        return bits.view(np.float16).reshape(-1, 32, 2).astype(np.float32)
    return np.stack([bits << 16, bits & -0x10000], axis=-1).view(np.float32)


def bits8(x: Any) -> np.ndarray:
    """The nearest numbers of 8 bits, ties to even; the largest for what is larger."""
    of_eights = FORMATS[FLOAT8]
    return bits_of(of_eights.round(np.clip(np.asarray(x, np.float64), -of_eights.largest, of_eights.largest)), FLOAT8).bits


def bits16(x: Any, dtype: str) -> np.ndarray:
    """The nearest numbers of 16 bits, ties to even."""
    x = np.asarray(x, np.float32)
    if dtype == "float16":
        return x.astype(np.float16).view(np.uint16)
    bits = x.view(np.uint32).astype(np.uint64)
    return np.where(np.isnan(x), 0x7FFF, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class Emulated:
    """What a kernel's builder calls to get functions that run here."""

    current: Warp

    @staticmethod
    def function(source: Callable[..., Any]) -> Callable[..., Any]:
        """A Python function that kernels may call."""
        return source

    def __call__(self, operation: Any) -> Callable[..., Any]:
        """An operation, of whichever warp has its turn."""

        def run(*given: Any) -> Any:
            if len(given) != len(operation.takes):
                raise TypeError(f"{len(given)} values for {operation.takes}")
            values = [converted(x, kind) for x, kind in zip(given, operation.takes, strict=True)]
            made = operation.run(self.current, *values)
            if isinstance(made, (list, tuple)):
                if len(made) != operation.gives.count:
                    raise TypeError(f"{len(made)} registers, but {operation.gives}")
                return tuple(converted(x, operation.gives.kind) for x in made)
            if isinstance(made, (np.integer, np.bool_)):
                return int(made)
            return made.astype(np.int64) if operation.gives == "int32" and np.ndim(made) else made  # as Numba computes with them

        return run


def converted(x: Any, kind: Any) -> Any:
    """A value as a register of this kind holds it."""
    if isinstance(kind, tuple):
        if len(x) != kind.count:
            raise TypeError(f"{len(x)} registers, but {kind}")
        return tuple(converted(y, kind.kind) for y in x)
    if kind == "float32":
        return np.float32(x) if np.ndim(x) == 0 else np.asarray(x, np.float32)
    if kind == "int64":
        return np.int64(x) if np.ndim(x) == 0 else np.asarray(x, np.int64)
    if np.max(np.abs(np.asarray(x, np.int64))) > LARGEST_INT + 1:
        raise Fault(f"int32 does not hold {x}")
    return np.int32(x) if np.ndim(x) == 0 else np.asarray(x, np.int32)


def launch(kernel: Any, blocks: int, arguments: Mapping[str, Any], buffers: Sequence[np.ndarray]) -> None:
    """Run all blocks of a kernel, one after the other.

    `arguments` are by name; addresses are those of the arrays in `buffers`, of which those that are not writable are only read.
    """
    if sorted(arguments) != sorted(name for name, _ in kernel.parameters):
        wrong = set(arguments) ^ {name for name, _ in kernel.parameters}
        raise TypeError(f"{kernel.name}: missing or unknown arguments {sorted(wrong)}")
    machine = Emulated()
    function = kernel.builder(machine, kernel.config)
    values = [np.float32(arguments[name]) if kind == "float32" else int(arguments[name]) for name, kind in kernel.parameters]
    memory = Buffers(buffers)
    for block in range(blocks):
        run_block(machine, function, values, kernel, block, memory)


def run_block(machine: Emulated, function: Callable[..., None], values: list[Any], kernel: Any, block: int, memory: Buffers) -> None:
    """Give warps their turns until all have ended."""
    warps = kernel.threads // 32
    shared = Shared(kernel.shared_bytes, warps)
    running = [Warp(i, block, shared, memory) for i in range(warps)]
    with waiting_for_turns(machine, function, values, running):
        while any(warp.state != "ended" for warp in running):
            for warp in running:
                if warp.state == "ready":
                    give_turn(machine, warp)
            _pass_barrier(running)
    if any(warp.groups and any(warp.groups) for warp in running):
        raise Fault("a thread ends while its copies are under way")


@contextmanager
def waiting_for_turns(machine: Any, function: Callable[..., None], values: list[Any], running: Sequence[Any]) -> Iterator[None]:
    """Within the block, each warp is a thread that goes on when it is given a turn; those that have not ended then are ended."""

    def life(warp: Any) -> None:
        warp.turn.acquire()
        try:
            if warp.error is None:
                with np.errstate(all="ignore"):
                    function(*values)
        except BaseException as error:  # raised by whoever launched
            warp.error = error
        warp.state = "ended"
        warp.handed_back.release()

    threads = [threading.Thread(target=life, args=(warp,), daemon=True) for warp in running]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for warp in running:
            if warp.state != "ended":
                warp.error = warp.error or Fault("another warp failed")
                give_turn(machine, warp, may_fail=True)
        for thread in threads:
            thread.join()


def give_turn(machine: Any, warp: Any, *, may_fail: bool = False) -> None:
    """Let a warp go on until it waits or ends, and raise what it raised."""
    machine.current = warp
    warp.turn.release()
    warp.handed_back.acquire()
    if warp.state == "ended" and warp.error is not None and not may_fail:
        raise warp.error


def _pass_barrier(running: list[Warp]) -> None:
    """All warps go on that wait at a barrier, if all do."""
    waiting = [warp for warp in running if warp.state == "barrier"]
    if not waiting:
        return
    if len(waiting) < len(running):
        raise Fault(f"deadlock: {len(waiting)} of {len(running)} warps wait at a barrier, the others have ended")
    outcome = any(warp.posted for warp in waiting)
    for warp in waiting:
        warp.state, warp.outcome, warp.barriers = "ready", outcome, warp.barriers + 1
