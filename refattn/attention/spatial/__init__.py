"""Attention over the positions of a feature map.

Every position of an image or a video is compared with all the others, however far: `pixel_self_attention` is multi-head
attention whose tokens are the pixels, `non_local` has it and three other comparisons, `non_local_means` is their ancestor.
Beside a convolution, which sees what is near, such an attention gives more channels (`attention_augmented_conv2d`) or is
added (`conv_attention_sum`); or it sees a square of neighbours itself (`local_attention_2d`), and shares its projections with
the convolution (`acmix`). `residual_attention` is a gate for each channel at each position.
"""

from refattn.attention.spatial.acmix import acmix
from refattn.attention.spatial.conv_attention import attention_augmented_conv2d, conv_attention_sum
from refattn.attention.spatial.local_attention import local_attention_2d
from refattn.attention.spatial.non_local import non_local
from refattn.attention.spatial.non_local_means import non_local_means
from refattn.attention.spatial.pairs import mean_weights
from refattn.attention.spatial.pixel_self_attention import pixel_self_attention
from refattn.attention.spatial.residual_attention import residual_attention
from refattn.attention.spatial.weights import AcmixWeights, ConvAttentionWeights

__all__ = [
    "AcmixWeights",
    "ConvAttentionWeights",
    "acmix",
    "attention_augmented_conv2d",
    "conv_attention_sum",
    "local_attention_2d",
    "mean_weights",
    "non_local",
    "non_local_means",
    "pixel_self_attention",
    "residual_attention",
]
