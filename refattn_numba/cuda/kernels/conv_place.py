"""Moves the numbers of an array to another layout of memory, with a border or without it, and the gradient of that border.

Arrays have six axes, (groups, batch, depth, height, width, channels), at any steps. A thread has a few channels of one position: where
they follow one another in memory it moves 16 bytes at once, and where positions do, neighbouring lanes have neighbouring positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refattn_numba.cuda import fragments, memory, vectors
from refattn_numba.cuda.fragments import bytes_of
from refattn_numba.cuda.kernel import Parameters
from refattn_numba.cuda.kernels.conv_finish import Config
from refattn_numba.cuda.kernels.depthwise import AXES
from refattn_numba.cuda.kernels.place import numbers

SIX = ("group", "batch", *AXES, "channel")

PARAMETERS: Parameters = (
    *numbers("pointer", "source", "target"),
    *numbers("int32", "groups", "batch", *(f"{name}_{axis}" for name in ("target", "source", "low", "high") for axis in AXES)),
    *numbers("int32", "channels", "mode", "by_channel", "source_vectors", "target_vectors"),
    *numbers("int64", *(f"of_{name}_{axis}" for name in ("source", "target") for axis in SIX)),
)
"""`low` and `high` are the border's widths; `by_channel`, whether neighbouring lanes have neighbouring channels, `..._vectors`, whether the
channels of a thread are 16 bytes in a row."""


def _places(ops: Any, config: Config) -> Callable[..., Any]:
    """The function that says which position a thread has, from its number: axes, first channel, and how many are left of these."""
    count, quotient, smaller = config.vector, ops(memory.quotient()), ops(vectors.smaller())

    def places(index: Any, groups: Any, batch: Any, depth: Any, height: Any, width: Any, channels: Any, by_channel: Any) -> Any:
        chunks, positions = (channels + count - 1) // count, groups * batch * depth * height * width
        slow = quotient(index, chunks if by_channel else positions)
        fast = index - slow * (chunks if by_channel else positions)
        chunk, position = (fast, slow) if by_channel else (slow, fast)
        row = quotient(position, width)
        plane = quotient(row, height)
        example = quotient(plane, depth)
        group = quotient(example, batch)
        left = smaller(channels - chunk * count, (positions - position) * count)
        return group, example - group * batch, plane - example * depth, row - plane * height, position - row * width, chunk * count, left

    return ops.function(places)


def place(ops: Any, config: Config) -> Callable[..., None]:
    """Each position of the target gets the one of the source that stands there, or zeros."""
    element, count, threads = config
    size = bytes_of(element)
    this_thread, this_block = ops(memory.thread()), ops(memory.block())
    places, smaller, border = _places(ops, config), ops(vectors.smaller()), ops(vectors.border_place())
    load, load_apart = ops(vectors.load(element, count)), ops(vectors.load_apart(element, count))
    store, store_apart = ops(vectors.store(element, count)), ops(vectors.store_apart(element, count))

    def kernel(
        source, target, groups, batch,
        target_d, target_h, target_w, source_d, source_h, source_w, low_d, low_h, low_w, high_d, high_h, high_w,
        channels, mode, by_channel, source_vectors, target_vectors,
        of_source_group, of_source_batch, of_source_d, of_source_h, of_source_w, of_source_channel,
        of_target_group, of_target_batch, of_target_d, of_target_h, of_target_w, of_target_channel,
    ):  # fmt: skip
        g, b, d, h, w, c, left = places(
            this_block() * threads + this_thread(), groups, batch, target_d, target_h, target_w, channels, by_channel
        )
        at_d, at_h, at_w = border(d - low_d, source_d, mode), border(h - low_h, source_h, mode), border(w - low_w, source_w, mode)
        there = smaller(left, (smaller(smaller(at_d, at_h), at_w) + 1) * count)
        at = g * of_source_group + b * of_source_batch + at_d * of_source_d + at_h * of_source_h + at_w * of_source_w
        at = source + (at + c * of_source_channel) * size
        numbers = load(at, there) if source_vectors else load_apart(at, of_source_channel * size, there)
        to = g * of_target_group + b * of_target_batch + d * of_target_d + h * of_target_h + w * of_target_w
        to = target + (to + c * of_target_channel) * size
        if target_vectors:
            store(to, numbers, left)
        else:
            store_apart(to, of_target_channel * size, numbers, left)

    return kernel


def fold(ops: Any, config: Config) -> Callable[..., None]:
    """Each position of the target gets the sum of those of the source, which has the border, that are copies of it."""
    element, count, threads = config
    size = bytes_of(element)
    this_thread, this_block = ops(memory.thread()), ops(memory.block())
    places, smaller, copy = _places(ops, config), ops(vectors.smaller()), ops(vectors.source_of_border())
    load_apart, store_apart = ops(vectors.load_apart(element, count)), ops(vectors.store_apart(element, count))
    plus, nothing = ops(vectors.added(count)), ops(fragments.zeros(vectors.kind_of(count)))

    def kernel(
        source, target, groups, batch,
        target_d, target_h, target_w, source_d, source_h, source_w, low_d, low_h, low_w, high_d, high_h, high_w,
        channels, mode, by_channel, source_vectors, target_vectors,
        of_source_group, of_source_batch, of_source_d, of_source_h, of_source_w, of_source_channel,
        of_target_group, of_target_batch, of_target_d, of_target_h, of_target_w, of_target_channel,
    ):  # fmt: skip
        g, b, d, h, w, c, left = places(
            this_block() * threads + this_thread(), groups, batch, target_d, target_h, target_w, channels, by_channel
        )
        at = source + (g * of_source_group + b * of_source_batch + c * of_source_channel) * size
        sums = nothing()
        for i in range(1 + low_d + high_d):
            at_d = copy(d, i, low_d, target_d, mode)
            for j in range(1 + low_h + high_h):
                at_h = copy(h, j, low_h, target_h, mode)
                for k in range(1 + low_w + high_w):
                    at_w = copy(w, k, low_w, target_w, mode)
                    there = smaller(left, (smaller(smaller(at_d, at_h), at_w) + 1) * count)
                    place = at + (at_d * of_source_d + at_h * of_source_h + at_w * of_source_w) * size
                    sums = plus(sums, load_apart(place, of_source_channel * size, there))
        to = g * of_target_group + b * of_target_batch + d * of_target_d + h * of_target_h + w * of_target_w
        store_apart(target + (to + c * of_target_channel) * size, of_target_channel * size, sums, left)

    return kernel
