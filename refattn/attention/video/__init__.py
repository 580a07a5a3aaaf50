"""Attention in videos, over time and over space.

With a convolutional network for each frame, the frames' features are averaged with weights that a small network gives; the places
of a frame can be averaged in the same way before. Without one, a video is a set of patches that look at each other: at all of them
at once, or first over time and then over space, for far fewer comparisons.
"""

from refattn.attention.video.divided import (
    DividedWeights,
    divided_space_time_attention,
    divided_space_time_attention_with_class_token,
)
from refattn.attention.video.frame_cnn import frame_cnn_temporal_attention
from refattn.attention.video.joint import (
    JointWeights,
    joint_space_time_attention,
    joint_space_time_attention_with_class_token,
)
from refattn.attention.video.spatial_temporal import spatial_temporal_attention
from refattn.attention.video.temporal import PoolingWeights, temporal_attention

__all__ = [
    "DividedWeights",
    "JointWeights",
    "PoolingWeights",
    "divided_space_time_attention",
    "divided_space_time_attention_with_class_token",
    "frame_cnn_temporal_attention",
    "joint_space_time_attention",
    "joint_space_time_attention_with_class_token",
    "spatial_temporal_attention",
    "temporal_attention",
]
