"""The weights of whole layers: records that nest, whose gradients are records of the same kind.

A record has the parameters of the part that it feeds, under their own names and in their order; what may be absent is None.
The keep records are the masks of dropout: False where a number is dropped, None where nothing is.
"""

from __future__ import annotations

from typing import NamedTuple

from refattn._core import Array, Booleans


class AttentionWeights(NamedTuple):
    """Weights of `multi_head_attention`.

    Attributes
    ----------
    w_query : array, shape (num_heads * head_dim, model_dim)
        Projection to queries.
    w_key : array, shape (kv_heads * head_dim, model_dim)
        Projection to keys.
    w_value : array, shape (kv_heads * value_dim, model_dim)
        Projection to values.
    w_output : array, shape (model_dim, num_heads * value_dim)
        Projection of all heads together.
    b_query : array or None, shape (num_heads * head_dim)
        Added to the queries.
    b_key : array or None, shape (kv_heads * head_dim)
        Added to the keys.
    b_value : array or None, shape (kv_heads * value_dim)
        Added to the values.
    b_output : array or None, shape (model_dim)
        Added to the output.
    """

    w_query: Array
    w_key: Array
    w_value: Array
    w_output: Array
    b_query: Array | None = None
    b_key: Array | None = None
    b_value: Array | None = None
    b_output: Array | None = None


class FeedForwardWeights(NamedTuple):
    """Weights of `feed_forward`.

    Attributes
    ----------
    w_expand : array, shape (hidden_dim, model_dim)
        First layer.
    w_reduce : array, shape (model_dim, hidden_dim)
        Second layer.
    b_expand : array or None, shape (hidden_dim)
        Bias of the first layer.
    b_reduce : array or None, shape (model_dim)
        Bias of the second layer.
    """

    w_expand: Array
    w_reduce: Array
    b_expand: Array | None = None
    b_reduce: Array | None = None


class NormWeights(NamedTuple):
    """Weights of `layer_norm`.

    Attributes
    ----------
    scale : array or None, shape (model_dim)
        Learned scale; None is 1.
    shift : array or None, shape (model_dim)
        Learned shift; None is 0.
    """

    scale: Array | None = None
    shift: Array | None = None


class EncoderLayerWeights(NamedTuple):
    """Weights of `transformer_encoder_layer`.

    Attributes
    ----------
    self_attention : AttentionWeights
        Of the attention.
    feed_forward : FeedForwardWeights
        Of the network.
    norm_attention : NormWeights
        Of the norm before or after the attention.
    norm_feed_forward : NormWeights
        Of the norm before or after the network.
    """

    self_attention: AttentionWeights
    feed_forward: FeedForwardWeights
    norm_attention: NormWeights
    norm_feed_forward: NormWeights


class DecoderLayerWeights(NamedTuple):
    """Weights of `transformer_decoder_layer`.

    Attributes
    ----------
    self_attention : AttentionWeights
        Of the attention to the target.
    cross_attention : AttentionWeights
        Of the attention to the memory.
    feed_forward : FeedForwardWeights
        Of the network.
    norm_attention : NormWeights
        Of the norm before or after the attention to the target.
    norm_cross : NormWeights
        Of the norm before or after the attention to the memory.
    norm_feed_forward : NormWeights
        Of the norm before or after the network.
    """

    self_attention: AttentionWeights
    cross_attention: AttentionWeights
    feed_forward: FeedForwardWeights
    norm_attention: NormWeights
    norm_cross: NormWeights
    norm_feed_forward: NormWeights


class TransformerWeights(NamedTuple):
    """Weights of `transformer`.

    Attributes
    ----------
    encoder : tuple of EncoderLayerWeights
        Of each layer of the encoder.
    decoder : tuple of DecoderLayerWeights
        Of each layer of the decoder.
    encoder_norm : NormWeights or None
        Of the norm after the last layer of the encoder.
    decoder_norm : NormWeights or None
        Of the norm after the last layer of the decoder.
    """

    encoder: tuple[EncoderLayerWeights, ...]
    decoder: tuple[DecoderLayerWeights, ...]
    encoder_norm: NormWeights | None = None
    decoder_norm: NormWeights | None = None


class EncoderLayerKeep(NamedTuple):
    """What dropout keeps in `transformer_encoder_layer`.

    Attributes
    ----------
    weights : bool array or None, broadcastable to (..., num_heads, length, length)
        Of the attention's weights.
    attended : bool array or None, broadcastable to (..., length, model_dim)
        Of what the attention gives.
    hidden : bool array or None, broadcastable to (..., length, hidden_dim)
        Of the network's inner layer.
    transformed : bool array or None, broadcastable to (..., length, model_dim)
        Of what the network gives.
    """

    weights: Booleans | None = None
    attended: Booleans | None = None
    hidden: Booleans | None = None
    transformed: Booleans | None = None


class DecoderLayerKeep(NamedTuple):
    """What dropout keeps in `transformer_decoder_layer`.

    Attributes
    ----------
    weights : bool array or None, broadcastable to (..., num_heads, query_len, query_len)
        Of the weights of the attention to the target.
    attended : bool array or None, broadcastable to (..., query_len, model_dim)
        Of what this attention gives.
    cross_weights : bool array or None, broadcastable to (..., num_heads, query_len, key_len)
        Of the weights of the attention to the memory.
    crossed : bool array or None, broadcastable to (..., query_len, model_dim)
        Of what this attention gives.
    hidden : bool array or None, broadcastable to (..., query_len, hidden_dim)
        Of the network's inner layer.
    transformed : bool array or None, broadcastable to (..., query_len, model_dim)
        Of what the network gives.
    """

    weights: Booleans | None = None
    attended: Booleans | None = None
    cross_weights: Booleans | None = None
    crossed: Booleans | None = None
    hidden: Booleans | None = None
    transformed: Booleans | None = None


class TransformerKeep(NamedTuple):
    """What dropout keeps in `transformer`.

    Attributes
    ----------
    encoder : tuple of EncoderLayerKeep or None
        In each layer of the encoder.
    decoder : tuple of DecoderLayerKeep or None
        In each layer of the decoder.
    """

    encoder: tuple[EncoderLayerKeep, ...] | None = None
    decoder: tuple[DecoderLayerKeep, ...] | None = None
