"""Attention over the positions of a feature map.

Every position of an image or a video is compared with all the others, however far. Beside a convolution, which sees what is
near, such an attention gives more channels (`attention_augmented_conv2d`) or is added (`conv_attention_sum`); or it sees a
square of neighbours itself (`local_attention_2d`), and shares its projections with the convolution (`acmix`).
"""

from refattn.attention.spatial.acmix import acmix
from refattn.attention.spatial.conv_attention import attention_augmented_conv2d, conv_attention_sum
from refattn.attention.spatial.local_attention import local_attention_2d
from refattn.attention.spatial.non_local import non_local
from refattn.attention.spatial.weights import AcmixWeights, ConvAttentionWeights

__all__ = [
    "AcmixWeights",
    "ConvAttentionWeights",
    "acmix",
    "attention_augmented_conv2d",
    "conv_attention_sum",
    "local_attention_2d",
    "non_local",
]
