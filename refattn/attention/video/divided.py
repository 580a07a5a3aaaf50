"""Attention of the patches of a video over time, and then over space."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, mechanism
from refattn.attention.video.sequences import Video, over_sequences
from refattn.blocks.draws import attention_weights, norm_weights
from refattn.blocks.sublayers import Sublayer, self_attention
from refattn.blocks.weights import AttentionWeights, NormWeights
from refattn.primitives.linear import linear
from refattn.primitives.reductions import mean_over


class DividedWeights(NamedTuple):
    """Weights of `divided_space_time_attention`.

    Attributes
    ----------
    time : AttentionWeights
        Of the attention over time.
    space : AttentionWeights
        Of the attention over space.
    norm_time : NormWeights
        Of the norm before the attention over time.
    norm_space : NormWeights
        Of the norm before the attention over space.
    w_time : array or None, shape (model_dim, model_dim)
        One more layer after the attention over time, before the sum: the authors' program has it, the paper has not.
    b_time : array or None, shape (model_dim)
        Bias of this layer.
    """

    time: AttentionWeights
    space: AttentionWeights
    norm_time: NormWeights
    norm_space: NormWeights
    w_time: Array | None = None
    b_time: Array | None = None


def _weights(random: Random, model: int = 4, *, biases: bool = True) -> DividedWeights:
    time, space = (attention_weights(random, model, biases=biases) for _ in range(2))
    after = (random.normal((model, model)) / 2, random.normal(model)) if biases else ()
    return DividedWeights(time, space, norm_weights(random, model), norm_weights(random, model), *after)


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 3, 2, 4)), "weights": _weights(random), "num_heads": 2}
    yield Sample("as the program", inputs)
    yield Sample("as the paper", {**inputs, "weights": inputs["weights"]._replace(w_time=None, b_time=None)})
    yield Sample("no biases", {**inputs, "weights": _weights(random, biases=False)._replace(norm_time=NormWeights()), "eps": 0.25})
    yield Sample("one video", {**inputs, "weights": inputs["weights"]._replace(b_time=None), "x": inputs["x"][0], "num_heads": 1})


def _class_samples(random: Random) -> Iterator[Sample]:
    for sample in _samples(random):
        x = sample.arguments["x"]
        given = {**sample.arguments, "class_token": random.normal((*x.shape[:-3], x.shape[-1]))}
        yield Sample(sample.name, {**given, "class_in_time": True} if sample.name == "as the paper" else given)


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = {"x": random.normal((2, 3, 2, 4)), "weights": _weights(random), "num_heads": 2}
    no_layer = inputs["weights"]._replace(w_time=None)
    yield BadCall("no layer to add to", {**inputs, "weights": no_layer}, ValueError, "weights.b_time is given, but weights.w_time is None")
    yield BadCall("heads that do not divide", {**inputs, "num_heads": 3}, ValueError, r"num_heads \* head_dim is 4 in")


def _class_bad_calls(random: Random) -> Iterator[BadCall]:
    for bad in _bad_calls(random):
        yield BadCall(bad.name, {**bad.arguments, "class_token": random.normal((2, 4))}, bad.error, bad.match)


def _benchmark(random: Random) -> dict[str, Any]:
    return {"x": random.normal((1, 8, 49, 256)), "weights": _weights(random, 256), "num_heads": 8}


def _class_benchmark(random: Random) -> dict[str, Any]:
    return {**_benchmark(random), "class_token": random.normal((1, 256))}


def _projected(attention: Sublayer, weight: Array, bias: Array | None) -> Sublayer:
    """An attention, and a linear layer after it."""

    def sublayer(x: Array) -> tuple[Array, Pullback]:
        attended, attention_pullback = attention(x)
        y, linear_pullback = linear.vjp(attended, weight, bias)

        def pullback(dy: Array) -> Grads:
            d = linear_pullback(dy)
            return {**attention_pullback(d["x"]), "w_time": d["weight"], "b_time": d.get("bias")}

        return y, pullback

    return sublayer


def _divided(
    x: Array, class_token: Array | None, weights: DividedWeights, num_heads: int, class_in_time: bool, eps: float
) -> tuple[Video, Pullback]:
    """Each place over all frames, then each frame over all places; the class token of each frame apart."""
    over_time = self_attention(weights.time, num_heads=num_heads)
    over_space = self_attention(weights.space, num_heads=num_heads)
    if weights.w_time is not None:
        over_time = _projected(over_time, weights.w_time, weights.b_time)
    elif weights.b_time is not None:
        raise ValueError("weights.b_time is given, but weights.w_time is None")
    in_time = class_token if class_in_time else None
    timed, time_pullback = over_sequences(x.swapaxes(-3, -2), in_time, over_time, weights.norm_time, eps)
    spaced, space_pullback = over_sequences(timed.output.swapaxes(-3, -2), class_token, over_space, weights.norm_space, eps)

    def pullback(d_x: Array, d_class: Array) -> Grads:
        d_space = space_pullback(d_x, d_class)
        d_time = time_pullback(d_space["x"].swapaxes(-3, -2), np.zeros_like(timed.class_token))
        d_weights = DividedWeights(
            d_time["weights"], d_space["weights"], d_time["norm"], d_space["norm"], d_time.get("w_time"), d_time.get("b_time")
        )
        d_token = d_space["class_token"] + d_time["class_token"]
        return {"x": d_time["x"].swapaxes(-3, -2), "class_token": d_token, "weights": d_weights}

    return spaced, pullback


@mechanism(tags={"softmax"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def divided_space_time_attention(x: Array, weights: DividedWeights, *, num_heads: int, eps: float = 1e-5) -> tuple[Array, Pullback]:
    r"""Let each patch of a video look at its own place in all frames, then at all places of its own frame.

    Parameters
    ----------
    x : array, shape (..., frames, patches, model_dim)
        Patches; a place has the same index in all frames.
    weights : DividedWeights
        Weights of the two attentions and their norms.
    num_heads : positive int
        Heads of both attentions.
    eps : non-negative float, optional
        Added to the variance in the norms.

    Returns
    -------
    array, shape (..., frames, patches, model_dim)
        Patches, each with what it has seen added.

    Notes
    -----
    Sizes: ``model_dim >= 1``.

    .. math::

        y = R_{\mathrm{space}}(R_{\mathrm{time}}(x)), \quad R_f(x) = x + f(N_f(x)), \qquad
        \bar x = R^*_{\mathrm{time}}(R^*_{\mathrm{space}}(\bar y)), \quad R^*_f(\bar r) = \bar r + N_f^*(f^*(\bar r))

    where N is the layer norm, f is `multi_head_attention`, and stars are pullbacks. Over time, :math:`f(z) = W_t f'(z) + b_t` where
    the weights have the layer :math:`W_t`.

    References
    ----------
    .. [1] Bertasius, Wang, Torresani, "Is Space-Time Attention All You Need for Video Understanding?", ICML 2021, eqs. (6) to (8)
       and (11), here without the class token. arXiv:2102.05095.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x, eye = np.array([[[0.0, 2.0], [4.0, 0.0]]]), np.eye(2)
    >>> mean, none = refattn.AttentionWeights(0 * eye, eye, eye, eye), refattn.AttentionWeights(eye, eye, eye, 0 * eye)
    >>> weights = refattn.DividedWeights(mean, none, refattn.NormWeights(), refattn.NormWeights())
    >>> refattn.divided_space_time_attention(x, weights, num_heads=1, eps=0.0)  # one frame: each patch sees itself over time
    array([[[-1.,  3.],
            [ 5., -1.]]])
    """
    made, pullback = _divided(x, None, weights, num_heads, False, eps)
    return made.output, lambda dy: pullback(dy, np.zeros_like(made.class_token))


@mechanism(tags={"softmax"}, samples=_class_samples, bad_calls=_class_bad_calls, benchmark=_class_benchmark)
def divided_space_time_attention_with_class_token(
    x: Array, class_token: Array, weights: DividedWeights, *, num_heads: int, class_in_time: bool = False, eps: float = 1e-5
) -> tuple[Video, Pullback]:
    r"""Let each patch look at its place in all frames, then at a class token and at all places of its own frame.

    Parameters
    ----------
    x : array, shape (..., frames, patches, model_dim)
        Patches; a place has the same index in all frames.
    class_token : array, shape (..., model_dim)
        The token from which the video is classified.
    weights : DividedWeights
        Weights of the two attentions and their norms.
    num_heads : positive int
        Heads of both attentions.
    class_in_time : bool, optional
        Whether the patches see the class token in the attention over time too, as in eq. (11); in the authors' program they do
        not.
    eps : non-negative float, optional
        Added to the variance in the norms.

    Returns
    -------
    output : array, shape (..., frames, patches, model_dim)
        Patches, each with what it has seen added.
    class_token : array, shape (..., model_dim)
        The token, with the mean of what it has seen in each frame added.

    Notes
    -----
    Sizes: ``frames >= 1``, ``model_dim >= 1``.

    The attention over time leaves the class token as it is, in either case. In the attention over space, every frame has a copy of
    it; that the copies are averaged is said by the authors' program alone. With t over the F frames:

    .. math::

        x' = x + f_{\mathrm{time}}(N(x)), \quad [s_t, r_t] = f_{\mathrm{space}}(N([c, x'_t])), \quad
        y_t = x'_t + r_t, \quad c' = c + \frac{1}{F} \sum_t s_t, \qquad
        \bar c = \bar c' + \sum_t N^*(f_{\mathrm{space}}^*([\bar c' / F, \bar y_t]))_0

    where N is the layer norm, f is `multi_head_attention`, stars are pullbacks, and 0 is the place of the class token.

    References
    ----------
    .. [1] Bertasius, Wang, Torresani, "Is Space-Time Attention All You Need for Video Understanding?", ICML 2021, eqs. (6) to (8)
       and (11); the authors' program is facebookresearch/TimeSformer. arXiv:2102.05095.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x, token, eye = np.array([[[0.0, 2.0]], [[4.0, 0.0]]]), np.array([5.0, 7.0]), np.eye(2)
    >>> mean, none = refattn.AttentionWeights(0 * eye, eye, 2 * eye, eye), refattn.AttentionWeights(eye, eye, eye, 0 * eye)
    >>> weights = refattn.DividedWeights(none, mean, refattn.NormWeights(), refattn.NormWeights())
    >>> refattn.divided_space_time_attention_with_class_token(x, token, weights, num_heads=1, eps=0.0).class_token
    array([4., 8.])
    """
    made, divided_pullback = _divided(x, class_token, weights, num_heads, class_in_time, eps)
    token, mean_pullback = mean_over.vjp(made.class_token[..., 0, :], axes=-2)  # of the frames' copies, the token itself included

    def pullback(d_x: Array, d_class: Array) -> Grads:
        return divided_pullback(d_x, mean_pullback(d_class)["x"][..., None, :])

    return Video(made.output, token), pullback
