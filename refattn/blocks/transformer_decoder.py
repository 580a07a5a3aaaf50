"""The decoder of a Transformer."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from refattn._core import Array, BadCall, Booleans, Grads, Pullback, Random, Sample, mechanism
from refattn.blocks.draws import decoder_layer_keep, decoder_layer_weights, norm_weights
from refattn.blocks.feed_forward import Activation
from refattn.blocks.stacks import each_keep, stack
from refattn.blocks.sublayers import Norm
from refattn.blocks.transformer_decoder_layer import transformer_decoder_layer
from refattn.blocks.weights import DecoderLayerKeep, DecoderLayerWeights, NormWeights


def _inputs(random: Random) -> dict[str, Any]:
    layers = (decoder_layer_weights(random), decoder_layer_weights(random))
    return {"x": random.normal((2, 3, 4)), "memory": random.normal((2, 5, 4)), "layers": layers, "num_heads": 2}


def _samples(random: Random) -> Iterator[Sample]:
    inputs = _inputs(random)
    keep = (decoder_layer_keep(random, 2, 3, 5), decoder_layer_keep(random, 2, 3, 5))
    masks = {"mask": random.booleans(0.7, (3, 3)), "memory_mask": random.booleans(0.7, (2, 1, 1, 5))}
    yield Sample("two layers", inputs)
    yield Sample("pre", {**inputs, "final_norm": norm_weights(random, 4), "norm": "pre", "activation": "gelu", "eps": 0.25})
    yield Sample("masks", {**inputs, **masks, "causal": False})
    yield Sample("dropout", {**inputs, "keep": keep, "dropout_rate": 0.25, "eps": 0.25})
    yield Sample("no layer", {**inputs, "layers": ()})


def _bad_calls(random: Random) -> Iterator[BadCall]:
    keep = (decoder_layer_keep(random, 2, 3, 5),)
    inputs = {**_inputs(random), "keep": keep}
    yield BadCall("masks for one of two layers", inputs, ValueError, "keep has 1 records, but there are 2 layers")


def _benchmark(random: Random) -> dict[str, Any]:
    layers = tuple(decoder_layer_weights(random, 256, 1024) for _ in range(2))
    return {"x": random.normal((1, 256, 256)), "memory": random.normal((1, 256, 256)), "layers": layers, "num_heads": 8}


@mechanism(tags={"block", "quadratic"}, samples=_samples, bad_calls=_bad_calls, benchmark=_benchmark)
def transformer_decoder(
    x: Array,
    memory: Array,
    layers: tuple[DecoderLayerWeights, ...],
    final_norm: NormWeights | None = None,
    *,
    num_heads: int,
    norm: Norm = "post",
    activation: Activation = "relu",
    mask: Booleans | None = None,
    memory_mask: Booleans | None = None,
    causal: bool = True,
    eps: float = 1e-5,
    keep: tuple[DecoderLayerKeep, ...] | None = None,
    dropout_rate: float = 0.0,
) -> tuple[Array, Pullback]:
    r"""Let each token look at those before it and at a memory, as many times as there are layers.

    Parameters
    ----------
    x : array, shape (..., query_len, model_dim)
        Tokens of the target; they should know their positions, for example by `add_sinusoidal`.
    memory : array, shape (..., key_len, model_dim)
        What the encoder made of the source; every layer reads it.
    layers : tuple of DecoderLayerWeights
        Weights of each layer.
    final_norm : NormWeights or None, optional
        Of a norm after the last layer, which a pre-norm stack needs; None leaves it out.
    num_heads : positive int
        Heads of each attention.
    norm : {"pre", "post"}, optional
        Whether the input of attentions and network is normalised, or their sum with it, as in the paper.
    activation : {"relu", "gelu"}, optional
        Of the networks.
    mask : bool array or None, broadcastable to (..., num_heads, query_len, query_len), optional
        True where a token may attend to the target, in all layers.
    memory_mask : bool array or None, broadcastable to (..., num_heads, query_len, key_len), optional
        True where a token may attend to the memory, in all layers.
    causal : bool, optional
        No token attends to a later one of the target.
    eps : non-negative float, optional
        Added to the variance in the norms.
    keep : tuple of DecoderLayerKeep or None, optional
        What dropout keeps in each layer.
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

        x_{n + 1} = L_n(x_n, m), \quad y = N(x_L), \qquad
        \bar x_L = N^*(\bar y), \quad (\bar x_n, \bar m_n, \bar W_n) = L_n^*(\bar x_{n + 1}), \quad \bar m = \sum_n \bar m_n

    with the layers of `transformer_decoder_layer`; N is the final norm, and stars are pullbacks.

    References
    ----------
    .. [1] Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.1. arXiv:1706.03762.
    .. [2] Xiong et al., "On Layer Normalization in the Transformer Architecture", ICML 2020, for "pre". arXiv:2002.04745.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x, memory = np.array([[1.0, 3.0]]), np.zeros((4, 2))
    >>> refattn.transformer_decoder(x, memory, (), refattn.NormWeights(), num_heads=1, eps=0.0)
    array([[-1.,  1.]])
    """
    options: dict[str, Any] = {"num_heads": num_heads, "norm": norm, "activation": activation, "eps": eps, "dropout_rate": dropout_rate}
    masks: dict[str, Any] = {"mask": mask, "memory_mask": memory_mask, "causal": causal}
    each = [
        functools.partial(transformer_decoder_layer.vjp, memory=memory, weights=w, keep=k, **options, **masks)
        for w, k in zip(layers, each_keep(keep, layers), strict=True)
    ]
    output, stack_pullback = stack(x, each, final_norm, eps)

    def pullback(dy: Array) -> Grads:
        return {"memory": np.zeros_like(memory), **stack_pullback(dy)}

    return output, pullback
