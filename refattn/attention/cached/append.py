"""New rows at the end of what a cache holds of each sequence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn._core import Array, BadCall, Grads, Integers, Pullback, Random, Sample, mechanism


def _inputs(random: Random) -> dict[str, Any]:
    return {"cache": random.normal((2, 3, 6, 4)), "new": random.normal((2, 3, 2, 4)), "lengths": np.asarray([4, 1])}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    yield Sample("two positions", inputs)
    yield Sample("one cache", {name: x[0] for name, x in inputs.items()})
    yield Sample("around the end", {**inputs, "lengths": np.asarray([5, 12]), "circular": True})
    yield Sample("no position", {**inputs, "new": inputs["new"][..., :0, :]})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    wide = {**inputs, "new": random.normal((2, 3, 7, 4)), "circular": True}
    yield BadCall(
        "full", {**inputs, "lengths": np.asarray([5, 1])}, ValueError, "lengths runs from 1 to 5, but must be from 0 to 4: new has 2"
    )
    yield BadCall("negative", {**inputs, "lengths": np.asarray([4, -1])}, ValueError, "lengths runs from -1 to 4, but must be from 0 to 4")
    yield BadCall("around from nowhere", {**inputs, "lengths": np.asarray([4, -1]), "circular": True}, ValueError, "but must be 0 or more")
    yield BadCall("more than a cache", wide, ValueError, "new has 7 positions, but cache has 6")


@mechanism(samples=_samples, bad_calls=_bad_calls)
def append_to_cache(cache: Array, new: Array, lengths: Integers, *, circular: bool = False) -> tuple[Array, Pullback]:
    r"""Write the keys or values of new positions behind those that a cache holds.

    Parameters
    ----------
    cache : array, shape (..., kv_heads, key_len, head_dim)
        Keys or values of each sequence so far, with room behind them.
    new : array, shape (..., kv_heads, query_len, head_dim)
        Those of its next positions.
    lengths : int array, shape (...)
        How many positions each sequence had before.
    circular : bool, optional
        What does not fit behind the end goes to the start, over the oldest: the cache of a sliding window.

    Returns
    -------
    array, shape (..., kv_heads, key_len, head_dim)
        The cache after.

    Notes
    -----
    .. math::

        y_{n + i} = x_i, \quad y_j = c_j \text{ where nothing is written}, \qquad
        \bar x_i = \bar y_{n + i}, \quad \bar c_j = \bar y_j \text{ there, else } 0

    References
    ----------
    .. [1] ONNX, operator TensorScatter: "motivated by the requirements for KV cache updates".
       https://onnx.ai/onnx/operators/onnx__TensorScatter.html

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.append_to_cache(np.zeros((1, 4, 1)), np.ones((1, 2, 1)), np.array(1)).ravel()
    array([0., 1., 1., 0.])
    """
    count, room = new.shape[-2], cache.shape[-2]
    if count > room:
        raise ValueError(f"new has {count} positions, but cache has {room}")
    most = math.inf if circular else room - count
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= most:
        allowed = "0 or more" if circular else f"from 0 to {most}: new has {count} positions, and cache {room}"
        raise ValueError(f"lengths runs from {lengths.min()} to {lengths.max()}, but must be {allowed}")
    sequences = itertools.product(*map(range, lengths.shape))
    places = [(sequence, (lengths[sequence] + np.arange(count)) % max(room, 1)) for sequence in sequences]
    output = cache.copy()
    for sequence, rows in places:
        output[sequence][:, rows] = new[sequence]

    def pullback(dy: Array) -> Grads:
        d_cache, d_new = dy.copy(), np.zeros_like(new)
        for sequence, rows in places:
            d_cache[sequence][:, rows] = 0
            d_new[sequence] = dy[sequence][:, rows]
        return {"cache": d_cache, "new": d_new}

    return output, pullback
