"""The frames of a video averaged with learned weights, after the places of each frame or after a convolution of each frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, BadCall, Booleans, Grads, Pullback, Random, Sample, mechanism
from refattn._core.tree import pick
from refattn.attention.score.region import region_attention
from refattn.attention.score.rule import Attended
from refattn.convolution.conv2d import conv2d
from refattn.primitives.activation import relu
from refattn.primitives.reductions import global_avg_pool


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


class Seen(NamedTuple):
    """The attended features, how much each place counted in its frame, and each frame in its video."""

    output: Array
    spatial_weights: Array
    temporal_weights: Array


def _weights(random: Random, *, state: bool = True) -> PoolingWeights:
    w_frames, w_score, w_state, b_hidden = random.normal((3, 4)), random.normal(3), random.normal((3, 6)), random.normal(3)
    return PoolingWeights(w_frames, w_score, w_state if state else None, b_hidden)


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


def _spatial_samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 3, 5, 4)), "spatial": _weights(random, state=False), "temporal": _weights(random, state=False)}
    asked = {**inputs, "spatial": _weights(random), "temporal": _weights(random)._replace(b_hidden=None), "state": random.normal((2, 6))}
    mask = random.booleans(0.6, (2, 3, 5))
    mask[0, 1] = False
    mask[1] = False
    yield Sample("plain", inputs)
    yield Sample("state", asked)
    yield Sample("state over time alone", {**asked, "spatial": inputs["spatial"]})
    yield Sample("state over space alone", {**asked, "temporal": inputs["temporal"]})
    yield Sample("places and frames missing", {**asked, "mask": mask})
    yield Sample("one video", {**inputs, "x": inputs["x"][0]})


def _spatial_bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = {"x": random.normal((2, 3, 5, 4)), "spatial": _weights(random), "temporal": _weights(random)}
    neither = {name: _weights(random, state=False) for name in ("spatial", "temporal")}
    yield BadCall("no state", inputs, ValueError, "w_state is given, but state is None")
    yield BadCall("a state for neither", {**inputs, **neither, "state": random.normal((2, 6))}, ValueError, "state is given, but neither")


def _cnn_inputs(random: Random) -> dict[str, Any]:
    return {
        "x": random.normal((2, 4, 2, 4, 3)),
        "w_conv": random.normal((3, 2, 3, 2)),
        "w_frames": random.normal((2, 3)),
        "w_score": random.normal(2),
    }


def _cnn_samples(random: Random) -> Iterator[Sample]:
    inputs = _cnn_inputs(random)
    mask = np.asarray([[True, True, True, True], [True, True, False, False]])
    yield Sample("plain", inputs)
    yield Sample("biases", {**inputs, "b_conv": random.normal(3), "b_hidden": random.normal(2)})
    yield Sample("frames missing", {**inputs, "mask": mask})


def _benchmark(random: Random) -> dict[str, Any]:
    weights = {"w_frames": random.normal((256, 512)), "w_score": random.normal(256), "b_hidden": random.normal(256)}
    return {"x": random.normal((16, 32, 512)), **weights}


def _spatial_benchmark(random: Random) -> dict[str, Any]:
    spatial, temporal = (PoolingWeights(random.normal((128, 256)), random.normal(128)) for _ in range(2))
    return {"x": random.normal((4, 16, 49, 256)), "spatial": spatial, "temporal": temporal}


def _cnn_benchmark(random: Random) -> dict[str, Any]:
    weights = {"w_conv": random.normal((64, 3, 3, 3)), "w_frames": random.normal((32, 64)), "w_score": random.normal(32)}
    return {"x": random.normal((2, 8, 3, 56, 56)), **weights}


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


@mechanism(tags={"softmax"}, samples=_spatial_samples, bad_calls=_spatial_bad_calls, benchmark=_spatial_benchmark)
def spatial_temporal_attention(
    x: Array, spatial: PoolingWeights, temporal: PoolingWeights, state: Array | None = None, *, mask: Booleans | None = None
) -> tuple[Seen, Pullback]:
    r"""Average the places of each frame, then the frames of the video, each with learned weights.

    Parameters
    ----------
    x : array, shape (..., frames, patches, value_dim)
        Features at each place of each frame.
    spatial : PoolingWeights
        Weights of the attention over the places of a frame.
    temporal : PoolingWeights
        Weights of the attention over the frames.
    state : array or None, shape (..., query_dim), optional
        Read by each of the two whose weights have a `w_state`.
    mask : bool array or None, broadcastable to (..., frames, patches), optional
        True where there is a place. A frame that has none is missing.

    Returns
    -------
    output : array, shape (..., value_dim)
        The attended features.
    spatial_weights : array, shape (..., frames, patches)
        How much each place counted in its frame.
    temporal_weights : array, shape (..., frames)
        How much each frame counted.

    Notes
    -----
    Both are `temporal_attention`, with places in the part of frames in the first.

    .. math::

        f_t = \sum_p \alpha_{t p} x_{t p}, \quad y = \sum_t \beta_t f_t, \qquad
        \bar f_t = \beta_t \bar y + \Bigl(\frac{\partial \beta}{\partial f_t}\Bigr)^\top \bar\beta, \quad
        \bar x_{t p} = \alpha_{t p} \bar f_t + \Bigl(\frac{\partial \alpha_t}{\partial x_{t p}}\Bigr)^\top \bar\alpha_t

    where :math:`\bar\beta_t` is its own cotangent and :math:`f_t^\top \bar y`, and :math:`\bar\alpha_{t p}` likewise.

    References
    ----------
    .. [1] Xu et al., "Show, Attend and Tell: Neural Image Caption Generation with Visual Attention", ICML 2015, for the places.
       arXiv:1502.03044.
    .. [2] Yao et al., "Describing Videos by Exploiting Temporal Structure", ICCV 2015, for the frames. arXiv:1502.08029.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x, mean = np.array([[[0.0], [2.0]], [[6.0], [8.0]]]), refattn.PoolingWeights(np.zeros((1, 1)), np.zeros(1))
    >>> refattn.spatial_temporal_attention(x, mean, mean).output
    array([4.])
    """
    if state is not None and spatial.w_state is None and temporal.w_state is None:
        raise ValueError("state is given, but neither spatial nor temporal has a w_state")
    of_frames = None if state is None or spatial.w_state is None else np.broadcast_to(state[..., None, :], (*x.shape[:-2], state.shape[-1]))
    of_video = None if temporal.w_state is None else state
    places = None if mask is None else np.broadcast_to(mask, x.shape[:-1])
    there = None if places is None else np.asarray(places.any(axis=-1))
    seen, spatial_pullback = temporal_attention.vjp(x, *spatial, of_frames, mask=places)
    attended, temporal_pullback = temporal_attention.vjp(seen.output, *temporal, of_video, mask=there)

    def pullback(d_output: Array, d_spatial: Array, d_temporal: Array) -> Grads:
        d_frames = temporal_pullback(d_output, d_temporal)
        d_places = spatial_pullback(d_frames["x"], d_spatial)
        d_states = [d_frames["state"]] if "state" in d_frames else []
        d_states += [d_places["state"].sum(axis=-2)] if "state" in d_places else []
        grads = {"x": d_places["x"], "spatial": pick(PoolingWeights, d_places), "temporal": pick(PoolingWeights, d_frames)}
        return {**grads, "state": sum(d_states[1:], d_states[0])} if d_states else grads

    return Seen(attended.output, seen.weights, attended.weights), pullback


@mechanism(tags={"softmax"}, samples=_cnn_samples, benchmark=_cnn_benchmark)
def frame_cnn_temporal_attention(
    x: Array,
    w_conv: Array,
    w_frames: Array,
    w_score: Array,
    b_conv: Array | None = None,
    b_hidden: Array | None = None,
    *,
    mask: Booleans | None = None,
) -> tuple[Attended, Pullback]:
    r"""Convolve each frame of a video by itself, average it to one vector, and average the frames with learned weights.

    Parameters
    ----------
    x : array, shape (batch, frames, in_channels, height, width)
        Videos.
    w_conv : array, shape (channels, in_channels, kernel_height, kernel_width)
        Kernels, the same for all frames.
    w_frames : array, shape (hidden_dim, channels)
        Weights of a frame's vector in the attention.
    w_score : array, shape (hidden_dim)
        Weights of the hidden units.
    b_conv : array or None, shape (channels), optional
        Bias of the convolution.
    b_hidden : array or None, shape (hidden_dim), optional
        Added before the tanh of the attention.
    mask : bool array or None, broadcastable to (batch, frames), optional
        True where there is a frame; what fills up a shorter video is not read. A video that has none gives 0.

    Returns
    -------
    output : array, shape (batch, channels)
        One vector for each video.
    weights : array, shape (batch, frames)
        How much each frame counted.

    Notes
    -----
    Sizes: ``height >= kernel_height``, ``width >= kernel_width``.

    The frames of all videos are one batch of images for the network, which is `conv2d`, `relu` and `global_avg_pool`. After a
    deeper one, `temporal_attention` stands in the same way.

    .. math::

        f_t = \operatorname{mean}(\operatorname{relu}(w * x_t + b)), \quad y = \sum_t \alpha_t f_t, \qquad
        \bar f_t = \alpha_t \bar y + \Bigl(\frac{\partial \alpha}{\partial f_t}\Bigr)^\top \bar\alpha

    with :math:`\alpha` and its cotangents as in `temporal_attention`, and those of the network as in its parts.

    References
    ----------
    .. [1] Yao et al., "Describing Videos by Exploiting Temporal Structure", ICCV 2015, for the attention over frames.
       arXiv:1502.08029.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x, blind = np.array([1.0, 3.0, np.nan]).reshape(1, 3, 1, 1, 1), (np.zeros((1, 1)), np.zeros(1))
    >>> refattn.frame_cnn_temporal_attention(x, np.ones((1, 1, 1, 1)), *blind, mask=np.array([True, True, False])).output
    array([[2.]])
    """
    batch, frames = x.shape[:2]
    there = np.broadcast_to(True if mask is None else mask, (batch, frames))[..., None, None, None]
    images = np.where(there, x, 0).reshape(batch * frames, *x.shape[2:])
    maps, conv_pullback = conv2d.vjp(images, w_conv, b_conv)
    active, relu_pullback = relu.vjp(maps)
    vectors, pool_pullback = global_avg_pool.vjp(active)
    features = vectors.reshape(batch, frames, vectors.shape[-1])
    attended, attention_pullback = temporal_attention.vjp(features, w_frames, w_score, None, b_hidden, mask=mask)

    def pullback(d_output: Array, d_weights: Array) -> Grads:
        d = attention_pullback(d_output, d_weights)
        d_maps = relu_pullback(pool_pullback(d["x"].reshape(vectors.shape))["x"])["x"]
        d_conv = conv_pullback(d_maps)
        d_x = np.where(there, d_conv["x"].reshape(x.shape), 0)
        return {**d, "x": d_x, "w_conv": d_conv["weight"], "b_conv": d_conv.get("bias")}

    return attended, pullback
