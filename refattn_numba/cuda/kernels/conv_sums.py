"""Sums of a convolution's backward pass in two steps, each by the same threads in the same order, so that results repeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from refattn_numba.cuda import fragments, memory, vectors
from refattn_numba.cuda.fragments import Element, bytes_of
from refattn_numba.cuda.kernel import Parameters
from refattn_numba.cuda.kernels.place import numbers


class Config(NamedTuple):
    """Sizes that are fixed when the kernel is compiled.

    Attributes
    ----------
    element : str
        Type of what is read or, for the sum of parts, of what is written.
    count : int
        Numbers of a thread: those of 16 bytes, or 1.
    threads : int
        In a block.
    """

    element: Element
    count: int = 1
    threads: int = 128


PARTS: Parameters = (*numbers("pointer", "partial", "total"), *numbers("int32", "size", "splits"))
"""`partial` is float32 (splits, size)."""


def parts(ops: Any, config: Config) -> Callable[..., None]:
    """The sum of the parts in their order. One thread a number."""
    element, threads, width = config.element, config.threads, bytes_of(config.element)
    this_thread, this_block, nothing = ops(memory.thread()), ops(memory.block()), ops(fragments.zeros(vectors.kind_of(1)))
    load, plus, store = ops(vectors.load("float32", 1)), ops(vectors.added(1)), ops(vectors.store(element, 1))

    def kernel(partial, total, size, splits):
        index = this_block() * threads + this_thread()
        left, sums = size - index, nothing()
        for split in range(splits):
            sums = plus(sums, load(partial + (split * size + index) * 4, left))
        store(total + index * width, sums, left)

    return kernel


ROWS: Parameters = (*numbers("pointer", "y", "partial"), *numbers("int32", "rows", "c_out", "splits"), ("y_w", "int64"))
"""The rows of y are `y_w` numbers apart; `partial` is float32 (splits, c_out)."""


def rows(ops: Any, config: Config) -> Callable[..., None]:
    """Of each channel the sum over the rows ``split, split + splits, ...``. A thread has some channels and one split."""
    element, count, threads = config
    width = bytes_of(element)
    this_thread, this_block, quotient = ops(memory.thread()), ops(memory.block()), ops(memory.quotient())
    load, plus, store = ops(vectors.load(element, count)), ops(vectors.added(count)), ops(vectors.store_apart("float32", count))
    nothing, smaller = ops(fragments.zeros(vectors.kind_of(count))), ops(vectors.smaller())

    def kernel(y, partial, rows, c_out, splits, y_w):
        chunks = (c_out + count - 1) // count
        index = this_block() * threads + this_thread()
        split = quotient(index, chunks)
        channel, sums = (index - split * chunks) * count, nothing()
        for turn in range((rows + splits - 1) // splits):
            row = split + turn * splits
            sums = plus(sums, load(y + (row * y_w + channel) * width, smaller(rows - row, splits - split)))
        store(partial + (split * c_out + channel) * 4, 4, sums, smaller(c_out - channel, (splits - split) * count))

    return kernel
