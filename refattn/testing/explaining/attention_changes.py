"""How the calls of softmax attention are changed, so that they follow another convention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import refattn
from refattn import masks
from refattn._core import Array
from refattn.attention.dot_product.scaled_dot_product import allowed_pairs
from refattn.testing.explaining.alternative import (
    Arguments,
    Call,
    Change,
    DoesNotApply,
    Map,
    Named,
    given,
    into,
    swapped,
    without_gradients,
)

LN2 = math.log(2)


def is_limited(a: Arguments) -> bool:
    """Whether positions matter."""
    return bool(a.get("causal") or a.get("window") is not None)


def moved_edge(shift: int) -> Change:
    """A causal mask that is moved by some keys; a window keeps its own end."""

    def change(a: Arguments) -> dict[str, Any] | None:
        if not a.get("causal"):
            return None
        near = masks.distance(a["query"].shape[-2], a["key"].shape[-2], align=a.get("align")) <= shift
        return {"causal": False, "mask": near if a.get("mask") is None else a["mask"] & near}

    return given(change)


def moved_window(left: int | None, right: int | None) -> Change:
    """Ends of a window that are moved; None opens one."""

    def change(a: Arguments) -> dict[str, Any] | None:
        if a.get("window") is None:
            return None
        ends = tuple(None if by is None or n is None else n + by for n, by in zip(a["window"], (left, right), strict=True))
        return None if ends == a["window"] or any(n is not None and n < 0 for n in ends) else {"window": ends}

    return given(change)


def causal_too(a: Arguments, align: masks.Align | None) -> dict[str, Any] | None:
    """A causal mask where there is none; alignments matter where lengths differ."""
    if a.get("causal") or (a["query"].shape[-2] == a["key"].shape[-2]) != (align is None):
        return None
    return {"causal": True, "align": align}


def reversed_window(a: Arguments) -> dict[str, Any] | None:
    """A window with its ends in each other's place."""
    window = a.get("window")
    return None if window is None or window[0] == window[1] else {"window": (window[1], window[0])}


def scale_of(a: Arguments) -> Any:
    """The scale in effect."""
    return a["query"].shape[-1] ** -0.5 if a.get("scale") is None else a["scale"]


def other_scale(new: Callable[[Any, Arguments], Any]) -> Change:
    """Another scale, made of the one in effect."""
    return given(lambda a: {"scale": new(scale_of(a), a)} if "key" in a else None)


def allowed_in(a: Arguments) -> Any:
    """Which pairs the call allows."""
    options = {n: a.get(n) for n in ("mask", "align", "window")}
    return allowed_pairs((*a["query"].shape[:-1], a["key"].shape[-2]), a.get("bias"), causal=bool(a.get("causal")), **options)


def everywhere(a: Arguments, bias: Any) -> dict[str, Any]:
    """A bias that says all that masks did."""
    return {"mask": None, "causal": False, "window": None, "bias": bias}


def finite_bias(a: Arguments) -> Any:
    """The bias, with 0 where it masks."""
    bias = a.get("bias")
    return 0.0 if bias is None else np.where(np.isneginf(bias), 0, bias)


def lowered(amount: float) -> Change:
    """Masked scores that are lowered by a number, and not to minus infinity."""
    return given(lambda a: None if allowed_in(a).all() else everywhere(a, finite_bias(a) + np.where(allowed_in(a), 0, amount)))


def set_to(value: Callable[[Arguments], Any]) -> Change:
    """Masked scores that are replaced by a number: a part of their own, which is merged with the part that is allowed."""

    def outputs(call: Call, a: Arguments) -> Named:
        allowed, score = allowed_in(a), value(a)
        if allowed.all() or score is None:
            raise DoesNotApply
        attended = refattn.scaled_dot_product_attention_with_lse
        seen = attended(**a)
        rest = {n: a[n] for n in ("query", "key", "value")}
        hidden = attended(**rest, mask=~allowed, bias=np.full(allowed.shape[-2:], score, a["query"].dtype), scale=0.0)
        merged = refattn.merge_attention(np.stack([seen.output, hidden.output]), np.stack([seen.lse, hidden.lse]))
        return dict(zip(("output", "lse"), merged, strict=True))

    return without_gradients(outputs)


def added_mask(a: Arguments) -> dict[str, Any] | None:
    """The mask as a bias of 0 and 1."""
    mask = a.get("mask")
    return None if mask is None else {"mask": None, "bias": as_bias(a) + mask.astype(a["query"].dtype)}


def as_bias(a: Arguments) -> Any:
    """The bias; 0 where there is none."""
    return 0.0 if a.get("bias") is None else a["bias"]


