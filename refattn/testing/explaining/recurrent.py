"""What linear attention is in other hands: when a state decays and is read, how it lies in memory, what scales it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn._core import Array
from refattn.testing.explaining.alternative import (
    Alternative,
    Arguments,
    Call,
    DoesNotApply,
    Map,
    Named,
    family,
    given,
    into,
    out_of,
    swapped,
)

WRITERS = ("key", "value", "log_decay", "beta")


def _scale(a: Arguments) -> Any:
    return a["query"].shape[-1] ** -0.5 if a.get("scale") is None else a["scale"]


def _decay_after(call: Call) -> Call:
    """What a position writes decays with the rest: the factor goes to the key, or beside beta to the value."""

    def other(a: Arguments) -> tuple[Named, Any]:
        if a.get("log_decay") is None:
            raise DoesNotApply
        written, decay = ("value", np.exp(a["log_decay"])[..., None]) if "beta" in a else ("key", np.exp(a["log_decay"]))
        decayed = a[written] * decay
        y, pullback = call({**a, written: decayed})

        def back(ds: Named) -> Named:
            g = pullback(ds)
            more = g[written] * decayed
            return {**g, written: g[written] * decay, "log_decay": g["log_decay"] + (more.sum(axis=-1) if "beta" in a else more)}

        return y, back

    return other


def _read_before(call: Call) -> Call:
    """An empty position in front, so that each query reads what stood before its own."""

    def other(a: Arguments) -> tuple[Named, Any]:
        if a.get("causal") is False:
            raise DoesNotApply
        arrays = {n: a[n] for n in WRITERS if a.get(n) is not None}
        stated = {"key": 1, "value": 1, "log_decay": a["key"].ndim - arrays.get("log_decay", a["key"]).ndim, "beta": 1}
        axes = {n: -2 if n in {"key", "value"} or (n == "log_decay" and not stated[n]) else -1 for n in arrays}
        more: dict[str, Any] = {n: np.concatenate([np.zeros_like(x.take([0], axes[n])), x], axes[n]) for n, x in arrays.items()}
        more["query"] = np.concatenate([a["query"], np.zeros_like(a["query"][..., :1, :])], -2)
        y, pullback = call({**a, **more})

        def back(ds: Named) -> Named:
            padded = np.concatenate([ds["output"], np.zeros_like(ds["output"][..., :1, :])], -2)
            g = dict(pullback({**ds, "output": padded}))
            g["query"] = g["query"][..., :-1, :]
            return {n: np.delete(x, 0, axes[n]) if n in axes else x for n, x in g.items()}

        return {**y, "output": y["output"][..., :-1, :]}, back

    return other


def _transposed_state(a: Arguments) -> dict[str, Map] | None:
    return {"state": swapped(-1, -2)}


def _square(a: Arguments) -> bool:
    return a["query"].shape[-1] == a["value"].shape[-1]


def _unit(x: Array) -> Array:
    return x / np.maximum(np.sqrt((x * x).sum(axis=-1, keepdims=True)), np.finfo(float).tiny)


RECURRENT: tuple[Alternative, ...] = (
    *family(
        "decay",
        [
            ("the state decays after a position has written to it", _decay_after),
            ("decays are logarithms of base 2", into(lambda a: {"log_decay": Map(lambda x: x * math.log(2), lambda d: d * math.log(2))})),
            ("decays have the other sign", into(lambda a: {"log_decay": Map(np.negative, np.negative)})),
            ("the decay is missing", given(lambda a: {"log_decay": np.zeros_like(a["log_decay"])} if "log_decay" in a else None)),
        ],
    ),
    *family("reading", [("a query reads the state before its own position is written", _read_before)]),
    *family(
        "state",
        [
            ("the state that comes out is (value_dim, head_dim)", out_of(_transposed_state)),
            ("the state that goes in is (value_dim, head_dim)", into(lambda a: _transposed_state(a) if _square(a) else None)),
            (
                "the state is (value_dim, head_dim), in and out",
                lambda call: out_of(_transposed_state)(into(lambda a: _transposed_state(a) if _square(a) else None)(call)),
            ),
            ("the state before the first position is ignored", given(lambda a: None if a.get("state") is None else {"state": None})),
        ],
    ),
    *family(
        "scale",
        [
            ("the scale is missing", given(lambda a: {"scale": 1.0})),
            ("the scale is 1 / head_dim", given(lambda a: {"scale": 1 / a["query"].shape[-1]})),
            ("the scale is applied twice", given(lambda a: {"scale": _scale(a) ** 2})),
            ("the scale is 1 / sqrt(head_dim), whatever was given", given(lambda a: None if a.get("scale") is None else {"scale": None})),
        ],
    ),
    *family(
        "normaliser",
        [
            (
                "the weights are not divided by their sum",
                given(lambda a: {"normalize": False} if "normalizer" in a or a.get("normalize", True) else None),
            ),
            ("the weights are divided by their sum", given(lambda a: None if a.get("normalize", True) else {"normalize": True})),
            (
                "the normaliser before the first position is ignored",
                given(lambda a: None if a.get("normalizer") is None else {"normalizer": None}),
            ),
            ("eps is missing", given(lambda a: {"eps": 0.0} if a.get("eps") else None)),
        ],
    ),
    *family(
        "causal",
        [
            ("the causal mask is missing", given(lambda a: {"causal": False} if a.get("causal") else None)),
            ("it is causal", given(lambda a: None if a.get("causal") else {"causal": True})),
        ],
    ),
    *family(
        "features",
        [
            (f"the feature map is {f}", given(lambda a, f=f: {"feature_map": f} if a.get("feature_map", "elu_plus_one") != f else None))
            for f in ("elu_plus_one", "relu", None)
        ],
    ),
    *family(
        "delta",
        [
            ("beta is missing", given(lambda a: {"beta": np.ones_like(a["beta"])} if "beta" in a else None)),
            ("keys are normalised to length 1", given(lambda a: {"key": _unit(a["key"])})),
            ("queries and keys are normalised to length 1", given(lambda a: {"key": _unit(a["key"]), "query": _unit(a["query"])})),
        ],
    ),
    *family(
        "heads",
        [
            (
                "query head h reads key and value head h % kv_heads (tiled, not interleaved)",
                given(
                    lambda a: (
                        {n: np.concatenate([a[n]] * (a["query"].shape[-3] // a["key"].shape[-3]), axis=-3) for n in ("key", "value")}
                        if 1 < a["key"].shape[-3] < a["query"].shape[-3]
                        and not {"log_decay", "beta", "state"} & {n for n in a if a[n] is not None}
                        else None
                    )
                ),
            )
        ],
    ),
)
