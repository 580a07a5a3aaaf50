"""What softmax attention is in other hands: alignments, windows, scales, caps, masks, sinks, heads and layouts."""

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
    Alternative,
    Arguments,
    Call,
    Change,
    DoesNotApply,
    Map,
    Named,
    factor,
    family,
    given,
    gradient_of,
    into,
    out_of,
    swapped,
    when,
    without_gradients,
)

LN2 = math.log(2)


def _near(a: Arguments) -> bool:
    return bool(a.get("causal") or a.get("window") is not None)


def _distance(shift: int) -> Change:
    """A causal mask that is moved by some keys; a window keeps its own end."""

    def change(a: Arguments) -> dict[str, Any] | None:
        if not a.get("causal"):
            return None
        near = masks.distance(a["query"].shape[-2], a["key"].shape[-2], align=a.get("align")) <= shift
        return {"causal": False, "mask": near if a.get("mask") is None else a["mask"] & near}

    return given(change)


def _window(left: int | None, right: int | None) -> Change:
    """Ends of a window that are moved; None opens one."""

    def change(a: Arguments) -> dict[str, Any] | None:
        if a.get("window") is None:
            return None
        ends = tuple(None if by is None or n is None else n + by for n, by in zip(a["window"], (left, right), strict=True))
        return None if ends == a["window"] or any(n is not None and n < 0 for n in ends) else {"window": ends}

    return given(change)


def _causal_too(a: Arguments, align: masks.Align | None) -> dict[str, Any] | None:
    """A causal mask where there is none; alignments matter where lengths differ."""
    if a.get("causal") or (a["query"].shape[-2] == a["key"].shape[-2]) != (align is None):
        return None
    return {"causal": True, "align": align}


def _reversed_window(a: Arguments) -> dict[str, Any] | None:
    window = a.get("window")
    return None if window is None or window[0] == window[1] else {"window": (window[1], window[0])}


def _scale(a: Arguments) -> Any:
    """The scale in effect."""
    return a["query"].shape[-1] ** -0.5 if a.get("scale") is None else a["scale"]


def _scaled(new: Callable[[Any, Arguments], Any]) -> Change:
    return given(lambda a: {"scale": new(_scale(a), a)} if "key" in a else None)


def _allowed(a: Arguments) -> Any:
    """Which pairs the call allows."""
    options = {n: a.get(n) for n in ("mask", "align", "window")}
    return allowed_pairs((*a["query"].shape[:-1], a["key"].shape[-2]), a.get("bias"), causal=bool(a.get("causal")), **options)


def _everywhere(a: Arguments, bias: Any) -> dict[str, Any]:
    """A bias that says all that masks did."""
    return {"mask": None, "causal": False, "window": None, "bias": bias}


def _finite_bias(a: Arguments) -> Any:
    bias = a.get("bias")
    return 0.0 if bias is None else np.where(np.isneginf(bias), 0, bias)


def _added(amount: float) -> Change:
    """Masked scores that are lowered by a number, and not to minus infinity."""
    return given(lambda a: None if _allowed(a).all() else _everywhere(a, _finite_bias(a) + np.where(_allowed(a), 0, amount)))


def _replaced(value: Callable[[Arguments], Any]) -> Change:
    """Masked scores that are replaced by a number: a part of their own, which is merged with the part that is allowed."""

    def outputs(call: Call, a: Arguments) -> Named:
        allowed, score = _allowed(a), value(a)
        if allowed.all() or score is None:
            raise DoesNotApply
        attended = refattn.scaled_dot_product_attention_with_lse
        seen = attended(**a)
        rest = {n: a[n] for n in ("query", "key", "value")}
        hidden = attended(**rest, mask=~allowed, bias=np.full(allowed.shape[-2:], score, a["query"].dtype), scale=0.0)
        merged = refattn.merge_attention(np.stack([seen.output, hidden.output]), np.stack([seen.lse, hidden.lse]))
        return dict(zip(("output", "lse"), merged, strict=True))

    return without_gradients(outputs)


def _added_mask(a: Arguments) -> dict[str, Any] | None:
    mask = a.get("mask")
    return None if mask is None else {"mask": None, "bias": _as_bias(a) + mask.astype(a["query"].dtype)}


