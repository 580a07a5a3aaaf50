"""Attention by inner products.

A query is compared with every key by an inner product; the softmax of the comparisons weighs the values.
"""

from refattn.attention.dot_product.scaled_dot_product import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_with_lse,
    scaled_dot_product_attention_with_weights,
)

__all__ = ["scaled_dot_product_attention", "scaled_dot_product_attention_with_lse", "scaled_dot_product_attention_with_weights"]
