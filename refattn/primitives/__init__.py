"""What the mechanisms are made of; each knows its own derivative.

Read `softmax` and `linear` first: every other file has their shape.
"""

from refattn.primitives.activation import gelu, relu, sigmoid, silu, softplus, tanh
from refattn.primitives.attention_stages import dropout, masked_softmax, scaled, softcap
from refattn.primitives.erf import erf, erfc
from refattn.primitives.linear import linear
from refattn.primitives.padding import pad
from refattn.primitives.softmax import log_softmax, logsumexp, softmax

__all__ = [
    "dropout",
    "erf",
    "erfc",
    "gelu",
    "linear",
    "log_softmax",
    "logsumexp",
    "masked_softmax",
    "pad",
    "relu",
    "scaled",
    "sigmoid",
    "silu",
    "softcap",
    "softmax",
    "softplus",
    "tanh",
]
