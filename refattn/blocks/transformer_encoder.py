"""The encoder of a Transformer."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from refattn._core import Array, BadCall, Booleans, Pullback, Random, Sample, mechanism
from refattn.blocks.draws import encoder_layer_keep, encoder_layer_weights, norm_weights
from refattn.blocks.feed_forward import Activation
from refattn.blocks.stacks import each_keep, stack
from refattn.blocks.sublayers import Norm
from refattn.blocks.transformer_encoder_layer import transformer_encoder_layer
from refattn.blocks.weights import EncoderLayerKeep, EncoderLayerWeights, NormWeights


def _inputs(random: Random) -> dict[str, Any]:
    layers = (encoder_layer_weights(random), encoder_layer_weights(random))
    return {"x": random.normal((2, 3, 4)), "layers": layers, "num_heads": 2}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    keep = (encoder_layer_keep(random, 2, 3), encoder_layer_keep(random, 2, 3))
    yield Sample("two layers", inputs)
    yield Sample("pre", {**inputs, "final_norm": norm_weights(random, 4), "norm": "pre", "activation": "gelu", "eps": 0.25})
    yield Sample("mask", {**inputs, "mask": random.booleans(0.7, (2, 1, 1, 3)), "causal": True})
    yield Sample("dropout", {**inputs, "keep": keep, "dropout_rate": 0.25})
    yield Sample("no layer", {**inputs, "layers": ()})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    inputs = _inputs(random)
    keep = (encoder_layer_keep(random, 2, 3),)
    yield BadCall("masks for one of two layers", {**inputs, "keep": keep}, ValueError, "keep has 1 records, but there are 2 layers")
    yield BadCall(
        "one layer by itself", {**inputs, "layers": inputs["layers"][0]}, TypeError, "layers is a EncoderLayerWeights, but must be"
    )
    lacking = (inputs["layers"][0], None)
    yield BadCall("a layer without weights", {**inputs, "layers": lacking}, TypeError, "layers.1 is None, but must be EncoderLayerWeights")


def _benchmark(random: Random) -> dict[str, Any]:
    layers = tuple(encoder_layer_weights(random, 256, 1024) for _ in range(2))
    return {"x": random.normal((1, 256, 256)), "layers": layers, "num_heads": 8}


@mechanism(tags={"block", "quadratic"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def transformer_encoder(
    x: Array,
    layers: tuple[EncoderLayerWeights, ...],
    final_norm: NormWeights | None = None,
    *,
    num_heads: int,
    norm: Norm = "post",
    activation: Activation = "relu",
    mask: Booleans | None = None,
    causal: bool = False,
    eps: float = 1e-5,
    keep: tuple[EncoderLayerKeep, ...] | None = None,
    dropout_rate: float = 0.0,
) -> tuple[Array, Pullback]:
    r"""Let each token look at the others, as many times as there are layers.

    Parameters
    ----------
    x : array, shape (..., length, model_dim)
        Tokens; they should know their positions, for example by `add_sinusoidal`.
    layers : tuple of EncoderLayerWeights
        Weights of each layer.
    final_norm : NormWeights or None, optional
        Of a norm after the last layer, which a pre-norm stack needs; None leaves it out.
    num_heads : positive int
        Heads of each attention.
    norm : {"pre", "post"}, optional
        Whether the input of attention and network is normalised, or their sum with it, as in the paper.
    activation : {"relu", "gelu"}, optional
        Of the networks.
    mask : bool array or None, broadcastable to (..., num_heads, length, length), optional
        True where a token may attend, in all layers.
    causal : bool, optional
        No token attends to a later one.
    eps : non-negative float, optional
        Added to the variance in the norms.
    keep : tuple of EncoderLayerKeep or None, optional
        What dropout keeps in each layer.
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

        x_{n + 1} = L_n(x_n), \quad y = N(x_L), \qquad
        \bar x_L = N^*(\bar y), \quad (\bar x_n, \bar W_n) = L_n^*(\bar x_{n + 1})

    with the layers of `transformer_encoder_layer`; N is the final norm, and stars are pullbacks.

    References
    ----------
    .. [1] Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.1. arXiv:1706.03762.
    .. [2] Xiong et al., "On Layer Normalization in the Transformer Architecture", ICML 2020, for "pre". arXiv:2002.04745.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.transformer_encoder(np.array([[1.0, 3.0]]), (), refattn.NormWeights(), num_heads=1, eps=0.0)
    array([[-1.,  1.]])
    """
    options: dict[str, Any] = {"num_heads": num_heads, "norm": norm, "activation": activation, "mask": mask, "causal": causal}
    each = [
        functools.partial(transformer_encoder_layer.vjp, weights=w, keep=k, eps=eps, dropout_rate=dropout_rate, **options)
        for w, k in zip(layers, each_keep(keep, layers), strict=True)
    ]
    return stack(x, each, final_norm, eps)
