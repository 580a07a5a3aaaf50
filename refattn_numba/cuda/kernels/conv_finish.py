"""What follows a convolution where its kernel does not do it: bias and activation of rows of channels, and the gradient of the activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from refattn_numba.cuda import activations, fragments, memory, vectors
from refattn_numba.cuda.fragments import Element, bytes_of
from refattn_numba.cuda.kernel import Parameters
from refattn_numba.cuda.kernels.place import numbers


class Config(NamedTuple):
    """Sizes that are fixed when the kernel is compiled.

    Attributes
    ----------
    element : str
        Type of the numbers.
    vector : int
        Numbers of a thread: those of 16 bytes, or 1.
    threads : int
        In a block.
    """

    element: Element
    vector: int = 1
    threads: int = 128


FINISH: Parameters = (
    *numbers("pointer", "before", "bias", "target"),
    *numbers("int32", "rows", "channels", "activation"),
    *((name, "int64") for name in ("of_before", "of_target")),
)
"""Rows are `of_before` and `of_target` numbers apart."""


def finish(ops: Any, config: Config) -> Callable[..., None]:
    """``activation(before + bias)``. A thread has some channels of one row."""
    element, count, threads = config
    width = bytes_of(element)
    this_thread, this_block, quotient = ops(memory.thread()), ops(memory.block()), ops(memory.quotient())
    load, store, plus = ops(vectors.load(element, count)), ops(vectors.store(element, count)), ops(vectors.added(count))
    activate, nothing = activations.activated(ops, vectors.kind_of(count)), ops(fragments.zeros(vectors.kind_of(count)))

    def kernel(before, bias, target, rows, channels, activation, of_before, of_target):
        chunks = (channels + count - 1) // count
        index = this_block() * threads + this_thread()
        row = quotient(index, chunks)
        channel, left, added = (index - row * chunks) * count, rows - row, nothing()
        if bias != 0:
            added = load(bias + channel * width, left)
        x = plus(load(before + (row * of_before + channel) * width, left), added)
        store(target + (row * of_target + channel) * width, activate(x, activation), left)

    return kernel


BACK: Parameters = (
    *numbers("pointer", "before", "d_after", "target"),
    *numbers("int32", "rows", "channels", "activation"),
    *((name, "int64") for name in ("of_before", "of_d_after", "of_target")),
)
"""ReLU may have its result in `before`."""


def back(ops: Any, config: Config) -> Callable[..., None]:
    """The cotangent of what the activation is given. A thread has some channels of one row."""
    element, count, threads = config
    width = bytes_of(element)
    this_thread, this_block, quotient = ops(memory.thread()), ops(memory.block()), ops(memory.quotient())
    load, store = ops(vectors.load(element, count)), ops(vectors.store(element, count))
    pull_back = activations.pulled_back(ops, vectors.kind_of(count))

    def kernel(before, d_after, target, rows, channels, activation, of_before, of_d_after, of_target):
        chunks = (channels + count - 1) // count
        index = this_block() * threads + this_thread()
        row = quotient(index, chunks)
        channel, left = (index - row * chunks) * count, rows - row
        x = load(before + (row * of_before + channel) * width, left)
        dy = load(d_after + (row * of_d_after + channel) * width, left)
        store(target + (row * of_target + channel) * width, pull_back(x, dy, activation), left)

    return kernel
