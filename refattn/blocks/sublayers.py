"""What the layers of a Transformer are made of: a residual around an attention or a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from refattn._core import Array, Booleans, Grads, Pullback
from refattn._core.tree import pick
from refattn.attention.dot_product.multi_head import multi_head_attention
from refattn.blocks.feed_forward import feed_forward
from refattn.blocks.weights import AttentionWeights, FeedForwardWeights, NormWeights
from refattn.primitives.arithmetic import add
from refattn.primitives.attention_stages import dropout
from refattn.primitives.normalization import layer_norm

Norm: TypeAlias = Literal["pre", "post"]
Sublayer: TypeAlias = Callable[[Array], tuple[Array, Pullback]]


def self_attention(weights: AttentionWeights, **options: Any) -> Sublayer:
    """Attention of tokens to themselves: the three gradients of the tokens add up."""

    def sublayer(x: Array) -> tuple[Array, Pullback]:
        y, attention_pullback = multi_head_attention.vjp(x, x, x, *weights, **options)

        def pullback(dy: Array) -> Grads:
            d = attention_pullback(dy)
            return {"x": d["query"] + d["key"] + d["value"], "weights": pick(AttentionWeights, d)}

        return y, pullback

    return sublayer


def cross_attention(memory: Array, weights: AttentionWeights, **options: Any) -> Sublayer:
    """Attention of tokens to a memory."""

    def sublayer(x: Array) -> tuple[Array, Pullback]:
        y, attention_pullback = multi_head_attention.vjp(x, memory, memory, *weights, **options)

        def pullback(dy: Array) -> Grads:
            d = attention_pullback(dy)
            return {"x": d["query"], "memory": d["key"] + d["value"], "weights": pick(AttentionWeights, d)}

        return y, pullback

    return sublayer


def network(weights: FeedForwardWeights, **options: Any) -> Sublayer:
    """The network that transforms each token by itself."""

    def sublayer(x: Array) -> tuple[Array, Pullback]:
        y, network_pullback = feed_forward.vjp(x, *weights, **options)

        def pullback(dy: Array) -> Grads:
            d = network_pullback(dy)
            return {"x": d["x"], "weights": pick(FeedForwardWeights, d)}

        return y, pullback

    return sublayer


def residual(
    x: Array, sublayer: Sublayer, weights: NormWeights, *, norm: Norm, eps: float, keep: Booleans | None, dropout_rate: float
) -> tuple[Array, Pullback]:
    """``x + dropout(sublayer(norm(x)))``, or ``norm(x + dropout(sublayer(x)))``; adds "norm" to the sublayer's gradients."""
    before, before_pullback = layer_norm.vjp(x, *weights, eps=eps) if norm == "pre" else (x, lambda dy: {"x": dy})
    inside, sublayer_pullback = sublayer(before)
    kept, dropout_pullback = dropout.vjp(inside, keep=keep, rate=dropout_rate)
    total, add_pullback = add.vjp(x, kept)
    output, after_pullback = layer_norm.vjp(total, *weights, eps=eps) if norm == "post" else (total, lambda dy: {"x": dy})

    def pullback(dy: Array) -> Grads:
        d_after = after_pullback(dy)
        d_add = add_pullback(d_after["x"])
        d_inside = sublayer_pullback(dropout_pullback(d_add["b"])["x"])
        d_before = before_pullback(d_inside["x"])
        d_norm = d_before if norm == "pre" else d_after
        return {**d_inside, "x": d_add["a"] + d_before["x"], "norm": pick(NormWeights, d_norm)}

    return output, pullback
