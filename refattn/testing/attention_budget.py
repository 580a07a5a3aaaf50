"""How far an honest kernel of softmax attention may be from the exact result.

Its output has an a-priori bound. With u the unit roundoff of the format, e that of the accumulator (float32's, for formats up to
float32), S keys and n tiles, and ds a bound of the error of a score,

    |o - exact| <= u |o| + (2 ds + u + (S + n + 8) e) sum_j p_j |v_j| + t sum_j |v_j|

where t is the underflow of a weight: half of the smallest number of a narrow format (2**-25 in float16, 2**-10 and 2**-17 in formats
of 8 bits), and the smallest normal number elsewhere, below which processors and matrix units may take a weight for 0. A score of head_dim products is wrong by ds <= (head_dim + 3) e |scale| sum |q| |k|,
and where the inputs are small integers and the scale a power of two, not at all: such inputs make the bound tight even where the
scores are large.

Its gradients have a probable error, propagated through the equations of the backward pass (`Backward`) from independent
relative errors: u for what a kernel stores (weights, scores' gradients, the output from which the row sum D = o . do is
formed), (4 + sqrt(n)) e of the sum of magnitudes for a sum of n terms, which covers any order of summation. The budget is

    |x - exact| <= u |x| + 4 sd
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from refattn._core import Array, Mechanism, unbroadcast
from refattn._core.mechanism import outputs
from refattn.attention.dot_product.scaled_dot_product import attend
from refattn.testing.drift import Spread
from refattn.testing.precision import Format

SAFETY = 4.0
ROWS_APART = {"query", "value"}
"""Gradients whose rows err for themselves; those of keys share the error of each query's row sum."""
TILE = 16
"""The smallest tile of keys that a kernel is expected to use."""


