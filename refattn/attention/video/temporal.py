"""The frames of a video averaged with learned weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, BadCall, Booleans, Grads, Pullback, Random, Sample, mechanism
from refattn.attention.score.region import region_attention
from refattn.attention.score.rule import Attended


class PoolingWeights(NamedTuple):
    """Weights of `temporal_attention`.

    Attributes
    ----------
    w_frames : array, shape (hidden_dim, value_dim)
        Weights of what is averaged.
    w_score : array, shape (hidden_dim)
        Weights of the hidden units.
    w_state : array or None, shape (hidden_dim, query_dim)
        Weights of the state, where there is one.
    b_hidden : array or None, shape (hidden_dim)
        Added before the tanh.
    """

    w_frames: Array
    w_score: Array
    w_state: Array | None = None
    b_hidden: Array | None = None


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 5, 4)), "w_frames": random.normal((3, 4)), "w_score": random.normal(3)}
    asked = {**inputs, "w_state": random.normal((3, 6)), "b_hidden": random.normal(3), "state": random.normal((2, 6))}
    mask = random.booleans(0.6, (2, 5))
    mask[1] = False
    yield Sample("plain", inputs)
    yield Sample("state", asked)
    yield Sample("frames missing", {**inputs, "b_hidden": random.normal(3), "mask": mask})
    yield Sample("one video", {**asked, "x": inputs["x"][0], "state": asked["state"][0]})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = {"x": random.normal((2, 5, 4)), "w_frames": random.normal((3, 4)), "w_score": random.normal(3)}
    yield BadCall("no weights for the state", {**inputs, "state": random.normal((2, 6))}, ValueError, "state is given, but w_state is None")
    yield BadCall("no state", {**inputs, "w_state": random.normal((3, 6))}, ValueError, "w_state is given, but state is None")


def _benchmark(random: Random) -> dict[str, Any]:
    weights = {"w_frames": random.normal((256, 512)), "w_score": random.normal(256), "b_hidden": random.normal(256)}
    return {"x": random.normal((16, 32, 512)), **weights}


@mechanism(tags={"softmax"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def temporal_attention(
    x: Array,
    w_frames: Array,
    w_score: Array,
    w_state: Array | None = None,
    b_hidden: Array | None = None,
    state: Array | None = None,
    *,
    mask: Booleans | None = None,
) -> tuple[Attended, Pullback]:
    r"""Average the features of a video's frames, weighted by a network that reads a frame, and a state where there is one.

    Parameters
    ----------
    x : array, shape (..., frames, value_dim)
        Features of each frame, such as a convolutional network gives.
    w_frames : array, shape (hidden_dim, value_dim)
        Weights of a frame: one row for each hidden unit.
    w_score : array, shape (hidden_dim)
        Weights of the hidden units.
    w_state : array or None, shape (hidden_dim, query_dim), optional
        Weights of the state.
    b_hidden : array or None, shape (hidden_dim), optional
        Added before the tanh.
    state : array or None, shape (..., query_dim), optional
        State of a decoder before this word, or a question; None for a video that is classified.
    mask : bool array or None, broadcastable to (..., frames), optional
        True where there is a frame. A video that has none gives 0.

    Returns
    -------
    output : array, shape (..., value_dim)
        The attended features.
    weights : array, shape (..., frames)
        How much each frame counted.

    Notes
    -----
    It is `region_attention` with frames as regions; no state is a state that has no features. The authors' program has no mask in
    its softmax, so that frames that fill up a video take weight there; and it adds one number to all scores, without effect.

    .. math::

        e_t = w^\top \tanh(U x_t + W h + b), \quad \alpha = \operatorname{softmax}(e), \quad y = \sum_t \alpha_t x_t, \qquad
        \bar x_t = \alpha_t \bar y + U^\top \bar e_t\, w \odot (1 - \tanh^2), \quad
        \bar e_t = \alpha_t (x_t - y)^\top \bar y

    References
    ----------
    .. [1] Yao et al., "Describing Videos by Exploiting Temporal Structure", ICCV 2015: temporal attention, here as in the authors'
       program yaoli/arctic-capgen-vid. arXiv:1502.08029.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.temporal_attention(np.array([[-1e9], [1e9]]), np.ones((1, 1)), np.log([3.0]) / 2).weights
    array([0.25, 0.75])
    """
    if (state is None) != (w_state is None):
        given, missing = ("w_state", "state") if state is None else ("state", "w_state")
        raise ValueError(f"{given} is given, but {missing} is None")
    asked = np.zeros_like(x, shape=(*x.shape[:-2], 0)) if state is None else state
    w_asked = np.zeros_like(w_frames, shape=(len(w_frames), 0)) if w_state is None else w_state
    attended, region_pullback = region_attention.vjp(x, asked, w_frames, w_asked, w_score, b_hidden, mask=mask)

    def pullback(d_output: Array, d_weights: Array) -> Grads:
        d = region_pullback(d_output, d_weights)
        return {**d, "x": d["regions"], "w_frames": d["w_regions"]}

    return attended, pullback
