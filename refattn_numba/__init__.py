"""The fast twin of `refattn`: the same names, signatures and checks, compiled by Numba for all cores.

Arguments are computed in float64 where one of them has it, in float32 otherwise (float16 and bfloat16 included).
"""

from refattn_numba._twin import twins, using
from refattn_numba.attention import scaled_dot_product_attention, scaled_dot_product_attention_with_lse
from refattn_numba.cpu.attention import warm_up

__all__ = ["scaled_dot_product_attention", "scaled_dot_product_attention_with_lse", "twins", "using", "warm_up"]
