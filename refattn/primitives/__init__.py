"""What the mechanisms are made of; each knows its own derivative.

Read `softmax` and `linear` first: every other file has their shape.
"""

from refattn.primitives.activation import elu_plus_one, gelu, relu, sigmoid, silu, softplus, tanh
from refattn.primitives.adaptive_pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
)
from refattn.primitives.arithmetic import add, matmul, multiply, weighted_sum
from refattn.primitives.attention_stages import dropout, masked_softmax, scaled, softcap
from refattn.primitives.average_pooling import avg_pool1d, avg_pool2d, avg_pool3d
from refattn.primitives.cumsum import cumsum
from refattn.primitives.distance import squared_distances
from refattn.primitives.erf import erf, erfc
from refattn.primitives.indexing import embedding, gather, padded_embedding, scatter_add, segment_softmax, segment_sum
from refattn.primitives.linear import linear
from refattn.primitives.loss import cross_entropy, mean_squared_error
from refattn.primitives.max_pooling import max_pool1d, max_pool2d, max_pool3d
from refattn.primitives.normalization import batch_norm, batch_norm_training, group_norm, instance_norm, layer_norm, rms_norm
from refattn.primitives.padding import pad
from refattn.primitives.reductions import global_avg_pool, global_max_pool, max_over, mean_over
from refattn.primitives.resize import resize_bilinear, resize_nearest
from refattn.primitives.sampling import sample_bilinear
from refattn.primitives.softmax import log_softmax, logsumexp, softmax
from refattn.primitives.triangular_solve import triangular_solve

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "add",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "batch_norm_training",
    "cross_entropy",
    "cumsum",
    "dropout",
    "elu_plus_one",
    "embedding",
    "erf",
    "erfc",
    "gather",
    "gelu",
    "global_avg_pool",
    "global_max_pool",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "linear",
    "log_softmax",
    "logsumexp",
    "masked_softmax",
    "matmul",
    "max_over",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "mean_over",
    "mean_squared_error",
    "multiply",
    "pad",
    "padded_embedding",
    "relu",
    "resize_bilinear",
    "resize_nearest",
    "rms_norm",
    "sample_bilinear",
    "scaled",
    "scatter_add",
    "segment_softmax",
    "segment_sum",
    "sigmoid",
    "silu",
    "softcap",
    "softmax",
    "softplus",
    "squared_distances",
    "tanh",
    "triangular_solve",
    "weighted_sum",
]
