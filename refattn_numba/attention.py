"""Softmax attention that never holds the scores: forward and backward in tiles, on all cores."""

from __future__ import annotations

from typing import Any

from refattn import scaled_dot_product_attention as reference
from refattn import scaled_dot_product_attention_with_lse as reference_with_lse
from refattn._core import Array, Pullback
from refattn.attention.dot_product.scaled_dot_product import AttendedWithLse
from refattn_numba._twin import twin_of
from refattn_numba.cpu.attention import attend
from refattn_numba.cuda.faces import on_device


@twin_of(reference, like=attend, narrow=True, finished=on_device)
def scaled_dot_product_attention(*args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
    """The docstring is the reference's."""
    attended, pullback = attend(*args, **kwargs)
    return attended.output, lambda d_output: pullback(d_output, None)


@twin_of(reference_with_lse, like=attend, narrow=True, finished=on_device)
def scaled_dot_product_attention_with_lse(*args: Any, **kwargs: Any) -> tuple[AttendedWithLse, Pullback]:
    """The docstring is the reference's."""
    attended, pullback = attend(*args, **kwargs)
    return AttendedWithLse(attended.output, attended.lse()), pullback
