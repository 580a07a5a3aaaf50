"""The frames of a video through a convolution, each by itself, and then averaged with learned weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn._core import Array, Booleans, Grads, Pullback, Random, Sample, mechanism
from refattn.attention.score.rule import Attended
from refattn.attention.video.temporal import temporal_attention
from refattn.convolution.conv2d import conv2d
from refattn.primitives.activation import relu
from refattn.primitives.reductions import global_avg_pool


def _inputs(random: Random) -> dict[str, Any]:
    return {
        "x": random.normal((2, 4, 2, 4, 3)),
        "w_conv": random.normal((3, 2, 3, 2)),
        "w_frames": random.normal((2, 3)),
        "w_score": random.normal(2),
    }


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    mask = np.asarray([[True, True, True, True], [True, True, False, False]])
    yield Sample("plain", inputs)
    yield Sample("biases", {**inputs, "b_conv": random.normal(3), "b_hidden": random.normal(2)})
    yield Sample("frames missing", {**inputs, "mask": mask})


def _benchmark(random: Random) -> dict[str, Any]:
    weights = {"w_conv": random.normal((64, 3, 3, 3)), "w_frames": random.normal((32, 64)), "w_score": random.normal(32)}
    return {"x": random.normal((2, 8, 3, 56, 56)), **weights}


@mechanism(tags={"softmax"}, samples=_samples, benchmark=_benchmark)
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
