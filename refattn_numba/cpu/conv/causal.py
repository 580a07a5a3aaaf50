"""Causal convolution of channels on their own, with a state, in the layout of memory in which sequences come.

Where channels lie next to one another, it is the depthwise convolution over a padding of zeros, and what a state adds to the first
positions: a product with a triangular matrix for each channel.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np

from refattn._core import Array, Grads, Integers, Pullback
from refattn.convolution.causal import CausalConvolved
from refattn_numba.cpu.call import Record, empty
from refattn_numba.cpu.conv import depthwise
from refattn_numba.cpu.conv.causal_lines import LinesCall, line_gradients, lines
from refattn_numba.cpu.conv.depthwise_axes import split
from refattn_numba.cpu.conv.problem import Epilogue, Problem
from refattn_numba.cpu.conv.run import in_order, is_channels_last
from refattn_numba.cpu.conv.windows import LENGTHS
from refattn_numba.cpu.conversion import STORED, narrowed, widened
from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.threads import run_tasks

CACHES = 1 << 22  # bytes of an output that goes past the caches


def convolve(x: Array, weight: Array, bias: Array | None = None, state: Array | None = None) -> tuple[CausalConvolved, Pullback]:
    """`refattn.causal_conv1d` and its pullback; numbers of 16 bits are computed in float32."""
    dtype = x.dtype
    if dtype.name not in STORED:
        return _convolve(x, weight, bias, state)
    (output, end), pullback = _convolve(*(None if a is None else in_order(widened, a) for a in (x, weight, bias, state)))  # type: ignore[arg-type]
    narrow = partial(in_order, partial(narrowed, dtype=dtype))

    def pullback_of_stored(d_output: Array, d_state: Array) -> Grads:
        grads = pullback(in_order(widened, d_output), widened(d_state))
        return {name: None if g is None else narrow(g) for name, g in grads.items()}

    return CausalConvolved(narrow(output), narrow(end)), pullback_of_stored


def _convolve(x: Array, weight: Array, bias: Array | None, state: Array | None) -> tuple[CausalConvolved, Pullback]:
    past, length = weight.shape[1] - 1, x.shape[2]
    weight, bias, state = (None if a is None else np.require(a, a.dtype.newbyteorder("="), ("C", "A")) for a in (weight, bias, state))  # type: ignore[assignment]
    by_channel = is_channels_last(x) and x.shape[1] * x.itemsize >= HOST.register_bytes
    x = np.require(x, x.dtype.newbyteorder("="), "A" if by_channel else ("C", "A"))
    forward, backward = (_pixels, _pixel_gradients) if by_channel else (_lines, _line_gradients)
    seen = _joined(state, x, past)
    output = forward(x, weight, bias, state)

    def pullback(d_output: Array, d_state: Array) -> Grads:
        dy = np.require(d_output, x.dtype, "A")
        dx, d_weight = backward(x, dy, weight, state)
        before = _before(dy, weight)
        new = min(past, length)
        dx[..., length - new :] += d_state[..., past - new :]
        before[..., length:] += d_state[..., : past - new]
        return {"x": dx, "weight": d_weight, "bias": None if bias is None else dy.sum(axis=(0, 2)), "state": before}

    pullback.reads_outputs = False  # type: ignore[attr-defined]
    return CausalConvolved(output, seen), pullback


def _joined(state: Array | None, x: Array, past: int) -> Array:
    """The last positions of both."""
    made = np.zeros((*x.shape[:2], past), x.dtype)
    new = min(past, x.shape[2])
    made[..., past - new :] = x[..., x.shape[2] - new :]
    if state is not None and new < past:
        made[..., : past - new] = state[..., new:]
    return made


def _triangle(weight: Array) -> Array:
    """What position i before a sequence adds to its output p: ``(channel, i, p)``."""
    past = weight.shape[1] - 1
    i, p = np.indices((past, past))
    return np.where(i >= p, weight[:, np.maximum(i - p, 0)], 0)


def _first(x: Array, past: int) -> Array:
    """The first positions by channel, (channel, batch, past); zeros behind the last."""
    made = np.zeros((x.shape[1], x.shape[0], past), x.dtype)
    count = min(past, x.shape[2])
    made[..., :count] = x[..., :count].transpose(1, 0, 2)
    return made


def _before(dy: Array, weight: Array) -> Array:
    """The gradient of the positions before a sequence."""
    past = weight.shape[1] - 1
    return np.ascontiguousarray((_first(dy, past) @ _triangle(weight).transpose(0, 2, 1)).transpose(1, 0, 2))


@lru_cache(256)
def _runs(taps: int) -> tuple[Integers, Integers]:
    """All taps, and how many runs have each of the lengths."""
    runs = [(place, len(found), place, 1) for place, found in split(0, list(range(taps)))]
    return np.array(runs, np.int64), np.array([sum(run[1] == length for run in runs) for length in LENGTHS], np.int64)


def _record(x: Array, weight: Array, state: Array | None, **arrays: Any) -> Record:
    (batch, channels, length), taps = x.shape, weight.shape[1]
    lanes = HOST.register_bytes // x.itemsize
    whole = -(-(taps - 1) // lanes) * lanes
    room = taps - 1 + whole + lanes
    size = -(-(room + lanes * (taps + 3)) // lanes) * lanes
    fields = {"channels": channels, "batch": batch, "length": length, "taps": taps, "room": room, "memory_size": size}
    record = Record({**fields, "streams": int(x.nbytes >= CACHES)}, layout=LinesCall)
    runs, counts = _runs(taps)
    record.fields["n_runs"] = len(runs)
    given = {"x": x, "run": runs, "counts": counts, "weight": weight, "state": state, **arrays}
    record.add(**{name: a for name, a in given.items() if a is not None})
    return record


def _lines(x: Array, weight: Array, bias: Array | None, state: Array | None) -> Array:
    y = empty(x.shape, x.dtype)
    tasks = x.shape[0] * x.shape[1]
    record = _record(x, weight, state, bias=bias, y=y).more(tasks=tasks)
    run_tasks(lines, record, has_options=False, tasks=tasks, cost=y.size * weight.shape[1], dtype=x.dtype)
    return y


def _line_gradients(x: Array, dy: Array, weight: Array, state: Array | None) -> tuple[Array, Array]:
    dx, (batch, channels, _), taps = empty(x.shape, x.dtype), x.shape, weight.shape[1]
    parts = max(1, min(batch, depthwise.PARTS // channels))
    sums = np.zeros((parts, channels, taps + 1), x.dtype)
    arrays = {"y": np.ascontiguousarray(dy), "dx": dx, "turned": np.ascontiguousarray(weight[:, ::-1]), "sums": sums}
    record = _record(x, weight, state, **arrays).more(tasks=channels * parts, parts=parts)
    run_tasks(line_gradients, record, has_options=False, tasks=channels * parts, cost=2 * x.size * taps, dtype=x.dtype)
    return dx, np.ascontiguousarray(sums.sum(axis=0)[:, :taps])


def _problem(x: Array, weight: Array) -> Problem:
    (batch, channels, length), taps = x.shape, weight.shape[1]
    one = 1, 1, 1
    return Problem(
        x.dtype, True, batch, channels, 1, 1, (1, 1, length), (1, 1, taps), (1, 1, length), one, one, (0, 0, taps - 1)
    )  # fmt: skip


def _five(x: Array) -> Array:
    return x[:, :, None, None, :]


def _pixels(x: Array, weight: Array, bias: Array | None, state: Array | None) -> Array:
    problem, past = _problem(x, weight), weight.shape[1] - 1
    y = depthwise.correlate(problem, _five(x), weight[:, None, None, None], Epilogue(bias)).output[:, :, 0, 0]
    if state is not None and past:
        count = min(past, x.shape[2])
        y[..., :count] += (state.transpose(1, 0, 2) @ _triangle(weight)).transpose(1, 0, 2)[..., :count]
    return y


def _pixel_gradients(x: Array, dy: Array, weight: Array, state: Array | None) -> tuple[Array, Array]:
    problem, past = _problem(x, weight), weight.shape[1] - 1
    given = np.moveaxis(np.ascontiguousarray(np.moveaxis(dy, 1, -1)), -1, 1)
    dx = depthwise.spread(problem, _five(given), weight[:, None, None, None], Epilogue()).output[:, :, 0, 0]
    d_weight = depthwise.weight_gradient(problem, _five(x), _five(given)).reshape(weight.shape)
    if state is not None and past:
        pairs = state.transpose(1, 2, 0) @ _first(dy, past)
        for tap in range(past):
            d_weight[:, tap] += np.trace(pairs, -tap, 1, 2)
    return dx, d_weight
