"""Attention as it is served: sequences of different lengths, and caches of what was computed before.

Sequences are packed one after another, or each has a cache with room behind it, or a table says which pages of one pool are
its own. Each is scaled dot-product attention of rows that first have to be found; codes of a quantised cache are multiplied by
their scales on the way.
"""

from refattn.attention.cached.append import append_to_cache
from refattn.attention.cached.decode import decode_attention, decode_attention_with_lse
from refattn.attention.cached.paged import paged_attention, paged_attention_with_lse
from refattn.attention.cached.varlen import varlen_attention, varlen_attention_with_lse

__all__ = [
    "append_to_cache",
    "decode_attention",
    "decode_attention_with_lse",
    "paged_attention",
    "paged_attention_with_lse",
    "varlen_attention",
    "varlen_attention_with_lse",
]