def capped_after_bias(call: Call) -> Call:
    """The bias becomes more channels of queries and keys, so that the cap comes after it."""

    def other(a: Arguments) -> tuple[Named, Callable[[Named], Named]]:
        if a.get("softcap") is None or a.get("bias") is None or not np.isscalar(scale_of(a)):
            raise DoesNotApply
        query, key, scale = a["query"], a["key"], scale_of(a)
        shape = (*query.shape[:-1], key.shape[-2])
        bias = np.broadcast_to(finite_bias(a), shape)
        group = query.shape[-3] // key.shape[-3]
        keys, values = (np.repeat(x, group, axis=-3) for x in (key, a["value"]))
        one_hot = np.broadcast_to(np.eye(shape[-2], dtype=query.dtype), (*query.shape[:-1], shape[-2]))
        more = {
            "query": np.concatenate([query * scale, one_hot], axis=-1),
            "key": np.concatenate([keys, bias.swapaxes(-1, -2)], axis=-1),
            "value": values,
            "scale": 1.0,
            "bias": None,
            "mask": allowed_in(a),
        }
        y, pullback = call({**a, **more})
        d = query.shape[-1]

        def back(ds: Named) -> Named:
            g = pullback(ds)
            summed = {
                n: g[n][..., : d if n == "key" else None].reshape(*a[n].shape[:-2], group, *a[n].shape[-2:]) for n in ("key", "value")
            }
            return {"query": g["query"][..., :d] * scale, **{n: x.sum(axis=-3) for n, x in summed.items()}}

        return y, back

    return other


def tiled_heads(names: tuple[str, ...]) -> Change:
    """Query head h reads key head h % kv_heads."""

    def maps(a: Arguments) -> dict[str, Map] | None:
        heads, kv_heads = a["query"].shape[-3], a["key"].shape[-3]
        if not 1 < kv_heads < heads:
            return None
        group = heads // kv_heads

        def folded(d: Array) -> Array:
            return d.reshape(*d.shape[:-3], group, kv_heads, *d.shape[-2:]).sum(axis=-4)

        def interleaved(d: Array) -> Array:
            return d.reshape(*d.shape[:-3], kv_heads, group, *d.shape[-2:]).sum(axis=-3)

        tiled = Map(lambda x: np.concatenate([x] * group, axis=-3), folded)
        repeated = Map(lambda x: np.repeat(x, group, axis=-3), interleaved)
        return {n: tiled if n in names else repeated for n in ("key", "value")}

    return into(maps)


def over_queries(call: Call, a: Arguments) -> Named:
    """Weights of a key sum to 1 over the queries."""
    query, key, value = a["query"], a["key"], a["value"]
    if len({"softcap", "sinks", "keep"} & {n for n, x in a.items() if x is not None}):
        raise DoesNotApply
    keys, values = (np.repeat(x, query.shape[-3] // max(x.shape[-3], 1), axis=-3) for x in (key, value))
    scores = query @ keys.swapaxes(-1, -2) * scale_of(a) + finite_bias(a)
    weights = refattn.masked_softmax(scores.swapaxes(-1, -2), mask=allowed_in(a).swapaxes(-1, -2)).weights.swapaxes(-1, -2)
    return {"output": weights @ values, "weights": weights}


def unnormalised(call: Call, a: Arguments) -> Named:
    """Weights that the sum does not divide; the largest is 1."""
    attended = refattn.scaled_dot_product_attention_with_weights(**a)
    largest = attended.weights.max(axis=-1, keepdims=True, initial=0)
    total = np.where(largest > 0, largest, 1)
    return {"output": attended.output / total, "weights": attended.weights / total}


def lse_without_sinks(call: Call, a: Arguments) -> Named:
    """The log-sum-exp of the keys alone."""
    y, _ = call(a)
    if "lse" not in y or a.get("sinks") is None:
        raise DoesNotApply
    return {**y, "lse": call({**a, "sinks": None})[0]["lse"]}


def heads_and_length(a: Arguments) -> dict[str, Map] | None:
    """Heads and length in each other's place."""
    return {n: swapped(-3, -2) for n in ("query", "key", "value")} if a["query"].ndim > 3 else None


def read_as_bshd(a: Arguments) -> dict[str, Map] | None:
    """The memory of (heads, length) taken for that of (length, heads), in what comes in and goes out."""
    if a["query"].ndim < 4 or a["query"].shape[-3] == 1:
        return None
    return {n: of_other_memory(a[n].shape) for n in ("query", "key", "value")}


def of_other_memory(shape: tuple[int, ...]) -> Map:
    """Memory of (heads, length) read as that of (length, heads)."""
    other = (*shape[:-3], shape[-2], shape[-3], shape[-1])
    return Map(lambda x: x.reshape(other).swapaxes(-3, -2), lambda d: d.swapaxes(-3, -2).reshape(shape))


def written_as_bshd(a: Arguments) -> dict[str, Map] | None:
    """The output's memory as (length, heads)."""
    if a["query"].ndim < 4 or a["query"].shape[-3] == 1:
        return None
    return {
        "output": Map(
            lambda x: x.swapaxes(-3, -2).reshape(x.shape),
            lambda d: d.reshape(*d.shape[:-3], d.shape[-2], d.shape[-3], d.shape[-1]).swapaxes(-3, -2),
        )
    }


def read_transposed(shape: tuple[int, ...]) -> Map:
    """Memory of (length, channels) read as that of (channels, length)."""
    other = (*shape[:-2], shape[-1], shape[-2])
    return Map(lambda x: x.reshape(other).swapaxes(-1, -2), lambda d: d.swapaxes(-1, -2).reshape(shape))
