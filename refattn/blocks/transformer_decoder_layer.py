"""One layer of a Transformer's decoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refattn._core import Array, BadCall, Booleans, Grads, Pullback, Random, Sample, mechanism
from refattn.blocks.draws import decoder_layer_keep, decoder_layer_weights
from refattn.blocks.feed_forward import Activation
from refattn.blocks.sublayers import Norm, cross_attention, network, residual, self_attention
from refattn.blocks.weights import DecoderLayerKeep, DecoderLayerWeights, NormWeights


def _inputs(random: Random) -> dict[str, Any]:
    x, memory = random.normal((2, 3, 4)), random.normal((2, 5, 4))
    return {"x": x, "memory": memory, "weights": decoder_layer_weights(random), "num_heads": 2}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    bare = decoder_layer_weights(random, biases=False)._replace(norm_cross=NormWeights())
    yield Sample("post", inputs)
    yield Sample("pre", {**inputs, "norm": "pre", "activation": "gelu"})
    masks = {"mask": random.booleans(0.7, (3, 3)), "memory_mask": random.booleans(0.7, (2, 1, 1, 5))}
    yield Sample("masks", {**inputs, **masks, "causal": False, "eps": 0.25})
    yield Sample("no biases", {**inputs, "weights": bare})
    yield Sample("dropout", {**inputs, "keep": decoder_layer_keep(random, 2, 3, 5), "dropout_rate": 0.25, "eps": 0.25})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    yield BadCall("memory of other features", {**inputs, "memory": random.normal((2, 5, 3))}, ValueError, "model_dim is 3 in memory")
    other = {**inputs, "memory": random.normal((3, 5, 4))}
    yield BadCall("memory of other examples", other, ValueError, r"the leading shape is \(3,\) in memory")


def _benchmark(random: Random) -> dict[str, Any]:
    x, memory = random.normal((1, 256, 512)), random.normal((1, 256, 512))
    return {"x": x, "memory": memory, "weights": decoder_layer_weights(random, 512, 2048), "num_heads": 8}


@mechanism(tags={"block", "quadratic"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def transformer_decoder_layer(
    x: Array,
    memory: Array,
    weights: DecoderLayerWeights,
    *,
    num_heads: int,
    norm: Norm = "post",
    activation: Activation = "relu",
    mask: Booleans | None = None,
    memory_mask: Booleans | None = None,
    causal: bool = True,
    eps: float = 1e-5,
    keep: DecoderLayerKeep | None = None,
    dropout_rate: float = 0.0,
) -> tuple[Array, Pullback]:
    r"""Let each token look at those before it, then at the memory, then transform each by itself.

    Parameters
    ----------
    x : array, shape (..., query_len, model_dim)
        Tokens of the target.
    memory : array, shape (..., key_len, model_dim)
        What the encoder made of the source.
    weights : DecoderLayerWeights
        Weights of attentions, network and norms.
    num_heads : positive int
        Heads of each attention.
    norm : {"pre", "post"}, optional
        Whether the input of attentions and network is normalised, or their sum with it, as in the paper.
    activation : {"relu", "gelu"}, optional
        Of the network.
    mask : bool array or None, broadcastable to (..., num_heads, query_len, query_len), optional
        True where a token may attend to the target.
    memory_mask : bool array or None, broadcastable to (..., num_heads, query_len, key_len), optional
        True where a token may attend to the memory.
    causal : bool, optional
        No token attends to a later one of the target.
    eps : non-negative float, optional
        Added to the variance in the norms.
    keep : DecoderLayerKeep or None, optional
        What dropout keeps.
    dropout_rate : probability, optional
        The probability with which all of `keep` was drawn False.

    Returns
    -------
    array, shape (..., query_len, model_dim)
        Transformed tokens.

    Notes
    -----
    Sizes: ``model_dim >= 1``.

    .. math::

        y = R_{\mathrm{network}}(R_{\mathrm{cross}}(R_{\mathrm{self}}(x))), \quad
        R_f(x) = \begin{cases} x + f(N(x)) & \text{pre} \\ N(x + f(x)) & \text{post} \end{cases}, \qquad
        \bar x = \begin{cases} \bar r + N^*(f^*(\bar r)) & \text{pre} \\ s + f^*(s), \; s = N^*(\bar r) & \text{post} \end{cases}

    where N is the layer norm, stars are pullbacks, and :math:`\bar r` is the cotangent of a residual; the gradient of the memory
    is that of the keys and that of the values together.

    References
    ----------
    .. [1] Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.1; dropout, section 5.4. arXiv:1706.03762.
    .. [2] Xiong et al., "On Layer Normalization in the Transformer Architecture", ICML 2020, for "pre". arXiv:2002.04745.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> o, z, norm = np.zeros((2, 2)), np.zeros((1, 2)), refattn.NormWeights()
    >>> itself, cross = refattn.AttentionWeights(o, o, o, o), refattn.AttentionWeights(o, o, np.eye(2), np.eye(2))
    >>> weights = refattn.DecoderLayerWeights(itself, cross, refattn.FeedForwardWeights(z, z.T), norm, norm, norm)
    >>> x, memory = np.zeros((1, 2)), np.array([[1.0, 5.0], [3.0, 7.0]])
    >>> refattn.transformer_decoder_layer(x, memory, weights, num_heads=1, norm="pre")
    array([[2., 6.]])
    """
    kept = keep or DecoderLayerKeep()
    around: dict[str, Any] = {"norm": norm, "eps": eps, "dropout_rate": dropout_rate}
    heads: dict[str, Any] = {"num_heads": num_heads, "dropout_rate": dropout_rate}
    itself = self_attention(weights.self_attention, mask=mask, causal=causal, keep=kept.weights, **heads)
    cross = cross_attention(memory, weights.cross_attention, mask=memory_mask, keep=kept.cross_weights, **heads)
    transform = network(weights.feed_forward, activation=activation, keep=kept.hidden, dropout_rate=dropout_rate)
    attended, self_pullback = residual(x, itself, weights.norm_attention, keep=kept.attended, **around)
    crossed, cross_pullback = residual(attended, cross, weights.norm_cross, keep=kept.crossed, **around)
    output, network_pullback = residual(crossed, transform, weights.norm_feed_forward, keep=kept.transformed, **around)

    def pullback(dy: Array) -> Grads:
        d_network = network_pullback(dy)
        d_cross = cross_pullback(d_network["x"])
        d_self = self_pullback(d_cross["x"])
        d_weights = DecoderLayerWeights(
            self_attention=d_self["weights"],
            cross_attention=d_cross["weights"],
            feed_forward=d_network["weights"],
            norm_attention=d_self["norm"],
            norm_cross=d_cross["norm"],
            norm_feed_forward=d_network["norm"],
        )
        return {"x": d_self["x"], "memory": d_cross["memory"], "weights": d_weights}

    return output, pullback
