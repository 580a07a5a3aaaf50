"""What normalisations, softmax and its relatives are in other hands: variances, epsilons, axes, bases."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refattn._core import Array
from refattn.testing.explaining.alternative import (
    Alternative,
    Arguments,
    Call,
    Change,
    DoesNotApply,
    Named,
    factor,
    family,
    given,
    into,
    out_of,
    swapped,
    without_gradients,
)

LN2 = math.log(2)
DEFAULT_EPS = {"rms_norm": 1e-6}


def _axes(a: Arguments, name: str) -> tuple[int, ...]:
    """The axes over which a normalisation takes its statistics, of x in the shape of `_grouped`."""
    ndim = a["x"].ndim
    if name in {"layer_norm", "rms_norm"}:
        return tuple(range(ndim - a.get("normalized", 1), ndim))
    return (0, *range(2, ndim)) if name == "batch_norm_training" else tuple(range(2, ndim + 1))


def _grouped(a: Arguments, name: str) -> Array:
    x = a["x"]
    if name in {"group_norm", "instance_norm"}:
        return x.reshape(len(x), a.get("num_groups", x.shape[1]), -1, *x.shape[2:])
    return x


def _times(name: str, ratio: Callable[[Array, Arguments, tuple[int, ...], float], Any]) -> Change:
    """Standardised values times a ratio, which comes from their variance and epsilon; the shift stays."""

    def outputs(call: Call, a: Arguments) -> Named:
        y, _ = call(a)
        x, axes = _grouped(a, name), _axes(a, name)
        var = (x * x).mean(axis=axes, keepdims=True) if name == "rms_norm" else x.var(axis=axes, keepdims=True)
        eps = a.get("eps", DEFAULT_EPS.get(name, 1e-5))
        shift = 0.0 if a.get("shift") is None else call({**a, "x": np.zeros_like(a["x"])})[0]["output"]
        changed = ((y["output"] - shift).reshape(x.shape) * ratio(var, a, axes, eps)).reshape(a["x"].shape) + shift
        return {**y, "output": changed}

    return without_gradients(outputs)


def norm(name: str) -> tuple[Alternative, ...]:
    """The alternatives of one normalisation."""

    def biased(var: Array, a: Arguments, axes: tuple[int, ...], eps: float) -> Any:
        n = math.prod(_grouped(a, name).shape[i] for i in axes)
        if n < 2:
            raise DoesNotApply
        return np.sqrt((var + eps) / (var * n / (n - 1) + eps))

    def outside(var: Array, a: Arguments, axes: tuple[int, ...], eps: float) -> Any:
        return np.sqrt(var + eps) / (np.sqrt(var) + eps)

    def largest(var: Array, a: Arguments, axes: tuple[int, ...], eps: float) -> Any:
        return np.sqrt(var + eps) / np.sqrt(np.maximum(var, eps))

    def root_missing(var: Array, a: Arguments, axes: tuple[int, ...], eps: float) -> Any:
        return 1 / np.sqrt(var + eps)

    return (
        *family(
            "variance",
            [
                ("the variance is the unbiased one: divided by n - 1", _times(name, biased)),
                ("values are divided by the variance, not by its root", _times(name, root_missing)),
            ],
        ),
        *family(
            "eps",
            [
                ("eps is added to the root, not below it", _times(name, outside)),
                ("the variance is at least eps, which is not added", _times(name, largest)),
                ("eps is missing", given(lambda a: {"eps": 0.0} if a.get("eps", 1.0) else None)),
                *((f"eps is {e:g}", given(lambda a, e=e: {"eps": e})) for e in (1e-3, 1e-5, 1e-6, 1e-8, 1e-12)),
            ],
        ),
        *family(
            "affine",
            [
                ("the scale is 1 + scale", given(lambda a: None if a.get("scale") is None else {"scale": a["scale"] + 1})),
                ("the scale is missing", given(lambda a: None if a.get("scale") is None else {"scale": None})),
                ("the shift is missing", given(lambda a: None if a.get("shift") is None else {"shift": None})),
            ],
        ),
    )


def _other_running(call: Call, a: Arguments) -> Named:
    """The running variance with the other divisor."""
    y, _ = call(a)
    n = a["x"].size // max(a["x"].shape[1], 1)
    if n < 2:
        raise DoesNotApply
    momentum = a.get("momentum", 0.1)
    kept = (1 - momentum) * a["running_var"]
    return {**y, "running_var": kept + (y["running_var"] - kept) * ((n - 1) / n)}


BATCH_NORM: tuple[Alternative, ...] = (
    *family(
        "momentum",
        [("momentum is the weight of the old statistics, not of the new ones", given(lambda a: {"momentum": 1 - a.get("momentum", 0.1)}))],
    ),
    *family("running", [("the running variance is that of the values themselves: divided by n", without_gradients(_other_running))]),
)


def _named(a: Arguments) -> str:
    return "x" if "x" in a else "scores"


def _other_axis(axis: int) -> Change:
    """The last axis and another change places, and change back."""

    def changed(call: Call) -> Call:
        def turned(a: Arguments) -> Any:
            x = a[_named(a)]
            return {_named(a): swapped(axis, -1)} if x.ndim >= -axis and x.shape[axis] > 1 else None

        def back(a: Arguments) -> Any:
            return {"output": swapped(axis, -1), "weights": swapped(axis, -1)}

        return out_of(back)(into(turned)(call))

    return changed


def _all_axes(call: Call, a: Arguments) -> Named:
    x = a[_named(a)]
    if x.ndim < 2:
        raise DoesNotApply
    return {n: y.reshape(x.shape) for n, y in call({**a, _named(a): x.reshape(-1)})[0].items()}


SOFTMAX: tuple[Alternative, ...] = (
    *family(
        "axis",
        [
            ("it runs over the last axis but one", _other_axis(-2)),
            ("it runs over the last axis but two", _other_axis(-3)),
            ("it runs over all axes together", without_gradients(_all_axes)),
        ],
    ),
    *family(
        "base",
        [
            ("the exponential is of base 2", into(lambda a: {_named(a): factor(LN2)})),
            ("the logarithm is of base 2", out_of(lambda a: {"output": factor(1 / LN2), "lse": factor(1 / LN2)})),
        ],
    ),
    *family("sign", [("the sign of the scores is reversed: a softmin", into(lambda a: {_named(a): factor(-1)}))]),
)
