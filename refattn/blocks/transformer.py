"""The whole Transformer: an encoder of the source, and a decoder of the target that reads what it made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refattn._core import Array, BadCall, Booleans, Grads, Pullback, Random, Sample, mechanism
from refattn.blocks.draws import decoder_layer_keep, decoder_layer_weights, encoder_layer_keep, encoder_layer_weights, norm_weights
from refattn.blocks.feed_forward import Activation
from refattn.blocks.sublayers import Norm
from refattn.blocks.transformer_decoder import transformer_decoder
from refattn.blocks.transformer_encoder import transformer_encoder
from refattn.blocks.weights import TransformerKeep, TransformerWeights


def _inputs(random: Random, model: int = 4, hidden: int = 5) -> dict[str, Any]:
    encoder, decoder = (encoder_layer_weights(random, model, hidden),), (decoder_layer_weights(random, model, hidden),)
    weights = TransformerWeights(encoder, decoder, norm_weights(random, model), norm_weights(random, model))
    return {"source": random.normal((2, 5, model)), "target": random.normal((2, 3, model)), "weights": weights, "num_heads": 2}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    deep = inputs["weights"]._replace(decoder=(decoder_layer_weights(random), decoder_layer_weights(random)), encoder_norm=None)
    masks = {"source_mask": random.booleans(0.7, (5, 5)), "target_mask": random.booleans(0.7, (3, 3))}
    keep = TransformerKeep((encoder_layer_keep(random, 2, 5),), (decoder_layer_keep(random, 2, 3, 5),))
    yield Sample("post", inputs)
    yield Sample("pre", {**inputs, "norm": "pre", "activation": "gelu"})
    yield Sample("two layers in the decoder", {**inputs, "weights": deep, "causal": False})
    yield Sample("masks", {**inputs, **masks, "memory_mask": random.booleans(0.5, (2, 1, 3, 5)), "eps": 0.25})
    yield Sample("dropout", {**inputs, "keep": keep, "dropout_rate": 0.25, "eps": 0.25})
    yield Sample("dropout in the decoder", {**inputs, "keep": TransformerKeep(decoder=keep.decoder), "dropout_rate": 0.25})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    keep = TransformerKeep(encoder=())
    yield BadCall("masks for no layer", {**inputs, "keep": keep}, ValueError, "keep has 0 records, but there are 1 layers")
    lacking = inputs["weights"]._replace(decoder=None)
    yield BadCall("no decoder", {**inputs, "weights": lacking}, TypeError, "weights.decoder is None, but must be a tuple")


def _benchmark(random: Random) -> dict[str, Any]:
    sequences = {"source": random.normal((1, 256, 256)), "target": random.normal((1, 256, 256))}
    return {**_inputs(random, 256, 1024), **sequences, "num_heads": 8}


@mechanism(tags={"block", "quadratic"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def transformer(
    source: Array,
    target: Array,
    weights: TransformerWeights,
    *,
    num_heads: int,
    norm: Norm = "post",
    activation: Activation = "relu",
    source_mask: Booleans | None = None,
    target_mask: Booleans | None = None,
    memory_mask: Booleans | None = None,
    causal: bool = True,
    eps: float = 1e-5,
    keep: TransformerKeep | None = None,
    dropout_rate: float = 0.0,
) -> tuple[Array, Pullback]:
    r"""Encode a source, and decode a target that looks at it.

    Source and target are embedded tokens: the paper's are ``add_sinusoidal(sqrt(model_dim) * embedding(...))``, and the paper
    turns the output into scores by the embedding's own weights.

    Parameters
    ----------
    source : array, shape (..., length, model_dim)
        Tokens of the source.
    target : array, shape (..., query_len, model_dim)
        Tokens of the target, moved by one, so that each is asked for the next.
    weights : TransformerWeights
        Weights of both stacks.
    num_heads : positive int
        Heads of each attention.
    norm : {"pre", "post"}, optional
        Whether the input of attentions and networks is normalised, or their sum with it, as in the paper.
    activation : {"relu", "gelu"}, optional
        Of the networks.
    source_mask : bool array or None, broadcastable to (..., num_heads, length, length), optional
        True where the source may attend to itself.
    target_mask : bool array or None, broadcastable to (..., num_heads, query_len, query_len), optional
        True where the target may attend to itself.
    memory_mask : bool array or None, broadcastable to (..., num_heads, query_len, length), optional
        True where the target may attend to the encoded source.
    causal : bool, optional
        No token of the target attends to a later one.
    eps : non-negative float, optional
        Added to the variance in the norms.
    keep : TransformerKeep or None, optional
        What dropout keeps.
    dropout_rate : probability, optional
        The probability with which all of `keep` was drawn False.

    Returns
    -------
    array, shape (..., query_len, model_dim)
        Decoded tokens.

    Notes
    -----
    Sizes: ``key_len = length``, ``model_dim >= 1``.

    The paper has no norm after the last layers; PyTorch's ``torch.nn.Transformer`` always has both.

    .. math::

        m = E(x), \quad y = D(t, m), \qquad
        (\bar t, \bar m, \bar W_D) = D^*(\bar y), \quad (\bar x, \bar W_E) = E^*(\bar m)

    with `transformer_encoder` and `transformer_decoder`; stars are pullbacks.

    References
    ----------
    .. [1] Vaswani et al., "Attention Is All You Need", NeurIPS 2017, sections 3.1, 3.4 and 3.5. arXiv:1706.03762.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> weights = refattn.TransformerWeights((), (), decoder_norm=refattn.NormWeights())
    >>> refattn.transformer(np.zeros((4, 2)), np.array([[1.0, 3.0]]), weights, num_heads=1, eps=0.0)
    array([[-1.,  1.]])
    """
    kept = keep or TransformerKeep()
    options: dict[str, Any] = {"num_heads": num_heads, "norm": norm, "activation": activation, "eps": eps, "dropout_rate": dropout_rate}
    memory, encoder_pullback = transformer_encoder.vjp(
        source, weights.encoder, weights.encoder_norm, mask=source_mask, keep=kept.encoder, **options
    )
    masks: dict[str, Any] = {"mask": target_mask, "memory_mask": memory_mask, "causal": causal}
    output, decoder_pullback = transformer_decoder.vjp(
        target, memory, weights.decoder, weights.decoder_norm, keep=kept.decoder, **masks, **options
    )

    def pullback(dy: Array) -> Grads:
        d_decoder = decoder_pullback(dy)
        d_encoder = encoder_pullback(d_decoder["memory"])
        d_weights = TransformerWeights(d_encoder["layers"], d_decoder["layers"], d_encoder.get("final_norm"), d_decoder.get("final_norm"))
        return {"source": d_encoder["x"], "target": d_decoder["x"], "weights": d_weights}

    return output, pullback
