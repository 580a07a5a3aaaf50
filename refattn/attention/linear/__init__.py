"""Attention whose memory does not grow.

Where no softmax stands between queries and keys, all keys and values fit into one matrix, the state: a position adds its
value in the direction of its key, and a query reads what stands in its own direction. Linear attention adds and never
forgets; with a gate the state decays; the delta rule first erases what it holds for a key. Every form runs step by step,
and chunk by chunk, which gives the same and is what fast kernels do.
"""

from refattn.attention.linear.delta import chunked_delta_rule, delta_rule
from refattn.attention.linear.gated import chunked_gated_linear_attention, gated_linear_attention
from refattn.attention.linear.gated_delta import chunked_gated_delta_rule, gated_delta_rule
from refattn.attention.linear.linear import chunked_linear_attention, linear_attention

__all__ = [
    "chunked_delta_rule",
    "chunked_gated_delta_rule",
    "chunked_gated_linear_attention",
    "chunked_linear_attention",
    "delta_rule",
    "gated_delta_rule",
    "gated_linear_attention",
    "linear_attention",
]
