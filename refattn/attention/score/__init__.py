"""Attention whose scores come from something else than an inner product.

The first attention of all compared a query with a key in a small network; it still serves where the two have different
widths.
"""

from refattn.attention.score.additive import additive_attention

__all__ = ["additive_attention"]
