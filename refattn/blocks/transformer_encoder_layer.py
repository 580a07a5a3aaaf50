"""One layer of a Transformer's encoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refattn._core import Array, BadCall, Booleans, Grads, Pullback, Random, Sample, mechanism
from refattn.blocks.draws import encoder_layer_keep, encoder_layer_weights
from refattn.blocks.feed_forward import Activation
from refattn.blocks.sublayers import Norm, network, residual, self_attention
from refattn.blocks.weights import EncoderLayerKeep, EncoderLayerWeights, NormWeights


def _samples(random: Random) -> Iterator[Sample]:
    inputs = {"x": random.normal((2, 3, 4)), "weights": encoder_layer_weights(random), "num_heads": 2}
    bare = encoder_layer_weights(random, biases=False)._replace(norm_attention=NormWeights())
    yield Sample("post", inputs)
    yield Sample("pre", {**inputs, "norm": "pre", "activation": "gelu"})
    yield Sample("mask", {**inputs, "mask": random.booleans(0.7, (2, 1, 1, 3)), "eps": 0.25})
    yield Sample("no biases", {**inputs, "weights": bare, "causal": True})
    yield Sample("dropout", {**inputs, "keep": encoder_layer_keep(random, 2, 3), "dropout_rate": 0.25})
    yield Sample("dropout of one part", {**inputs, "keep": EncoderLayerKeep(attended=random.booleans(0.7, (3, 4))), "dropout_rate": 0.25})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = {"x": random.normal((2, 3, 4)), "weights": encoder_layer_weights(random), "num_heads": 2}
    yield BadCall("no weights", {**inputs, "weights": None}, TypeError, "weights is None, but must be EncoderLayerWeights")
    yield BadCall("flat weights", {**inputs, "weights": tuple(inputs["weights"])}, TypeError, "weights is a tuple, but must be")
    no_norm = inputs["weights"]._replace(norm_attention=None)
    yield BadCall("no norm", {**inputs, "weights": no_norm}, TypeError, "weights.norm_attention is None, but must be NormWeights")
    wide = inputs["weights"]._replace(norm_feed_forward=NormWeights(random.normal(5), random.normal(5)))
    yield BadCall("a norm of other features", {**inputs, "weights": wide}, ValueError, "model_dim is 5 in weights.norm_feed_forward.scale")
    yield BadCall("heads that do not divide", {**inputs, "num_heads": 3}, ValueError, r"num_heads \* head_dim is 4 in")


def _benchmark(random: Random) -> dict[str, Any]:
    return {"x": random.normal((1, 256, 512)), "weights": encoder_layer_weights(random, 512, 2048), "num_heads": 8}


@mechanism(tags={"block", "quadratic"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def transformer_encoder_layer(
    x: Array,
    weights: EncoderLayerWeights,
    *,
    num_heads: int,
    norm: Norm = "post",
    activation: Activation = "relu",
    mask: Booleans | None = None,
    causal: bool = False,
    eps: float = 1e-5,
    keep: EncoderLayerKeep | None = None,
    dropout_rate: float = 0.0,
) -> tuple[Array, Pullback]:
    r"""Let each token look at the others, then transform each by itself.

    With `causal`, this is a layer of a language model that has a decoder alone.

    Parameters
    ----------
    x : array, shape (..., length, model_dim)
        Tokens.
    weights : EncoderLayerWeights
        Weights of attention, network and norms.
    num_heads : positive int
        Heads of the attention.
    norm : {"pre", "post"}, optional
        Whether the input of attention and network is normalised, or their sum with it, as in the paper.
    activation : {"relu", "gelu"}, optional
        Of the network.
    mask : bool array or None, broadcastable to (..., num_heads, length, length), optional
        True where a token may attend.
    causal : bool, optional
        No token attends to a later one.
    eps : non-negative float, optional
        Added to the variance in the norms.
    keep : EncoderLayerKeep or None, optional
        What dropout keeps.
    dropout_rate : probability, optional
        The probability with which all of `keep` was drawn False.

    Returns
    -------
    array, shape (..., length, model_dim)
        Transformed tokens.

    Notes
    -----
    Sizes: ``model_dim >= 1``.

    .. math::

        y = R_{\mathrm{network}}(R_{\mathrm{attention}}(x)), \quad
        R_f(x) = \begin{cases} x + f(N(x)) & \text{pre} \\ N(x + f(x)) & \text{post} \end{cases}, \qquad
        \bar x = \begin{cases} \bar r + N^*(f^*(\bar r)) & \text{pre} \\ s + f^*(s), \; s = N^*(\bar r) & \text{post} \end{cases}

    where N is the layer norm, stars are pullbacks, and :math:`\bar r` is the cotangent of a residual.

    References
    ----------
    .. [1] Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.1; dropout, section 5.4. arXiv:1706.03762.
    .. [2] Xiong et al., "On Layer Normalization in the Transformer Architecture", ICML 2020, for "pre". arXiv:2002.04745.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> o, z = np.zeros((2, 2)), np.zeros((1, 2))
    >>> weights = refattn.EncoderLayerWeights(
    ...     refattn.AttentionWeights(o, o, o, o),
    ...     refattn.FeedForwardWeights(z, z.T),
    ...     refattn.NormWeights(),
    ...     refattn.NormWeights(),
    ... )
    >>> refattn.transformer_encoder_layer(np.array([[1.0, 3.0]]), weights, num_heads=1, eps=0.0)
    array([[-1.,  1.]])
    """
    kept = keep or EncoderLayerKeep()
    around: dict[str, Any] = {"norm": norm, "eps": eps, "dropout_rate": dropout_rate}
    attention = self_attention(
        weights.self_attention, num_heads=num_heads, mask=mask, causal=causal, keep=kept.weights, dropout_rate=dropout_rate
    )
    transform = network(weights.feed_forward, activation=activation, keep=kept.hidden, dropout_rate=dropout_rate)
    attended, attention_pullback = residual(x, attention, weights.norm_attention, keep=kept.attended, **around)
    output, network_pullback = residual(attended, transform, weights.norm_feed_forward, keep=kept.transformed, **around)

    def pullback(dy: Array) -> Grads:
        d_network = network_pullback(dy)
        d_attention = attention_pullback(d_network["x"])
        d_weights = EncoderLayerWeights(d_attention["weights"], d_network["weights"], d_attention["norm"], d_network["norm"])
        return {"x": d_attention["x"], "weights": d_weights}

    return output, pullback
