"""Softmax attention that never holds the scores: forward and backward in tiles, on all cores."""

from __future__ import annotations

from refattn import masks
from refattn import scaled_dot_product_attention as reference
from refattn import scaled_dot_product_attention_with_lse as reference_with_lse
from refattn._core import Array, Booleans, Pullback
from refattn.attention.dot_product.scaled_dot_product import AttendedWithLse
from refattn.primitives.attention_stages import MaskedRows
from refattn_numba._twin import twin_of
from refattn_numba.cpu.attention import attend


@twin_of(reference)
def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    sinks: Array | None = None,
    *,
    mask: Booleans | None = None,
    causal: bool = False,
    align: masks.Align | None = None,
    window: tuple[int | None, int | None] | None = None,
    scale: Array | float | None = None,
    softcap: float | None = None,
    keep: Booleans | None = None,
    dropout_rate: float = 0.0,
    masked_rows: MaskedRows = "zero",
) -> tuple[Array, Pullback]:
    """The docstring is the reference's."""
    attended, pullback = attend(
        query, key, value, bias, sinks, mask, causal, align, window, scale, softcap, keep, dropout_rate, masked_rows
    )
    return attended.output, lambda d_output: pullback(d_output, None)


@twin_of(reference_with_lse)
def scaled_dot_product_attention_with_lse(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    sinks: Array | None = None,
    *,
    mask: Booleans | None = None,
    causal: bool = False,
    align: masks.Align | None = None,
    window: tuple[int | None, int | None] | None = None,
    scale: Array | float | None = None,
    softcap: float | None = None,
    keep: Booleans | None = None,
    dropout_rate: float = 0.0,
    masked_rows: MaskedRows = "zero",
) -> tuple[AttendedWithLse, Pullback]:
    """The docstring is the reference's."""
    attended, pullback = attend(
        query, key, value, bias, sinks, mask, causal, align, window, scale, softcap, keep, dropout_rate, masked_rows
    )
    return AttendedWithLse(*attended), pullback
