"""Attention over the positions of a feature map.

Every position of an image or a video is compared with all the others, however far: `pixel_self_attention` is multi-head
attention whose tokens are the pixels, `non_local` has it and three other comparisons, `non_local_means` is their ancestor. `residual_attention` is a gate for
each channel at each position.
"""

from refattn.attention.spatial.non_local import non_local
from refattn.attention.spatial.non_local_means import non_local_means
from refattn.attention.spatial.pixel_self_attention import pixel_self_attention
from refattn.attention.spatial.residual_attention import residual_attention

__all__ = ["non_local", "non_local_means", "pixel_self_attention", "residual_attention"]