def _as_bias(a: Arguments) -> Any:
    return 0.0 if a.get("bias") is None else a["bias"]


def _capped_after_bias(call: Call) -> Call:
    """The bias becomes more channels of queries and keys, so that the cap comes after it."""

    def other(a: Arguments) -> tuple[Named, Callable[[Named], Named]]:
        if a.get("softcap") is None or a.get("bias") is None or not np.isscalar(_scale(a)):
            raise DoesNotApply
        query, key, scale = a["query"], a["key"], _scale(a)
        shape = (*query.shape[:-1], key.shape[-2])
        bias = np.broadcast_to(_finite_bias(a), shape)
        group = query.shape[-3] // key.shape[-3]
        keys, values = (np.repeat(x, group, axis=-3) for x in (key, a["value"]))
        one_hot = np.broadcast_to(np.eye(shape[-2], dtype=query.dtype), (*query.shape[:-1], shape[-2]))
        more = {
            "query": np.concatenate([query * scale, one_hot], axis=-1),
            "key": np.concatenate([keys, bias.swapaxes(-1, -2)], axis=-1),
            "value": values,
            "scale": 1.0,
            "bias": None,
            "mask": _allowed(a),
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


def _tiled(names: tuple[str, ...]) -> Change:
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


def _over_queries(call: Call, a: Arguments) -> Named:
    """Weights of a key sum to 1 over the queries."""
    query, key, value = a["query"], a["key"], a["value"]
    if len({"softcap", "sinks", "keep"} & {n for n, x in a.items() if x is not None}):
        raise DoesNotApply
    keys, values = (np.repeat(x, query.shape[-3] // max(x.shape[-3], 1), axis=-3) for x in (key, value))
    scores = query @ keys.swapaxes(-1, -2) * _scale(a) + _finite_bias(a)
    weights = refattn.masked_softmax(scores.swapaxes(-1, -2), mask=_allowed(a).swapaxes(-1, -2)).weights.swapaxes(-1, -2)
    return {"output": weights @ values, "weights": weights}


def _unnormalised(call: Call, a: Arguments) -> Named:
    """Weights that the sum does not divide; the largest is 1."""
    attended = refattn.scaled_dot_product_attention_with_weights(**a)
    largest = attended.weights.max(axis=-1, keepdims=True, initial=0)
    total = np.where(largest > 0, largest, 1)
    return {"output": attended.output / total, "weights": attended.weights / total}


def _lse_without_sinks(call: Call, a: Arguments) -> Named:
    y, _ = call(a)
    if "lse" not in y or a.get("sinks") is None:
        raise DoesNotApply
    return {**y, "lse": call({**a, "sinks": None})[0]["lse"]}


def _heads_and_length(a: Arguments) -> dict[str, Map] | None:
    return {n: swapped(-3, -2) for n in ("query", "key", "value")} if a["query"].ndim > 3 else None


def _read_as_bshd(a: Arguments) -> dict[str, Map] | None:
    """The memory of (heads, length) taken for that of (length, heads), in what comes in and goes out."""
    if a["query"].ndim < 4 or a["query"].shape[-3] == 1:
        return None
    return {n: _memory(a[n].shape) for n in ("query", "key", "value")}


def _memory(shape: tuple[int, ...]) -> Map:
    other = (*shape[:-3], shape[-2], shape[-3], shape[-1])
    return Map(lambda x: x.reshape(other).swapaxes(-3, -2), lambda d: d.swapaxes(-3, -2).reshape(shape))


def _written_as_bshd(a: Arguments) -> dict[str, Map] | None:
    if a["query"].ndim < 4 or a["query"].shape[-3] == 1:
        return None
    return {
        "output": Map(
            lambda x: x.swapaxes(-3, -2).reshape(x.shape),
            lambda d: d.reshape(*d.shape[:-3], d.shape[-2], d.shape[-3], d.shape[-1]).swapaxes(-3, -2),
        )
    }


def _transposed(shape: tuple[int, ...]) -> Map:
    other = (*shape[:-2], shape[-1], shape[-2])
    return Map(lambda x: x.reshape(other).swapaxes(-1, -2), lambda d: d.swapaxes(-1, -2).reshape(shape))


def _per_query_head(pick: Callable[[Array], Array]) -> Change:
    """The gradients of keys and values, of which each query head's part is known."""

    def changed(call: Call) -> Call:
        def other(a: Arguments) -> tuple[Named, Callable[[Named], Named]]:
            heads, kv_heads = a["query"].shape[-3], a["key"].shape[-3]
            if not kv_heads < heads:
                raise DoesNotApply
            spread = {n: np.repeat(a[n], heads // kv_heads, axis=-3) for n in ("key", "value")}
            y, pullback = call({**a, **spread})

            def back(ds: Named) -> Named:
                g = pullback(ds)
                parts = {n: g[n].reshape(*a[n].shape[:-2], heads // kv_heads, *a[n].shape[-2:]) for n in spread}
                return {**g, **{n: pick(x) for n, x in parts.items()}}

            return y, back

        return other

    return changed


def _unsubtracted(call: Call) -> Call:
    """Gradients of scores without the row sum: a cotangent of the log-sum-exp takes it away."""

    def other(a: Arguments) -> tuple[Named, Callable[[Named], Named]]:
        y, _ = call(a)
        attended, pullback = refattn.scaled_dot_product_attention_with_lse.vjp(**a)

        def back(ds: Named) -> Named:
            total = (attended.output * ds["output"]).sum(axis=-1)
            return pullback(ds["output"], ds.get("lse", 0) + total)

        return y, back

    return other


def _lse_cotangent(sign: float) -> Change:
    def changed(call: Call) -> Call:
        def other(a: Arguments) -> tuple[Named, Callable[[Named], Named]]:
            y, pullback = call(a)
            if "lse" not in y:
                raise DoesNotApply
            return y, lambda ds: pullback({**ds, "lse": sign * ds["lse"]})

        return other

    return changed


def _uncapped_slope(call: Call) -> Call:
    """The derivative of the cap taken for 1: what the cap has changed is a bias without a gradient."""

    def other(a: Arguments) -> tuple[Named, Callable[[Named], Named]]:
        if (cap := a.get("softcap")) is None:
            raise DoesNotApply
        keys = np.repeat(a["key"], a["query"].shape[-3] // a["key"].shape[-3], axis=-3)
        scores = a["query"] @ keys.swapaxes(-1, -2) * _scale(a)
        y, pullback = call({**a, "softcap": None, "bias": _as_bias(a) + cap * np.tanh(scores / cap) - scores})
        return y, lambda ds: {n: g for n, g in pullback(ds).items() if n != "bias"}

    return other


def _divided(names: tuple[str, ...], power: int) -> Change:
    """Gradients with another power of the scale."""

    def change(a: Arguments, g: Named) -> Named:
        if not np.isscalar(_scale(a)):
            raise DoesNotApply
        return {n: g[n] * _scale(a) ** power for n in names if n in g}

    return gradient_of(change)


ATTENTION: tuple[Alternative, ...] = (
    *family(
        "align",
        [
            (
                f"it is aligned at the {corner.replace('_', ' ')}: causal mask and window",
                given(lambda a, c=corner: {"align": c} if _near(a) else None),
            )
            for corner in ("upper_left", "lower_right")
        ],
    ),
    *family(
        "causal",
        [
            ("the causal mask is missing", given(lambda a: {"causal": False} if a.get("causal") else None)),
            ("each query sees one key beyond the causal edge", _distance(1)),
            ("the causal mask hides a query's own key", _distance(-1)),
            ("it is causal", given(lambda a: _causal_too(a, None))),
            ("it is causal, aligned at the upper left", given(lambda a: _causal_too(a, "upper_left"))),
            ("it is causal, aligned at the lower right", given(lambda a: _causal_too(a, "lower_right"))),
        ],
    ),
    *family(
        "window",
        [
            ("the window is missing", given(lambda a: None if a.get("window") is None else {"window": None})),
            ("the window reaches one key further to the left", _window(1, 0)),
            ("the window reaches one key less to the left", _window(-1, 0)),
            ("the window reaches one key further to the right", _window(0, 1)),
            ("the window reaches one key less to the right", _window(0, -1)),
            ("the window reaches one key further on both sides", _window(1, 1)),
            ("the window reaches one key less on both sides", _window(-1, -1)),
            ("the window has no limit to the left", _window(None, 0)),
            ("the window has no limit to the right", _window(0, None)),
            ("the window's left and right are swapped", given(_reversed_window)),
        ],
    ),
    *family(
        "scale",
        [
            ("the scale is missing", _scaled(lambda s, a: 1.0)),
            ("the scale is 1 / head_dim", _scaled(lambda s, a: 1 / a["query"].shape[-1])),
            ("the scale is sqrt(head_dim)", _scaled(lambda s, a: a["query"].shape[-1] ** 0.5)),
            ("the scale is 1 / sqrt(head_dim), whatever was given", given(lambda a: None if a.get("scale") is None else {"scale": None})),
            ("the scale is 1 / sqrt(value_dim)", _scaled(lambda s, a: a["value"].shape[-1] ** -0.5)),
            ("the scale is 1 / sqrt(heads * head_dim)", _scaled(lambda s, a: (a["query"].shape[-1] * a["query"].shape[-3]) ** -0.5)),
            ("the scale is applied twice", _scaled(lambda s, a: s * s)),
            ("scores are divided by the scale", _scaled(lambda s, a: 1 / s)),
            ("log2(e) is missing before a power of 2", _scaled(lambda s, a: s * LN2)),
            ("log2(e) multiplies scores of which the natural exponential is taken", _scaled(lambda s, a: s / LN2)),
        ],
    ),
    *family(
        "softcap",
        [
            ("the soft cap is missing", given(lambda a: None if a.get("softcap") is None else {"softcap": None})),
            ("the soft cap comes after the bias", _capped_after_bias),
            ("the soft cap comes before the scale", given(lambda a: {"softcap": a["softcap"] * _scale(a)} if a.get("softcap") else None)),
            (
                "the soft cap is tanh(score / cap), without the factor cap",
                given(lambda a: {"softcap": 1.0, "scale": _scale(a) / a["softcap"]} if a.get("softcap") else None),
            ),
        ],
    ),
    *family(
        "mask",
        [
            ("False in the mask means may attend", given(lambda a: None if a.get("mask") is None else {"mask": ~a["mask"]})),
            ("the mask is missing", given(lambda a: None if a.get("mask") is None else {"mask": None})),
            ("the mask is added to the scores as 0 and 1", given(_added_mask)),
            ("masked scores are lowered by 10000, not to minus infinity", _added(-10000.0)),
            ("masked scores are set to 0", _replaced(lambda a: 0.0)),
            ("masked scores are set to -10", _replaced(lambda a: -10.0)),
            ("masked scores are set to -10000", _replaced(lambda a: -10000.0)),
            ("masked scores are set to -1e9", _replaced(lambda a: -1e9)),
            ("the soft cap comes after the mask", _replaced(lambda a: None if a.get("softcap") is None else -a["softcap"])),
        ],
    ),
    *family("masked_rows", [(f"a row without keys is {p}", given(lambda a, p=p: {"masked_rows": p})) for p in ("zero", "nan", "uniform")]),
    *family(
        "bias",
        [
            ("the bias is missing", given(lambda a: None if a.get("bias") is None else {"bias": None})),
            ("the bias is subtracted", when(lambda a: not np.isneginf(_as_bias(a)).any(), into(lambda a: {"bias": factor(-1)}))),
            ("the bias is added before the scale", when(lambda a: np.isscalar(_scale(a)), into(lambda a: {"bias": factor(_scale(a))}))),
            ("the bias is in units of base 2", into(lambda a: {"bias": factor(LN2)})),
        ],
    ),
    *family(
        "sinks",
        [
            ("the sinks are missing", given(lambda a: None if a.get("sinks") is None else {"sinks": None})),
            ("the sinks are scaled like scores", when(lambda a: np.isscalar(_scale(a)), into(lambda a: {"sinks": factor(_scale(a))}))),
            ("the sinks are in units of base 2", into(lambda a: {"sinks": factor(LN2)})),
        ],
    ),
    *family(
        "lse",
        [
            ("the log-sum-exp is of base 2", out_of(lambda a: {"lse": factor(1 / LN2)})),
            ("the log-sum-exp leaves out the sink", without_gradients(_lse_without_sinks)),
            ("the log-sum-exp has the other sign", out_of(lambda a: {"lse": factor(-1)})),
        ],
    ),
    *family(
        "heads",
        [
            ("query head h reads key and value head h % kv_heads (tiled, not interleaved)", _tiled(("key", "value"))),
            ("query head h reads key head h % kv_heads, and value head h // group", _tiled(("key",))),
            ("query head h reads value head h % kv_heads, and key head h // group", _tiled(("value",))),
        ],
    ),
    *family(
        "layout",
        [
            ("it takes (batch, length, heads, head_dim): query, key and value", into(_heads_and_length)),
            (
                "it takes and returns (batch, length, heads, head_dim)",
                lambda call: out_of(lambda a: {"output": swapped(-3, -2)})(into(_heads_and_length)(call)),
            ),
            ("the output is (batch, length, heads, value_dim)", out_of(lambda a: {"output": swapped(-3, -2)})),
            ("memory is read as (batch, length, heads, head_dim)", into(_read_as_bshd)),
            (
                "memory is read and written as (batch, length, heads, head_dim)",
                lambda call: out_of(_written_as_bshd)(into(_read_as_bshd)(call)),
            ),
            ("memory of the output is written as (batch, length, heads, value_dim)", out_of(_written_as_bshd)),
            ("keys are read as (head_dim, length)", into(lambda a: {"key": _transposed(a["key"].shape)})),
            ("values are read as (value_dim, length)", into(lambda a: {"value": _transposed(a["value"].shape)})),
        ],
    ),
    *family(
        "dropout",
        [
            ("dropout is missing", given(lambda a: None if a.get("keep") is None else {"keep": None})),
            (
                "dropout does not divide by 1 - rate",
                given(lambda a: {"dropout_rate": 0.0} if a.get("keep") is not None and a.get("dropout_rate") else None),
            ),
            ("dropout drops where keep is True", given(lambda a: None if a.get("keep") is None else {"keep": ~a["keep"]})),
        ],
    ),
    *family(
        "softmax",
        [
            ("the softmax runs over the queries", without_gradients(_over_queries)),
            ("weights are not divided by their sum", without_gradients(_unnormalised)),
        ],
    ),
)


ATTENTION_GRADIENTS: tuple[Alternative, ...] = (
    *family(
        "gradient scale",
        [
            ("the gradient of the query lacks the scale", _divided(("query",), -1)),
            ("the gradient of the key lacks the scale", _divided(("key",), -1)),
            ("the gradients of query and key lack the scale", _divided(("query", "key"), -1)),
            ("the gradient of the query has the scale twice", _divided(("query",), 1)),
            ("the gradient of the key has the scale twice", _divided(("key",), 1)),
            ("the gradients of query and key have the scale twice", _divided(("query", "key"), 1)),
        ],
    ),
    *family(
        "row sum",
        [("no gradient goes through the sum of the softmax: the row sum of output and its cotangent is not subtracted", _unsubtracted)],
    ),
    *family(
        "gradient heads",
        [
            ("gradients of a group's heads are not summed: the first is taken", _per_query_head(lambda x: x[..., 0, :, :])),
            ("gradients of a group's heads are not summed: the last is taken", _per_query_head(lambda x: x[..., -1, :, :])),
            ("gradients of a group's heads are averaged, not summed", _per_query_head(lambda x: x.mean(axis=-3))),
        ],
    ),
    *family(
        "gradient lse",
        [
            ("the cotangent of the log-sum-exp is ignored", _lse_cotangent(0.0)),
            ("the cotangent of the log-sum-exp has the other sign", _lse_cotangent(-1.0)),
        ],
    ),
    *family("gradient softcap", [("the derivative of the soft cap is missing", _uncapped_slope)]),
)
