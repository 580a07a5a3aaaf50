"""Layers one after another, and a norm after the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from refattn._core import Array, Grads, Pullback
from refattn._core.tree import add, pick
from refattn.blocks.weights import NormWeights
from refattn.primitives.normalization import layer_norm


def each_keep(keep: Sequence[Any] | None, layers: Sequence[Any]) -> Sequence[Any]:
    """What dropout keeps in each layer; ValueError where it has not one record for each."""
    if keep is not None and len(keep) != len(layers):
        raise ValueError(f"keep has {len(keep)} records, but there are {len(layers)} layers")
    return [None] * len(layers) if keep is None else keep


def stack(
    x: Array, layers: Sequence[Callable[[Array], tuple[Array, Pullback]]], norm: NormWeights | None, eps: float
) -> tuple[Array, Pullback]:
    """Each layer on the output of the one before; a memory that all layers read gets the sum of their gradients."""
    hidden, pullbacks = x, []
    for layer in layers:
        hidden, layer_pullback = layer(hidden)
        pullbacks.append(layer_pullback)
    output, norm_pullback = (hidden, lambda dy: {"x": dy}) if norm is None else layer_norm.vjp(hidden, *norm, eps=eps)

    def pullback(dy: Array) -> Grads:
        d_norm = norm_pullback(dy)
        d_hidden, d_layers, d_memories = d_norm["x"], [], []
        for layer_pullback in reversed(pullbacks):
            d_layer = layer_pullback(d_hidden)
            d_hidden = d_layer["x"]
            d_layers.insert(0, d_layer["weights"])
            d_memories += [d_layer["memory"]] if "memory" in d_layer else []
        memory = {"memory": add(*d_memories)} if d_memories else {}
        return {"x": d_hidden, "layers": tuple(d_layers), "final_norm": pick(NormWeights, d_norm), **memory}

    return output, pullback
