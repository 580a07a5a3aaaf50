"""Attention of the patches of a video to all patches of all frames at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, Grads, Pullback, Random, Sample, mechanism
from refattn.attention.video.sequences import Video, over_sequences
from refattn.blocks.draws import attention_weights, norm_weights
from refattn.blocks.sublayers import self_attention
from refattn.blocks.weights import AttentionWeights, NormWeights


class JointWeights(NamedTuple):
    """Weights of `joint_space_time_attention`.

    Attributes
    ----------
    attention : AttentionWeights
        Of the attention.
    norm : NormWeights
        Of the norm before it.
    """

    attention: AttentionWeights
    norm: NormWeights


def _weights(random: Random, model: int = 4, *, biases: bool = True) -> JointWeights:
    return JointWeights(attention_weights(random, model, biases=biases), norm_weights(random, model))


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 3, 2, 4)), "weights": _weights(random), "num_heads": 2}
    yield Sample("plain", inputs)
    yield Sample("no biases", {**inputs, "weights": _weights(random, biases=False)._replace(norm=NormWeights()), "eps": 0.25})
    yield Sample("one video", {**inputs, "x": inputs["x"][0], "num_heads": 1})


def _class_samples(random: Random) -> Iterator[Sample]:
    for sample in _samples(random):
        x = sample.arguments["x"]
        yield Sample(sample.name, {**sample.arguments, "class_token": random.normal((*x.shape[:-3], x.shape[-1]))})


def _benchmark(random: Random) -> dict[str, Any]:
    return {"x": random.normal((1, 8, 49, 256)), "weights": _weights(random, 256), "num_heads": 8}


def _class_benchmark(random: Random) -> dict[str, Any]:
    return {**_benchmark(random), "class_token": random.normal((1, 256))}


def _joint(x: Array, class_token: Array | None, weights: JointWeights, num_heads: int, eps: float) -> tuple[Video, Pullback]:
    """All patches, and the class token where there is one, as one sequence."""
    *lead, frames, patches, model_dim = x.shape
    attention = self_attention(weights.attention, num_heads=num_heads)
    flat, flat_pullback = over_sequences(x.reshape(*lead, 1, frames * patches, model_dim), class_token, attention, weights.norm, eps)

    def pullback(d_x: Array, d_class: Array) -> Grads:
        d = flat_pullback(d_x.reshape(flat.output.shape), d_class[..., None, :, :])
        return {"x": d["x"].reshape(x.shape), "class_token": d["class_token"], "weights": JointWeights(d["weights"], d["norm"])}

    return Video(flat.output.reshape(x.shape), flat.class_token[..., 0, :, :]), pullback


@mechanism(tags={"softmax", "quadratic"}, samples=_samples, benchmark=_benchmark)
def joint_space_time_attention(x: Array, weights: JointWeights, *, num_heads: int, eps: float = 1e-5) -> tuple[Array, Pullback]:
    r"""Let each patch of a video look at all patches of all frames.

    Parameters
    ----------
    x : array, shape (..., frames, patches, model_dim)
        Patches.
    weights : JointWeights
        Weights of attention and norm.
    num_heads : positive int
        Heads of the attention.
    eps : non-negative float, optional
        Added to the variance in the norm.

    Returns
    -------
    array, shape (..., frames, patches, model_dim)
        Patches, each with what it has seen added.

    Notes
    -----
    Sizes: ``model_dim >= 1``.

    The paper's block goes on with a residual around a network: `feed_forward` of `layer_norm`.

    .. math::

        y = x + f(N(x)), \qquad \bar x = \bar y + N^*(f^*(\bar y))

    where N is the layer norm, f is `multi_head_attention` over all patches as one sequence, and stars are pullbacks.

    References
    ----------
    .. [1] Bertasius, Wang, Torresani, "Is Space-Time Attention All You Need for Video Understanding?", ICML 2021, eqs. (5), (7)
       and (8), here without the class token. arXiv:2102.05095.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x, eye = np.array([[[0.0, 2.0]], [[4.0, 0.0]]]), np.eye(2)
    >>> weights = refattn.JointWeights(refattn.AttentionWeights(0 * eye, eye, eye, eye), refattn.NormWeights())
    >>> refattn.joint_space_time_attention(x, weights, num_heads=1, eps=0.0)  # the mean of (-1, 1) and (1, -1) is added
    array([[[0., 2.]],
    <BLANKLINE>
           [[4., 0.]]])
    """
    made, pullback = _joint(x, None, weights, num_heads, eps)
    return made.output, lambda dy: pullback(dy, np.zeros_like(made.class_token))


@mechanism(tags={"softmax", "quadratic"}, samples=_class_samples, benchmark=_class_benchmark)
def joint_space_time_attention_with_class_token(
    x: Array, class_token: Array, weights: JointWeights, *, num_heads: int, eps: float = 1e-5
) -> tuple[Video, Pullback]:
    r"""Let each patch of a video and a token that stands for all of it look at this token and at all patches of all frames.

    Parameters
    ----------
    x : array, shape (..., frames, patches, model_dim)
        Patches.
    class_token : array, shape (..., model_dim)
        The token from which the video is classified.
    weights : JointWeights
        Weights of attention and norm.
    num_heads : positive int
        Heads of the attention.
    eps : non-negative float, optional
        Added to the variance in the norm.

    Returns
    -------
    output : array, shape (..., frames, patches, model_dim)
        Patches, each with what it has seen added.
    class_token : array, shape (..., model_dim)
        The token, with what it has seen added.

    Notes
    -----
    Sizes: ``model_dim >= 1``.

    .. math::

        [c', y] = [c, x] + f(N([c, x])), \qquad [\bar c, \bar x] = [\bar c', \bar y] + N^*(f^*([\bar c', \bar y]))

    where N is the layer norm, f is `multi_head_attention` over all tokens as one sequence, and stars are pullbacks.

    References
    ----------
    .. [1] Bertasius, Wang, Torresani, "Is Space-Time Attention All You Need for Video Understanding?", ICML 2021, eqs. (5), (7)
       and (8). arXiv:2102.05095.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x, token, eye = np.array([[[0.0, 2.0]]]), np.array([4.0, 0.0]), np.eye(2)
    >>> weights = refattn.JointWeights(refattn.AttentionWeights(0 * eye, eye, 2 * eye, eye), refattn.NormWeights(shift=np.ones(2)))
    >>> refattn.joint_space_time_attention_with_class_token(x, token, weights, num_heads=1, eps=0.0).class_token
    array([6., 2.])
    """
    made, pullback = _joint(x, class_token, weights, num_heads, eps)
    return Video(made.output, made.class_token[..., 0, :]), lambda d_x, d_class: pullback(d_x, d_class[..., None, :])