def _finite(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Attention's arguments with 0 for numbers that are none: these stand behind masks, where nothing comes of them, or all is NaN.

    So is the output of a row that may attend nowhere, where NaN is asked for there: it is a constant, and has no part in a gradient.
    """
    shown = {n: np.where(np.isfinite(arguments[n]), arguments[n], 0) for n in ("query", "key", "value")}
    return {**arguments, **shown, **({"masked_rows": "zero"} if arguments.get("masked_rows") == "nan" else {})}


def _products(arguments: Mapping[str, Any]) -> tuple[Array, Array]:
    """For each pair of query and key, the scaled sum of the magnitudes of its products, and the scale's own magnitude."""
    query, key = np.abs(arguments["query"]), np.abs(arguments["key"])
    given = arguments.get("scale")
    scale = np.abs(query.shape[-1] ** -0.5 if given is None else given)
    return query @ _spread(key, query).swapaxes(-1, -2) * scale, scale


def _spread(x: Array, query: Array) -> Array:
    """Keys or values, one for each query head."""
    return np.repeat(x, query.shape[-3] // max(x.shape[-3], 1), axis=-3)


def forward(
    mechanism: Mechanism[..., Any], arguments: Mapping[str, Any], made: Mapping[str, Array], target: Format, exact_scores: bool
) -> dict[str, Array]:
    """A bound for each output."""
    arguments = _finite(arguments)
    e, u, keys = target.accumulator, target.unit, arguments["key"].shape[-2]
    products, _ = _products(arguments)
    error = np.zeros_like(products) if exact_scores else (arguments["query"].shape[-1] + 3) * e * products
    if (bias := arguments.get("bias")) is not None:
        error = error + e * (products + np.abs(np.where(np.isfinite(bias), bias, 0)))
    score_error = error.max(axis=-1, initial=0) + 4 * e * (arguments.get("softcap") or 0.0)
    value = np.abs(arguments["value"])
    weighed = outputs(mechanism(**{**arguments, "value": value}))[0]
    relative = (2 * score_error + u + (keys + -(-keys // TILE) + 8) * e)[..., None]
    reached = _spread(value, arguments["query"]).sum(axis=-2, keepdims=True)
    budgets = {"output": u * np.abs(made["output"]) + relative * weighed * (1 + u) + underflow(target) * reached + target.floor}
    if "lse" in made:
        lse = np.where(np.isfinite(made["lse"]), np.abs(made["lse"]), 0)
        budgets["lse"] = 2 * score_error + (keys + 8) * e + (u + e) * lse + target.floor
    return budgets


def backward(
    arguments: Mapping[str, Any], ds: tuple[Array, ...], exact: Mapping[str, Array], target: Format, *, exact_scores: bool
) -> dict[str, Array]:
    """A bound for each gradient."""
    errors = Backward(_finite(arguments), ds, target, exact_scores=exact_scores).errors(exact)
    floor = max(target.floor, np.finfo(float).tiny ** 0.5)  # below it, squares of errors underflow
    return {path: target.unit * np.abs(x) + SAFETY * errors[path] + floor for path, x in exact.items()}


def spreads(arguments: Mapping[str, Any], ds: tuple[Array, ...], exact: Mapping[str, Array], target: Format) -> dict[str, Spread]:
    """How gradients err on numbers whose roundings are independent: each by u / sqrt(3) at most."""
    apart = {path: x for path, x in exact.items() if path in ROWS_APART}
    errors = Backward(_finite(arguments), ds, target, exact_scores=False, unit=target.unit / math.sqrt(3)).errors(apart)
    return {path: Spread(error, []) for path, error in errors.items()}


class Backward:
    """The probable error of every gradient of softmax attention.

    In the backward pass ``dp = keep * (do @ v.T)``, ``d = sum(o * do)``, ``ds = p * (dp - d + d_lse)``, and all gradients are
    products of ``ds`` or ``p``. Squares of independent errors add; the error of ``d`` is the same along a row of ``ds``, so it
    is kept apart and added along the row first.
    """

    def __init__(
        self, arguments: Mapping[str, Any], ds: tuple[Array, ...], target: Format, *, exact_scores: bool, unit: float | None = None
    ) -> None:
        self.arguments, self.target, self.unit = arguments, target, target.unit if unit is None else unit
        e, u = target.accumulator, self.unit
        query, d_output = arguments["query"], ds[0]
        self.keys, self.values = _spread(arguments["key"], query), _spread(arguments["value"], query)
        with np.errstate(all="ignore"):
            (output, lse, weights), _ = attend(**arguments)
        self.weights = weights
        attended = np.where(np.isneginf(lse)[..., None], 0, weights)
        keep = arguments.get("keep")
        kept = 1.0 if keep is None else keep / (1 - arguments.get("dropout_rate", 0.0))
        self.passed = weights * kept

        products, self.scale = _products(arguments)
        bias = arguments.get("bias")
        added = 0.0 if bias is None else np.abs(np.where(np.isfinite(bias), bias, 0))
        scores = 0.0 if exact_scores else growth(query.shape[-1]) * e * products
        scores = scores + (0.0 if bias is None else e * (products + added)) + 4 * e * (arguments.get("softcap") or 0.0)
        row = (scores * np.ones_like(products)).max(axis=-1, initial=0)[..., None]
        finite = np.where(np.isneginf(lse), 0, lse)[..., None]
        depth = -np.log(np.where(weights > 0, weights, 1))  # a weight is computed again as exp(score - lse), each rounded
        self.relative = 2 * row + u + e * (growth(products.shape[-1]) + np.abs(finite) + 2 * depth)

        magnitude = np.abs(d_output) @ np.abs(self.values).swapaxes(-1, -2)
        d_weights = kept * (d_output @ self.values.swapaxes(-1, -2))
        d_weights_error = kept * growth(self.values.shape[-1]) * e * magnitude + u * np.abs(d_weights)
        output_error = (u * output) ** 2 + (self.relative * self.passed) ** 2 @ self.values**2
        self.row_sum = np.sqrt(
            (d_output**2 * output_error).sum(axis=-1)
            + (growth(output.shape[-1]) * e * np.abs(d_output * output).sum(axis=-1)) ** 2
            + ((attended * d_weights_error) ** 2).sum(axis=-1)
            + (growth(products.shape[-1]) * e * (attended * np.abs(d_weights)).sum(axis=-1)) ** 2
        )[..., None]
        d_lse = ds[1][..., None] if len(ds) > 1 else 0.0
        self.sum = (output * d_output).sum(axis=-1)[..., None] - d_lse
        factor = d_weights - self.sum
        self.d_scores = attended * factor
        self.own = np.sqrt((attended * d_weights_error) ** 2 + ((self.relative + u) * self.d_scores) ** 2)
        self.own = self.own + self._flushed() * (1 + np.abs(factor))  # a weight, and what it is multiplied with
        self.slope = self._softcap_slope()
        self.attended, self.d_output, self.sink = attended, d_output, self._sink_weights(lse)

    def _softcap_slope(self) -> Any:
        cap = self.arguments.get("softcap")
        if cap is None:
            return 1.0
        return 1 - np.tanh(self._raw() * self._signed_scale() / cap) ** 2

    def _signed_scale(self) -> Any:
        given = self.arguments.get("scale")
        return self.arguments["query"].shape[-1] ** -0.5 if given is None else given

    def _raw(self) -> Array:
        return self.arguments["query"] @ self.keys.swapaxes(-1, -2)

    def _sink_weights(self, lse: Array) -> Any:
        sinks = self.arguments.get("sinks")
        return 0.0 if sinks is None else np.exp(sinks[:, None] - np.where(np.isneginf(lse), 0, lse))

    def errors(self, exact: Mapping[str, Array]) -> dict[str, Array]:
        """The probable error of each gradient that is there."""
        makers = {
            "query": self._query,
            "key": self._key,
            "value": self._value,
            "bias": self._bias,
            "scale": self._scale,
            "sinks": self._sinks,
        }
        return {name: makers[name](x.shape) for name, x in exact.items()}

    def _query(self, shape: tuple[int, ...]) -> Array:
        own = self._own_scores()
        row = self.row_sum * np.abs((self.attended * self.slope * self._signed_scale()) @ self.keys)
        total = growth(self.keys.shape[-2]) * self.target.accumulator * (np.abs(self._d_raw()) @ np.abs(self.keys))
        common = self.relative.max(axis=-1, keepdims=True, initial=0) * np.abs(self._d_raw() @ self.keys)
        return (np.sqrt(own**2 @ self.keys**2) + row + total + common).reshape(shape)

    def _key(self, shape: tuple[int, ...]) -> Array:
        query = self.arguments["query"]
        each = np.sqrt(self._own_scores() ** 2 + (self.row_sum * self.attended * self.slope * self.scale) ** 2)
        total = np.abs(self._d_raw()).swapaxes(-1, -2) @ np.abs(query) * growth(query.shape[-2]) * self.target.accumulator
        stored = self.unit * (self._d_raw().swapaxes(-1, -2) @ query)
        return self._grouped(np.sqrt((each**2).swapaxes(-1, -2) @ query**2 + stored**2) + total, shape)

    def _value(self, shape: tuple[int, ...]) -> Array:
        each = self.relative * self.passed + self._flushed()
        total = growth(each.shape[-2]) * self.target.accumulator * (self.passed.swapaxes(-1, -2) @ np.abs(self.d_output))
        stored = self.unit * (self.passed.swapaxes(-1, -2) @ self.d_output)
        return self._grouped(np.sqrt((each**2).swapaxes(-1, -2) @ self.d_output**2 + stored**2) + total, shape)

    def _bias(self, shape: tuple[int, ...]) -> Array:
        return self._reduced(1.0, shape)

    def _scale(self, shape: tuple[int, ...]) -> Array:
        return self._reduced(self.slope * self._raw(), shape)

    def _sinks(self, shape: tuple[int, ...]) -> Array:
        error = np.sqrt(self.row_sum[..., 0] ** 2 + (self.relative.max(axis=-1, initial=0) * self.sum[..., 0]) ** 2) * self.sink
        total = growth(error.shape[-1]) * self.target.accumulator * np.abs(self.sum[..., 0] * self.sink)
        square = (error**2).sum(axis=(*range(error.ndim - 2), -1))
        return (np.sqrt(square) + total.sum(axis=(*range(error.ndim - 2), -1))).reshape(shape)

    def _flushed(self) -> float:
        """What underflow costs a weight. Rounding to nearest errs either way; flushing to 0 does not, and n such errors add to n.

        Squares of it are added, whose root is smaller by sqrt(n) at most.
        """
        lost = underflow(self.target)
        return lost if self.target.is_narrow else lost * math.sqrt(max(self.weights.shape[-2:], default=1))

    def _own_scores(self) -> Array:
        curve = 0.0 if self.arguments.get("softcap") is None else 4 * self.target.accumulator  # of 1 - tanh**2, however small that is
        return np.sqrt((self.own * self.slope) ** 2 + (curve * self.d_scores) ** 2) * self.scale

    def _d_raw(self) -> Array:
        return self.d_scores * self.slope * self.scale

    def _reduced(self, factor: Any, shape: tuple[int, ...]) -> Array:
        """The error of the sum of ``factor * ds`` over the axes along which an array of this shape was broadcast."""
        terms = factor * self.d_scores
        along = bool(not shape or shape[-1] == 1)
        row = np.abs((factor * self.attended).sum(axis=-1, keepdims=True)) if along else np.abs(factor * self.attended)
        square = unbroadcast((np.abs(factor) * self.own) ** 2, shape)
        rows = unbroadcast((self.row_sum * row) ** 2, shape if not along or not shape else (*shape[:-1], 1))
        count = terms.size / max(math.prod(shape), 1)
        return np.sqrt(square) + np.sqrt(rows) + growth(count) * self.target.accumulator * unbroadcast(np.abs(terms), shape)

    def _grouped(self, error: Array, shape: tuple[int, ...]) -> Array:
        """Squares summed over the query heads of each key head: a kernel may store each head's part."""
        split = error.reshape(*shape[:-2], -1, *shape[-2:]) if error.size else np.zeros((*shape[:-2], 1, *shape[-2:]))
        return np.sqrt((split**2).sum(axis=-3))


def growth(terms: float) -> float:
    """How a sum's rounding errors grow, relative to its magnitudes, in any order of summation."""
    return 4 + math.sqrt(max(terms, 1))


def underflow(target: Format) -> float:
    """What is lost of a weight: half of a narrow format's smallest number, elsewhere all of one that is subnormal."""
    return target.floor / 2 if target.is_narrow else target.floor
