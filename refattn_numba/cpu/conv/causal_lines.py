"""Causal convolution of sequences that lie in memory position after position: lanes are positions.

What comes before a sequence is put before a copy of its beginning, and zeros behind a copy of the end of a cotangent; all else is
read where it lies. Outputs that are larger than the caches go past them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._core import Array, Integers
from refattn_numba.cpu.conv.windows import LINE_SUMS, line_products, line_sums, line_window, short_window, streamed_window
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.simd import between, filled, integers_at, lanes_of, load, next_of, pointer_to, store, total_of
from refattn_numba.cpu.sizes import ceil_to, smaller
from refattn_numba.cpu.tiles import fill

LONG = 4  # registers of `line_window`

LinesCall = np.dtype(
    [(name, np.int64) for name in ("x", "y", "dx", "weight", "turned", "bias", "state", "run", "counts", "n_runs", "sums")]
    + [(name, np.int64) for name in ("channels", "batch", "parts", "length", "taps", "tasks", "streams", "room", "memory_size")],
    align=True,
)
"""What the kernels are told. `turned` are the weights from their last tap on, `run` and `counts` are a table of them (`windows`)."""


@kernel
def lines(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """Fill y; a task is one channel of one example."""
    call = calls[0]
    memory = pointer_to(shared.ctypes.data, shared) + next_of(counters, 1) * call.memory_size
    fill(memory, call.memory_size, 0.0)
    while True:
        task = next_of(counters, 0)
        if task >= call.tasks:
            return
        x, out = pointer_to(call.x, memory) + task * call.length, call.y + task * call.length * shared.itemsize
        channel, past = task % call.channels, call.taps - 1
        start = pointer_to(call.bias, memory)[channel] if call.bias else 0.0
        weight = pointer_to(call.weight, memory) + channel * call.taps
        begin = smaller(call.length, ceil_to(past, lanes_of(memory)))
        load_begin(call, memory, x, task, begin)
        buffered(call, memory, weight, start, begin, pointer_to(out, memory))
        direct(call, x + (begin - past), weight, start, call.length - begin, out + begin * shared.itemsize, shared)


@compiled
def load_begin(call: Any, memory: Any, x: Any, sequence: int, count: int) -> None:
    """The positions before a sequence, and its first ones."""
    past = call.taps - 1
    for i in range(past):
        memory[i] = (pointer_to(call.state, memory) + sequence * past)[i] if call.state else 0.0
    for i in range(count):
        memory[past + i] = x[i]


@compiled
def buffered(call: Any, memory: Any, weight: Any, start: Any, count: int, out: Any) -> None:
    """Outputs that see what is in `memory` alone, through memory behind it."""
    lanes, run = lanes_of(memory), integers_at(call.run)
    for i in range(0, count, lanes):
        if i + lanes <= count:
            short_window(memory + i, 1, run, call.n_runs, weight, filled(out, start), out + i, lanes)
        else:
            short_window(memory + i, 1, run, call.n_runs, weight, filled(out, start), memory + call.room, lanes)
            for j in range(count - i):
                out[i + j] = memory[call.room + j]


@compiled
def direct(call: Any, source: Any, weight: Any, start: Any, count: int, address: int, like: Any) -> None:
    """Outputs whose inputs all lie in the array from `source` on."""
    out, run = pointer_to(address, like), integers_at(call.run)
    lanes, at = lanes_of(out), 0
    if count < lanes:
        for i in range(count):
            total = start
            for tap in range(call.taps):
                total += weight[tap] * source[i + tap]
            out[i] = total
        return
    if call.streams:
        short_window(source, 1, run, call.n_runs, weight, filled(out, start), out, lanes)
        at = -(address // like.itemsize) % lanes
        while at + LONG * lanes <= count:
            streamed_window(source + at, 1, run, call.n_runs, weight, filled(out, start), out + at, lanes)
            at += LONG * lanes
    else:
        while at + LONG * lanes <= count:
            line_window(source + at, 1, run, call.n_runs, weight, filled(out, start), out + at, lanes)
            at += LONG * lanes
    for i in range(at, count, lanes):
        at = smaller(i, count - lanes)
        short_window(source + at, 1, run, call.n_runs, weight, filled(out, start), out + at, lanes)


@kernel
def line_gradients(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """Fill dx, and add to `sums` (part, channel, taps and bias); a task is one channel of some examples, and y the cotangent."""
    call = calls[0]
    memory = pointer_to(shared.ctypes.data, shared) + next_of(counters, 1) * call.memory_size
    fill(memory, call.memory_size, 0.0)
    lanes, past, nothing = lanes_of(memory), call.taps - 1, 0.0
    sums = memory + (call.room + lanes)
    begin, end = smaller(call.length, ceil_to(past, lanes)), smaller(call.length, past)
    while True:
        task = next_of(counters, 0)
        if task >= call.tasks:
            return
        channel, part = task // call.parts, task % call.parts
        turned = pointer_to(call.turned, memory) + channel * call.taps
        for example in range(call.batch * part // call.parts, call.batch * (part + 1) // call.parts):
            sequence = example * call.channels + channel
            x, dy = pointer_to(call.x, memory) + sequence * call.length, pointer_to(call.y, memory) + sequence * call.length
            out = call.dx + sequence * call.length * shared.itemsize
            fill(sums, (call.taps + 1) * lanes, 0.0)
            load_begin(call, memory, x, sequence, begin)
            add_begin(call, memory, dy, begin, sums)
            add_rest(call, x + (begin - past), dy + begin, call.length - begin, sums)
            direct(call, dy, turned, nothing, call.length - end, out, shared)
            for i in range(2 * past):
                memory[i] = dy[call.length - end + i] if i < end else 0.0
            buffered(call, memory, turned, nothing, end, pointer_to(out, memory) + (call.length - end))
            made = pointer_to(call.sums, memory) + (part * call.channels + channel) * (call.taps + 1)
            for tap in range(call.taps + 1):
                made[tap] += total_of(load(sums, tap * lanes))


@compiled
def add_begin(call: Any, memory: Any, dy: Any, count: int, sums: Any) -> None:
    """The products of the first positions, one at a time in the first lane."""
    lanes = lanes_of(memory)
    for tap in range(call.taps):
        total = sums[tap * lanes]
        for i in range(count):
            total += dy[i] * memory[i + tap]
        sums[tap * lanes] = total
    for i in range(count):
        sums[call.taps * lanes] += dy[i]


@compiled
def add_rest(call: Any, source: Any, dy: Any, count: int, sums: Any) -> None:
    """Those of positions whose inputs all lie in the array."""
    lanes, run, counts, at = lanes_of(dy), integers_at(call.run), integers_at(call.counts), 0
    while at + LINE_SUMS * lanes <= count:
        line_sums(source + at, call.taps, dy + at, sums)
        at += LINE_SUMS * lanes
    while at + lanes <= count:
        line_products(source + at, 1, run, counts, dy + at, 0, between(load(sums, 0), 0, lanes - 1), sums)
        store(sums, call.taps * lanes, load(sums, call.taps * lanes) + load(dy, at))
        at += lanes
    for i in range(at, count):
        for tap in range(call.taps):
            sums[tap * lanes + i - at] += dy[i] * source[i + tap]
        sums[call.taps * lanes + i - at] += dy[i]
