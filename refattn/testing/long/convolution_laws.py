"""The conservation laws of a convolution, which is linear in its input and in its weight.

Euler's identity of a bilinear map: ``<x, d_x> = <weight, d_weight> = <y - bias, d_y>``, with any stride, padding, dilation and groups, for
all three are the same sum over positions and taps. And ``d_bias`` is the sum of ``d_y`` over examples and positions.

The budgets follow from the magnitudes of all sums, which the reference's convolution of the absolute values gives: an output errs by
``u |y| + e g(terms) (|weight| * |x|)``, gradients likewise, independently of each other. This is the error of a direct sum, in any order;
that of Winograd's transforms with tiles up to 4 is smaller than its safety factor of 4.

They see a gradient of the wrong tap, group or border that moves its inner product; they do not see an error that is orthogonal to what the
gradient is multiplied with, or the same wrong scale in y, d_x and d_weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refattn._core import Array, Mechanism
from refattn._core.arrays import as_array
from refattn.testing.attention_budget import SAFETY, growth
from refattn.testing.long.conserved import Law
from refattn.testing.precision import Format


def is_bilinear(mechanism: Mechanism[..., Any]) -> bool:
    """Whether it is one convolution of x with weight, which stands on the same grid everywhere."""
    arrays = set(mechanism.spec.signature.parameters)
    return mechanism.spec.family == "convolution" and {"x", "weight"} <= arrays and not {"state", "offset"} & arrays


def laws(
    mechanism: Mechanism[..., Any], inputs: Mapping[str, Any], y: Any, d_y: Any, grads: Mapping[str, Any], target: Format
) -> Iterator[tuple[str, Law | str]]:
    """Each law, or why it can't be tried."""
    names = ["x", "weight", *(["bias"] if inputs.get("bias") is not None else [])]
    arrays = {n: as_array(inputs[n], n).astype(np.float64) for n in names}
    absolute = {**inputs, **{n: np.abs(x) for n, x in arrays.items()}, "bias": None}
    absolute = {n: x for n, x in absolute.items() if n in mechanism.spec.signature.parameters and x is not None}
    made, pullback = mechanism.vjp(**absolute)
    values = as_array(y, "got").astype(np.float64)
    if values.shape != made.shape:
        yield "shape", f"got has shape {values.shape}, expected {made.shape}"
        return
    bias = arrays.get("bias")
    plain = values if bias is None else values - bias.reshape(-1, *(1,) * (values.ndim - 2))
    if d_y is None:
        yield "<x, d_x> = <weight, d_weight> = <y - bias, d_y>", "cotangents are not given"
        return
    cotangent = as_array(d_y, "cotangents").astype(np.float64)
    sizes = pullback(np.abs(cotangent))
    shape = arrays["weight"].shape
    taps = max(math.prod(shape[1:]), math.prod(shape) // max(shape[1], 1))  # of an output or of x, whichever way the convolution goes
    places = max(cotangent.size // max(cotangent.shape[1], 1), arrays["x"].size // max(arrays["x"].shape[1], 1))
    mine = _side(cotangent, plain, values, made, taps, target)
    for name, terms in (("x", taps), ("weight", places)):
        equation = f"<{name}, d_{name}> = <y - bias, d_y>"
        if name not in grads:
            yield equation, f"the gradient of {name} is not given"
            continue
        d = as_array(grads[name], f"gradients: {name}").astype(np.float64)
        theirs = _side(arrays[name], d, d, sizes[name], terms, target)
        yield equation, Law(equation, np.asarray(theirs[0]), np.asarray(mine[0]), theirs[1] + mine[1], np.hypot(theirs[2], mine[2]))
    if bias is not None and "bias" in grads:
        d_bias = as_array(grads["bias"], "gradients: bias").astype(np.float64)
        axes = (0, *range(2, cotangent.ndim))
        size, expected = np.abs(cotangent).sum(axis=axes), cotangent.sum(axis=axes)
        budget = target.unit * np.abs(expected) + target.accumulator * growth(places) * size + target.floor
        yield "d_bias = sum of d_y", Law("", d_bias, expected, budget, np.sqrt((cotangent**2).sum(axis=axes)))


def _side(x: Array, d: Array, stored: Array, size: Array, terms: float, target: Format) -> tuple[Any, Any, Any]:
    """An inner product, its error, and what it would be of unrelated factors."""
    e, u = target.accumulator, target.unit
    each = x * d
    error = np.abs(x) * (u * np.abs(stored) + e * growth(terms) * size + target.floor)
    own = 2.0**-53 * growth(x.size) * np.abs(each).sum()
    return each.sum(), SAFETY * np.sqrt((error**2).sum()) + own, np.sqrt((each**2).sum())
