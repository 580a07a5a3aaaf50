"""What gradients of softmax attention are in other hands: scales, sums over a group, the part of the row sum."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import refattn
from refattn._core import Array
from refattn.testing.explaining.alternative import (
    Alternative,
    Arguments,
    Call,
    Change,
    DoesNotApply,
    Named,
    family,
    gradient_of,
)
from refattn.testing.explaining.attention_changes import (
    as_bias,
    scale_of,
)


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
        scores = a["query"] @ keys.swapaxes(-1, -2) * scale_of(a)
        y, pullback = call({**a, "softcap": None, "bias": as_bias(a) + cap * np.tanh(scores / cap) - scores})
        return y, lambda ds: {n: g for n, g in pullback(ds).items() if n != "bias"}

    return other


def _divided(names: tuple[str, ...], power: int) -> Change:
    """Gradients with another power of the scale."""

    def change(a: Arguments, g: Named) -> Named:
        if not np.isscalar(scale_of(a)):
            raise DoesNotApply
        return {n: g[n] * scale_of(a) ** power for n in names if n in g}

    return gradient_of(change)


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
