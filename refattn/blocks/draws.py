"""Records of random weights and of random masks, for samples and benchmarks."""

from __future__ import annotations

from refattn._core import Random
from refattn.blocks.weights import (
    AttentionWeights,
    DecoderLayerKeep,
    DecoderLayerWeights,
    EncoderLayerKeep,
    EncoderLayerWeights,
    FeedForwardWeights,
    NormWeights,
)


def attention_weights(random: Random, model: int, *, biases: bool = True) -> AttentionWeights:
    """Square projections."""
    step = 1 / model**0.5
    b = [random.normal(model) for _ in range(4)] if biases else []
    return AttentionWeights(*(step * random.normal((model, model)) for _ in range(4)), *b)


def feed_forward_weights(random: Random, model: int, hidden: int, *, biases: bool = True) -> FeedForwardWeights:
    """Two layers."""
    w_expand, w_reduce = random.normal((hidden, model)) / model**0.5, random.normal((model, hidden)) / hidden**0.5
    return FeedForwardWeights(w_expand, w_reduce, *((random.normal(hidden), random.normal(model)) if biases else ()))


def norm_weights(random: Random, model: int) -> NormWeights:
    """Scales near 1."""
    return NormWeights(1 + random.normal(model) / 4, random.normal(model) / 4)


def encoder_layer_weights(random: Random, model: int = 4, hidden: int = 5, *, biases: bool = True) -> EncoderLayerWeights:
    """One layer of an encoder."""
    attention, network = attention_weights(random, model, biases=biases), feed_forward_weights(random, model, hidden, biases=biases)
    return EncoderLayerWeights(attention, network, norm_weights(random, model), norm_weights(random, model))


def decoder_layer_weights(random: Random, model: int = 4, hidden: int = 5, *, biases: bool = True) -> DecoderLayerWeights:
    """One layer of a decoder."""
    cross, layer = attention_weights(random, model, biases=biases), encoder_layer_weights(random, model, hidden, biases=biases)
    return DecoderLayerWeights(
        layer.self_attention, cross, layer.feed_forward, layer.norm_attention, norm_weights(random, model), layer.norm_feed_forward
    )


def encoder_layer_keep(random: Random, batch: int, length: int, model: int = 4, hidden: int = 5, *, heads: int = 2) -> EncoderLayerKeep:
    """What one layer of an encoder keeps."""
    attended, transformed = (random.booleans(0.7, (batch, length, model)) for _ in range(2))
    weights, inner = random.booleans(0.7, (batch, heads, length, length)), random.booleans(0.7, (batch, length, hidden))
    return EncoderLayerKeep(weights, attended, inner, transformed)


def decoder_layer_keep(
    random: Random, batch: int, length: int, memory: int, model: int = 4, hidden: int = 5, *, heads: int = 2
) -> DecoderLayerKeep:
    """What one layer of a decoder keeps."""
    weights, attended, inner, transformed = encoder_layer_keep(random, batch, length, model, hidden, heads=heads)
    cross, crossed = random.booleans(0.7, (batch, heads, length, memory)), random.booleans(0.7, (batch, length, model))
    return DecoderLayerKeep(weights, attended, cross, crossed, inner, transformed)
