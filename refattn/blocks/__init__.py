"""Whole layers and stacks of them.

Their weights are records whose fields are named as the parameters that they become, and N layers are a tuple of N records.
Read `feed_forward`, then `transformer_encoder_layer`: a residual around attention, and one around the network. For images,
read `residual_unit`, then `residual_attention_module`.
"""

from refattn.blocks.feed_forward import feed_forward
from refattn.blocks.residual_attention_module import residual_attention_module
from refattn.blocks.residual_unit import residual_unit
from refattn.blocks.residual_weights import (
    BatchNormWeights,
    ReducedNormWeights,
    ResidualAttentionWeights,
    ResidualUnitWeights,
    SoftMaskLevelWeights,
    SoftMaskWeights,
)
from refattn.blocks.soft_mask_branch import soft_mask_branch
from refattn.blocks.transformer import transformer
from refattn.blocks.transformer_decoder import transformer_decoder
from refattn.blocks.transformer_decoder_layer import transformer_decoder_layer
from refattn.blocks.transformer_encoder import transformer_encoder
from refattn.blocks.transformer_encoder_layer import transformer_encoder_layer
from refattn.blocks.weights import (
    AttentionWeights,
    DecoderLayerKeep,
    DecoderLayerWeights,
    EncoderLayerKeep,
    EncoderLayerWeights,
    FeedForwardWeights,
    NormWeights,
    TransformerKeep,
    TransformerWeights,
)

__all__ = [
    "AttentionWeights",
    "BatchNormWeights",
    "DecoderLayerKeep",
    "DecoderLayerWeights",
    "EncoderLayerKeep",
    "EncoderLayerWeights",
    "FeedForwardWeights",
    "NormWeights",
    "ReducedNormWeights",
    "ResidualAttentionWeights",
    "ResidualUnitWeights",
    "SoftMaskLevelWeights",
    "SoftMaskWeights",
    "TransformerKeep",
    "TransformerWeights",
    "feed_forward",
    "residual_attention_module",
    "residual_unit",
    "soft_mask_branch",
    "transformer",
    "transformer_decoder",
    "transformer_decoder_layer",
    "transformer_encoder",
    "transformer_encoder_layer",
]
