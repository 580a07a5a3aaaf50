"""Attention that takes one value instead of an average.

What is drawn is an argument, so that a call can be repeated and compared. `hard_attention` takes the value that the caller
drew and says how probable that was, so that the cotangents make the estimator. The others have a gradient through the draw:
`gumbel_softmax` softens it, and the straight-through functions take it as it is and let the gradient pass as if it were soft.
"""

from refattn.attention.stochastic.gumbel import gumbel_softmax, gumbel_softmax_attention, straight_through_gumbel_softmax
from refattn.attention.stochastic.hard import hard_attention
from refattn.attention.stochastic.straight_through import straight_through_attention

__all__ = [
    "gumbel_softmax",
    "gumbel_softmax_attention",
    "hard_attention",
    "straight_through_attention",
    "straight_through_gumbel_softmax",
]
