"""Attention by inner products.

A query is compared with every key by an inner product; the softmax of the comparisons weighs the values. In several heads it
does so for several projections at once, or, without projections, for shares of the features. Attentions over parts of the keys
merge exactly, so that some rows can be computed over any number of keys.
"""

from refattn.attention.dot_product.heads import merge_heads, multi_head_attention_without_projections, split_heads
from refattn.attention.dot_product.merge import merge_attention
from refattn.attention.dot_product.multi_head import multi_head_attention
from refattn.attention.dot_product.rows import scaled_dot_product_attention_rows
from refattn.attention.dot_product.scaled_dot_product import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_with_lse,
    scaled_dot_product_attention_with_weights,
)

__all__ = [
    "merge_attention",
    "merge_heads",
    "multi_head_attention",
    "multi_head_attention_without_projections",
    "scaled_dot_product_attention",
    "scaled_dot_product_attention_rows",
    "scaled_dot_product_attention_with_lse",
    "scaled_dot_product_attention_with_weights",
    "split_heads",
]
