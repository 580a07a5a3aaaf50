"""The fast twin of `refattn`: the same names, signatures and checks, compiled by Numba for all cores.

Arguments are computed in float64 where one of them has it, in float32 otherwise. Softmax attention returns float16 or bfloat16 where
all arguments are stored so, and multiplies bfloat16 by the processor's own instruction where it has one; its sums are float32. Caches
are read in the types in which they are stored, float8 and int8 included. What is made of others is the reference's own body over fast
parts. All take tensors of PyTorch in main memory too, and then return tensors, without a copy.
(PYTEST_DONT_REWRITE: pytest finds its plugin beside this package, which may have been imported before.)
"""

from refattn_numba import _finder  # noqa: F401  # before all that imports refattn_numba.cuda
from refattn_numba._twin import twins, using
from refattn_numba.attention import scaled_dot_product_attention, scaled_dot_product_attention_with_lse
from refattn_numba.causal import causal_conv1d
from refattn_numba.composites import (
    acmix,
    cbam,
    multi_head_attention,
    non_local,
    separable_conv2d,
    squeeze_excitation,
    transformer,
    transformer_decoder,
    transformer_decoder_layer,
    transformer_encoder,
    transformer_encoder_layer,
)
from refattn_numba.convolution import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    depthwise_conv2d,
    pointwise_conv2d,
)
from refattn_numba.cpu.specialisations import warm_up
from refattn_numba.decode import decode_attention, decode_attention_with_lse, paged_attention, paged_attention_with_lse
from refattn_numba.deformable import deform_conv2d, modulated_deform_conv2d
from refattn_numba.linear import (
    chunked_delta_rule,
    chunked_gated_delta_rule,
    chunked_gated_linear_attention,
    chunked_linear_attention,
    delta_rule,
    elu_plus_one,
    gated_delta_rule,
    gated_linear_attention,
    linear_attention,
)
from refattn_numba.varlen import varlen_attention, varlen_attention_with_lse

__all__ = [
    "acmix",
    "causal_conv1d",
    "cbam",
    "chunked_delta_rule",
    "chunked_gated_delta_rule",
    "chunked_gated_linear_attention",
    "chunked_linear_attention",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "decode_attention",
    "decode_attention_with_lse",
    "deform_conv2d",
    "delta_rule",
    "depthwise_conv2d",
    "elu_plus_one",
    "gated_delta_rule",
    "gated_linear_attention",
    "linear_attention",
    "modulated_deform_conv2d",
    "multi_head_attention",
    "non_local",
    "paged_attention",
    "paged_attention_with_lse",
    "pointwise_conv2d",
    "scaled_dot_product_attention",
    "scaled_dot_product_attention_with_lse",
    "separable_conv2d",
    "squeeze_excitation",
    "transformer",
    "transformer_decoder",
    "transformer_decoder_layer",
    "transformer_encoder",
    "transformer_encoder_layer",
    "twins",
    "using",
    "varlen_attention",
    "varlen_attention_with_lse",
    "warm_up",
]
