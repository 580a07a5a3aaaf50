"""Attention over the positions of a feature map.

Every position of an image or a video is compared with all the others, however far.
"""

from refattn.attention.spatial.non_local import mean_weights, non_local

__all__ = ["mean_weights", "non_local"]
