"""Attention whose scores come from something else than a scaled inner product.

The first attention of all compared a query with a key in a small network; it still serves where the two have different
widths. Soon after came the plain inner product, one with a matrix between query and key, the same network on both of them
behind each other, and a map that looks at the query alone. An image's regions are asked in the same way, and by a question
several times.
"""

from refattn.attention.score.additive import additive_attention
from refattn.attention.score.concat import concat_attention, perceptron_attention
from refattn.attention.score.dot import dot_attention, general_attention
from refattn.attention.score.location import location_attention
from refattn.attention.score.region import doubly_stochastic_penalty, region_attention
from refattn.attention.score.stacked import QuestionWeights, question_attention, stacked_attention

__all__ = [
    "QuestionWeights",
    "additive_attention",
    "concat_attention",
    "dot_attention",
    "doubly_stochastic_penalty",
    "general_attention",
    "location_attention",
    "perceptron_attention",
    "question_attention",
    "region_attention",
    "stacked_attention",
]
