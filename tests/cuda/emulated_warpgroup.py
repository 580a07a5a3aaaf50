"""A warp of compute capability 9.0 under the emulator: barriers with phases, boxes of tensors, and products that end later than they begin.

Products read shared memory, and write their sums, no sooner than a warp waits for them. Who may read or overwrite what is decided by
clocks: a warp knows what others did before they arrived at a barrier whose phase it has seen end.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refattn.testing.bits import Tensor
from tests.cuda.emulated_block import (
    MAP_FORMAT,
    MAP_MAGIC,
    POOL,
    SHARED_START,
    Barrier,
    Block,
    Load,
    Products,
    Written,
    by_columns,
    by_rows,
    left_of,
    sum_columns,
    sum_rows,
    swizzled,
)
from tests.cuda.emulator import FLOAT8, Buffers, Fault, Warp


class HopperWarp(Warp):
    """One of a block whose warps do different things."""

    def __init__(self, place: int, index: int, block: Block, buffers: Buffers) -> None:
        super().__init__(place, index, None, buffers)  # type: ignore[arg-type]
        self.block_of, self.clock = block, np.zeros(block.warps, int)
        self.seen: dict[int, int] = {}
        self.maps: set[int] = set()
        self.made: set[int] = set()
        self.groups_of_products: list[Products] = []
        self.copied: list[np.ndarray] = []
        self.together: list[tuple[Any, ...]] = []
        self.can_go: Callable[[], bool] = lambda: True
        self.error: BaseException | None = None
        self.what, self.operations, self.fenced = "", 0, -1
        self.born: dict[int, tuple[int, np.ndarray]] = {}

    def pause(self, can_go: Callable[[], bool], what: str) -> None:
        """Let others go on, and wait until a condition holds."""
        self.can_go, self.what = can_go, what
        self.handed_back.release()
        self.turn.acquire()
        if self.error is not None:
            raise self.error

    def shared(self) -> Any:
        return SHARED_START

    def learn(self, clock: np.ndarray) -> None:
        self.clock = np.maximum(self.clock, clock)

    # Barriers
    def barrier_any(self, condition: Any) -> Any:
        raise Fault("a barrier of the whole block that says something")

    def barrier(self) -> None:
        self.meet(0, 32 * self.block_of.warps)

    def barrier_init(self, address: Any, count: int) -> None:
        if address % 8 or self.place != 0:
            raise Fault("a barrier that is not aligned, or that another warp than the first makes")
        self.block_of.barriers[int(address)] = Barrier(count, count, arrived=np.zeros(self.block_of.warps, int))
        self.made.add(int(address))

    def barriers_made(self) -> None:
        for address in self.made:
            self.block_of.barriers[address].made_at = self.clock[0] + 1
        self.tick()

    def barrier_arrive(self, address: Any) -> None:
        barrier = self.block_of.barrier(address, self)
        if barrier.pending == 0:
            raise Fault("more warps arrive at a barrier than it is for")
        barrier.pending -= 1
        barrier.arrived = np.maximum(barrier.arrived, self.clock)
        self.tick()
        self.block_of.finish_phase(barrier)
        self.pause(lambda: True, "")

    def barrier_expect(self, address: Any, size: int) -> None:
        self.block_of.barrier(address, self).bytes_left += size
        self.barrier_arrive(address)

    def barrier_wait(self, address: Any, parity: Any) -> None:
        barrier = self.block_of.barrier(address, self)
        self.pause(
            lambda: barrier.phases % 2 != parity,
            f"the barrier at {int(address) - SHARED_START} in phase {barrier.phases}, for parity {parity}",
        )
        self.seen[int(address)] = barrier.phases
        for clock in barrier.known:
            self.learn(clock)

    def tick(self) -> None:
        self.clock = self.clock.copy()
        self.clock[self.place] += 1

    def _come(self, number: Any, threads: int) -> int:
        block, number = self.block_of, int(number)
        if not 0 <= number < 16:
            raise Fault(f"barrier {number} of the block, of which there are 16")
        block.numbered.setdefault(number, []).append(self.place)
        known = block.clocks_at.get(number, np.zeros(block.warps, int))
        block.clocks_at[number] = np.maximum(known, self.clock)
        self.tick()
        turn = block.passed.setdefault(number, 0)
        if len(block.numbered[number]) * 32 == threads:
            clock = block.clocks_at.pop(number)
            for place in block.numbered.pop(number):
                if block.running[place].waits_at == number:
                    block.running[place].learn(clock)
            block.passed[number] += 1
        return turn

    def meet(self, number: Any, threads: int) -> None:
        block, number = self.block_of, int(number)
        self.waits_at = number
        turn = self._come(number, threads)
        self.pause(lambda: block.passed[number] > turn, f"barrier {number} of the block")
        self.waits_at = None

    waits_at: int | None = None

    kept_bits: int | None = None
    """That sums of products of 8 bits keep; all of float32 by default."""

    def announce(self, number: Any, threads: int) -> None:
        self._come(number, threads)

    def warp_barrier(self) -> None:
        """Lanes are together already."""

    # Numbers that threads store
    def _chunks(self, address: Any, width: int, lanes: Any) -> np.ndarray:
        """Places of bytes, a row for each lane."""
        places = np.broadcast_to(address, 32).astype(np.int64)[lanes] - SHARED_START
        if (places % width).any() or (places < 0).any() or (places + width > self.block_of.content.size).any():
            raise Fault(f"an access of {width} bytes to shared memory that is not aligned, or outside")
        return places[:, None] + np.arange(width)

    def store_shared(self, address: Any, bits: Sequence[Any], valid: Any) -> None:
        block, lanes = self.block_of, np.broadcast_to(valid, 32)
        at = self._chunks(address, 4 * len(bits), lanes)
        chunks = np.unique(at // 16)
        self._claim(chunks)
        stored = np.stack([np.broadcast_to(x, 32) for x in bits], axis=1).astype(np.int32)[lanes]
        block.content[at] = stored.view(np.uint8).reshape(len(at), -1)
        block.source[chunks[0] : chunks[-1] + 1] = [None] * (chunks[-1] + 1 - chunks[0])
        block.writer[chunks], block.written[chunks] = self.place, self.clock[self.place] + 1
        self.tick()

    def load_shared(self, address: Any, count: int = 1) -> Any:
        block, at = self.block_of, self._chunks(address, 4 * count, np.ones(32, bool))
        chunks = np.unique(at // 16)
        if (block.written[chunks] < 0).any() or (self.clock[block.writer[chunks]] < block.written[chunks]).any():
            raise Fault("shared memory is read that no thread has written, or of which this warp has not been told")
        block.read[self.place, chunks] = self.clock[self.place] + 1
        self.tick()
        found = np.ascontiguousarray(block.content[at]).view(np.int32)
        return found[:, 0] if count == 1 else tuple(found.T)

    # Boxes
    def map_acquire(self, tensor_map: Any) -> None:
        self.maps.add(int(tensor_map))

    def box_load(self, to: Any, tensor_map: Any, barrier: Any, places: Sequence[Any]) -> None:
        address, to = int(tensor_map), int(to) - SHARED_START
        if address not in self.maps:
            raise Fault("a tensor map is used that this warp has not acquired")
        if address % 64:
            raise Fault("a tensor map that is not aligned")
        raw = bytes(self.buffers.load(np.array([address]), 128, 64)[0])
        magic, itemsize, start, *rest = struct.unpack_from(MAP_FORMAT, raw)
        if magic != MAP_MAGIC:
            raise Fault("no tensor map is there")
        sizes, strides, box = rest[:4], (itemsize, *rest[4:7]), rest[7:]
        if (to + SHARED_START) % 1024 or to < 0 or to + 128 * box[1] > self.block_of.content.size:
            raise Fault("a box that does not begin at a multiple of 1024 bytes, or leaves shared memory")
        index = np.meshgrid(*(np.arange(n) + int(p) for n, p in zip(box, places, strict=True)), indexing="ij")
        inside = np.logical_and.reduce([(i >= 0) & (i < n) for i, n in zip(index, sizes, strict=True)]).reshape(-1)
        addresses = start + np.add.reduce([i * s for i, s in zip(index, strides, strict=True)]).reshape(-1)
        content = np.zeros((inside.size, itemsize), np.uint8)
        if inside.any():
            content[inside] = self.buffers.load(addresses[inside], itemsize)
        steps = itemsize, 128, 128 * box[1], 0
        within = np.add.reduce([(i - int(p)) * s for i, p, s in zip(index, places, steps, strict=True)]).reshape(-1)
        at = swizzled(within[:, None] + np.arange(itemsize) + to + SHARED_START) - SHARED_START
        self._claim(chunks := np.unique(at // 16))
        if (self.block_of.written[chunks] >= 0).any():
            raise Fault("a box overwrites what threads have stored, with no fence between")
        self.block_of.is_arriving[chunks] = True
        self.block_of.content.reshape(-1, 16)[chunks] = 0xFF
        self.block_of.barrier(barrier, self)
        self.block_of.loads.append(Load(at.reshape(-1), content.reshape(-1), int(barrier)))
        if not self.block_of.late:
            self.block_of.land()
        self.pause(lambda: True, "")

    def _claim(self, chunks: np.ndarray) -> None:
        """Nobody may still read what is overwritten, and nobody may have done so unknown to this warp."""
        block = self.block_of
        for other in block.running:
            if any(np.isin(chunks, group.read).any() for group in other.groups_of_products):
                raise Fault("what products read that are under way is overwritten")
        if (block.read[:, chunks] > self.clock[:, None]).any():
            raise Fault("what this warp has not been told is free is overwritten")
        if block.is_arriving[chunks].any():
            raise Fault("a box is on its way to what is overwritten")

    # Copies of 16 bytes by single threads
    def copy_async(self, to: Any, address: Any, size: Any, wanted: Any = True, width: int = 16) -> None:
        to, address, size, wanted = (np.broadcast_to(x, 32) for x in (to, address, size, wanted))
        places, content = to[wanted].astype(np.int64) - SHARED_START, np.zeros((32, 16), np.uint8)
        if width != 16 or ((places + SHARED_START) % 16).any():
            raise Fault("a copy that is not of 16 bytes at a multiple of them")
        if (places < 0).any() or (places + 16 > self.block_of.content.size).any():
            raise Fault("a copy leaves shared memory")
        lanes = wanted & (size == 16)
        if not np.isin(size, (0, 16)).all():
            raise Fault("a copy of a part of 16 bytes")
        if lanes.any():
            content[lanes] = self.buffers.load(address[lanes], 16)
        chunks = places // 16
        if len(np.unique(chunks)) != len(chunks):
            raise Fault("two lanes copy to one place")
        self._claim(chunks)
        self.block_of.is_arriving[chunks] = True
        self.block_of.content.reshape(-1, 16)[chunks] = 0xFF
        self.copies.append((chunks, content[wanted]))

    def wait(self, running: int) -> None:
        block = self.block_of
        while len(self.groups) > running:
            for chunks, content in self.groups.pop(0):
                block.content.reshape(-1, 16)[chunks] = content
                block.is_arriving[chunks] = False
                for chunk in chunks:
                    block.source[chunk] = Written(self.place, None)
                self.copied.append(chunks)

    def show_copies(self) -> None:
        for chunks in self.copied:
            for chunk in chunks:
                self.block_of.source[chunk] = Written(self.place, self.clock[self.place] + 1)
        self.copied = []
        self.tick()

    # Registers
    def registers(self, count: int, *, more: bool) -> None:
        block = self.block_of
        self.together.append(("registers", count))
        if count % 8 or not 24 <= count <= 256 or (count > block.registers[self.place]) != more:
            raise Fault(f"registers from {block.registers[self.place]} to {count}")
        self.pause(
            lambda: not more or 32 * (sum(block.registers) + count - block.registers[self.place]) <= POOL, f"{count} registers a thread"
        )
        block.registers[self.place] = count

    # Products
    def products_begin(self, sums: Sequence[Any]) -> tuple[Any, ...]:
        self.together.append(("begin",))
        self.fenced = self.operations
        return tuple(sums)

    def products_start(self, dtype: str, steps: Any, sums: Sequence[Any], left: Any, right: Any) -> tuple[Any, ...]:
        self.together.append(("start", dtype, steps, *((int(left), int(right)) if steps.left else (int(right),))))
        if self.fenced < 0:
            raise Fault("products before a fence")
        for x in (*sums, *([] if steps.left else left)):
            if self.born.get(id(x), (0, x))[0] > self.fenced:
                raise Fault("products of registers that were written since the last fence")
        made = tuple(np.full(32, np.nan, np.float32) for _ in range(steps.registers))
        chunks, run = self._products(dtype, steps, tuple(sums), left, right)
        self.groups_of_products.append(Products(made, np.unique(chunks), run))
        return made

    def _products(
        self, dtype: str, steps: Any, sums: tuple[Any, ...], left: Any, right: Any
    ) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
        width = 1 if dtype == FLOAT8 else 2
        if width == 1 and not (steps.right_is_rows and steps.left_is_rows):
            raise Fault("a product of 8 bits takes rows alone")
        of_left = by_columns if steps.left_is_rows else lambda descriptor, rows, width: by_rows(descriptor, rows).T
        lefts = [swizzled(of_left(int(left) + step, 64, width))[16 * (self.place % 4) :][:16] for step in steps.left]
        rights = [
            swizzled(
                by_columns(int(right) + step, steps.columns, width) if steps.right_is_rows else by_rows(int(right) + step, steps.columns)
            )
            for step in steps.right
        ]
        touched = np.concatenate([(x - SHARED_START).reshape(-1) // 16 for x in (*lefts, *rights)])
        if touched.min() < 0 or touched.max() >= len(self.block_of.source):
            raise Fault("products read outside shared memory")

        def run() -> np.ndarray:
            total = np.zeros((16, steps.columns), np.float32)
            if not steps.is_new:
                total[sum_rows(steps.columns), sum_columns(steps.columns)] = np.stack([np.broadcast_to(x, 32) for x in sums])
            for k, of_right in enumerate(rights):
                a = self._numbers(lefts[k], dtype) if lefts else left_of(left[4 * k : 4 * k + 4], dtype)
                b = self._numbers(of_right, dtype)
                total = total + a @ (b.T if steps.right_is_rows else b)
                if dtype == FLOAT8 and self.kept_bits is not None:
                    fraction, exponent = np.frexp(total)
                    total = np.ldexp(np.trunc(np.ldexp(fraction, self.kept_bits)), exponent - self.kept_bits)
            return total[sum_rows(steps.columns), sum_columns(steps.columns)]

        return touched, run

    def _numbers(self, addresses: np.ndarray, dtype: str) -> np.ndarray:
        content = self.block_of.content
        places = addresses - SHARED_START
        if dtype == FLOAT8:
            return Tensor(FLOAT8, content[places]).values().astype(np.float32)
        bits = content[places].astype(np.uint16) | content[places + 1].astype(np.uint16) << 8
        return bits.view(np.float16).astype(np.float32) if dtype == "float16" else (bits.astype(np.uint32) << 16).view(np.float32)

    def products_wait(self, sums: Sequence[Any], running: int) -> tuple[Any, ...]:
        self.together.append(("wait", running))
        block = self.block_of
        while len(self.groups_of_products) > running:
            group = self.groups_of_products[0]
            self._check_read(group.read)
            for register, x in zip(group.sums, group.run(), strict=True):
                register[...] = x
            self.groups_of_products.pop(0)
            block.read[self.place, group.read] = self.clock[self.place] + 1
        self.tick()
        self.pause(lambda: True, "")
        return tuple(sums)

    def made_before(self, weight: Any) -> None:
        """Order is kept here."""
        if np.any(weight < 0):
            raise Fault("a sum of weights is negative")

    def _check_read(self, chunks: np.ndarray) -> None:
        block = self.block_of
        if block.is_arriving[chunks].any():
            raise Fault("products read what has not arrived")
        for chunk in chunks:
            source = block.source[chunk]
            if source is None:
                raise Fault("products read what was never written")
            if isinstance(source, Written):
                if source.shown is None:
                    raise Fault("products read copies that were not shown to them")
                if self.clock[source.place] < source.shown:
                    raise Fault("products read copies of which this warp does not know")
                continue
            if self.seen.get(source[0], 0) <= source[1]:
                raise Fault("products read what this warp has not waited for")

    def under_way(self) -> set[int]:
        """Registers that are not to be touched."""
        return {id(x) for group in self.groups_of_products for x in group.sums}
