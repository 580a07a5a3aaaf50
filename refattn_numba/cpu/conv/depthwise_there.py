"""Depthwise convolution with lanes over channels of images that are read where they lie.

Blocks of rows of two pixels take all channels before the next two: x and y are read and written in their order, which processors fetch
ahead, and what a block reads again is in the first-level cache. What reaches beyond an image is copied with its padding to a patch.
"""

from __future__ import annotations

from typing import Any

from refattn_numba.cpu.conv.depthwise_axes import COUNTS
from refattn_numba.cpu.conv.windows import PAIR, ROWS, RUN, channel_block
from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.simd import filled, integers_at, lanes_of, load, pointer_to, store
from refattn_numba.cpu.sizes import smaller


@compiled
def fill_there(call: Any, unit: int, memory: Any, weights: Any) -> None:
    """All channels of one band, block by block, so that x is read in its order."""
    lanes, channels, first = lanes_of(memory), call.channels, unit % call.bands * call.band
    image = pointer_to(call.x, memory) + unit // call.bands * (call.in1 * call.in2 * channels)
    out = pointer_to(call.y, memory) + unit // call.bands * (call.out1 * call.out2 * channels)
    end = smaller(first + call.band, call.out1)
    for row in range(first, end, ROWS):
        y = smaller(row, end - ROWS)
        for column in range(0, call.out2, PAIR):
            x = smaller(column, call.out2 - PAIR)
            inside = is_inside(call, y, x)
            for channel in range(0, channels, lanes):
                c = smaller(channel, channels - lanes)
                place, step, right, runs = source_of(call, image, inside, y, x, c, memory)
                counts = integers_at(call.phases) + COUNTS
                start = load(pointer_to(call.bias, memory), c) if call.bias else filled(memory, 0.0)
                to, down = out + ((y * call.out2 + x) * channels + c), call.out2 * channels
                channel_block(place, step, right, runs, counts, weights + channel * call.taps, start, to, down, channels)


@compiled
def is_inside(call: Any, y: int, x: int) -> bool:
    """Whether all that a block reads exists."""
    top, left = y + call.lowest1, x + call.lowest2
    return top >= 0 and left >= 0 and top + ROWS + call.grid1 - 1 <= call.in1 and left + call.patch <= call.in2


@compiled
def source_of(call: Any, image: Any, inside: bool, y: int, x: int, c: int, patch: Any) -> tuple[Any, int, int, Any]:
    """Where the inputs of a block begin, the steps to the next row and pixel, and its runs: in x, or in a patch."""
    lanes, channels, wide = lanes_of(patch), call.channels, call.patch
    top, left, runs = y + call.lowest1, x + call.lowest2, integers_at(call.runs)
    if inside:
        return image + ((top * call.in2 + left) * channels + c), call.in2 * channels, channels, runs
    for i in range(ROWS + call.grid1 - 1):
        for j in range(wide):
            exists = 0 <= top + i < call.in1 and 0 <= left + j < call.in2
            found = load(image, ((top + i) * call.in2 + left + j) * channels + c) if exists else filled(patch, 0.0)
            store(patch, (i * wide + j) * lanes, found)
    return patch, wide * lanes, lanes, runs + integers_at(call.phases)[7] * RUN
