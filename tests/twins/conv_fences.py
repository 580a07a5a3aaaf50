"""Convolutions of arrays that end, and scratch memory that ends, where readable memory ends (`guard_pages`).

``python -m tests.twins.conv_fences pointwise 0 20`` calls kernels of one tap with the random arguments of seeds 0 to 19, forward and
backward; ``epilogue`` calls biases and activations.
"""

from __future__ import annotations

import sys

import numpy as np

from tests.twins.guard_pages import Fenced, all_fenced, fenced


def call_pointwise(seed):
    """One random call of each fence."""
    from refattn_numba.cpu.conv import epilogue, pointwise, problem
    from tests.twins import test_conv_pointwise

    pointwise.np = problem.np = epilogue.np = Fenced()
    pointwise.aligned = Fenced().aligned
    given, activation = test_conv_pointwise.draw(np.random.default_rng(seed))
    channels_last = not given["x"].flags.c_contiguous
    for at_start in (False, True):
        moved = all_fenced({n: np.moveaxis(x, 1, -1) if n == "x" and channels_last else x for n, x in given.items()}, at_start=at_start)
        x = np.moveaxis(moved["x"], -1, 1) if channels_last else moved["x"]
        _, grads, _ = test_conv_pointwise.twin({**moved, "x": x}, activation=activation)
        assert all(np.isfinite(g).all() for g in grads.values())


def call_epilogue(seed):
    """Likewise."""
    from refattn_numba.cpu.conv import epilogue
    from refattn_numba.cpu.conv.problem import Epilogue

    random = np.random.default_rng(seed)
    shape, activation = tuple(map(int, random.integers(1, 20, 5))), (None, "relu", "silu", "gelu")[seed % 4]
    for at_start in (False, True):
        x = fenced(random.normal(size=shape).astype(np.float32), at_start=at_start)
        y = x if seed % 3 else np.moveaxis(x, -1, 1)
        done = epilogue.finish(y, Epilogue(fenced(np.ones(y.shape[1], np.float32), at_start=at_start), activation))
        d = epilogue.before_activation(done, activation, y)
        epilogue.bias_gradient(d)


if __name__ == "__main__":
    from refattn_numba.cpu import call as calls
    from refattn_numba.cpu import threads

    calls.aligned = threads.aligned = Fenced().aligned
    call = {"pointwise": call_pointwise, "epilogue": call_epilogue}[sys.argv[1]]
    for number in range(*map(int, sys.argv[2:])):
        call(number)
        print(number, flush=True)
