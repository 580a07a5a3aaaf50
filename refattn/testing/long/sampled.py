r"""Chosen rows of softmax attention and of the gradients of its queries, keys and values, with a budget for each element.

Rows are made block of keys by block of keys, columns block of queries by block of queries; no array has more than
``group * chosen * BLOCK`` elements or a block of tokens of one head. The budgets have the terms of
`refattn.testing.budget`, with long sums as `LongSum` has them. With e the accumulator's unit roundoff, u the format's, g(n) the
growth of a sum, and c_i the error that all scores of a row may share, ``c_i = e * (g(head_dim) + 2) * max_j (|scale| sum |q| |k|)``
and more for soft cap and bias:

- output: ``2 u |o| + e g(n) |o| + (2 c + 4 e) sum p |v|`` and the error of the long sum;
- log-sum-exp: ``2 c + e g(n) + (e + its own type's roundoff) |lse|``;
- d_query: the error of the long sum of ``ds @ k``, the shared ``(2 c + e (g(n) + |lse| + 4)) sum |ds k|``, and that of the row sum
  ``delta = o . do``, which the error of the output makes wrong, times ``|sum p k|``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn._core import Array, Integers
from refattn.attention.dot_product.merge import merge_attention
from refattn.attention.dot_product.scaled_dot_product import scaled_dot_product_attention_with_lse
from refattn.testing.attention_budget import growth, underflow
from refattn.testing.long.arrays import BLOCK, part, spans
from refattn.testing.long.parts import Part
from refattn.testing.long.sums import LongSum, growths, quadrature
from refattn.testing.precision import Format


@dataclass(frozen=True)
class Exact:
    """What stands in some rows, and how far from it an honest kernel may be; (group, rows, features)."""

    value: Array
    budget: Array
    told: Any = True


class Forward:
    """Some queries of one part, with all that they read: the reference's own output and log-sum-exp."""

    def __init__(self, of: Part, rows: Integers) -> None:
        self.of, self.rows = of, rows
        self.query = of.of_queries(of.call.query, rows)
        self.first, self.last = of.reach(rows)
        self.heads, self.count = self.query.shape[0], len(rows)
        self.value_dim = of.call.value.shape[-1]
        sinks = of.call.sinks
        self.sink = np.full((self.heads, 1), -np.inf) if sinks is None else sinks[of.heads, None]
        self.merged, self.lse = self._forward()

    def _blocks(self) -> Any:
        """Blocks of keys, and the rows that see something of each."""
        some = self.first <= self.last
        start, stop = (int(self.first[some].min()), int(self.last[some].max()) + 1) if some.any() else (0, 0)
        for span in spans(start, stop, max(256, BLOCK // self.heads)):
            active = np.flatnonzero((self.first < span.stop) & (self.last >= span.start) & some)
            if active.size:
                yield span, active

    def _forward(self) -> tuple[Array, Array]:
        """The reference's own attention over each block of keys, merged."""
        options = self.of.call.options
        nothing = np.zeros((self.heads, self.count, self.value_dim))
        outputs, lses = [nothing], [np.broadcast_to(self.sink, (self.heads, self.count))]
        for span, active in self._blocks():
            key, value = (self.of.of_keys(x, span)[None] for x in (self.of.call.key, self.of.call.value))
            first, last = self.first[active, None], self.last[active, None]
            at = np.arange(span.start, span.stop)
            mask, bias, scale, keep = (self.of.option(n, self.rows[active], span) for n in ("mask", "bias", "scale", "keep"))
            near = (at >= first) & (at <= last)
            made = scaled_dot_product_attention_with_lse(
                self.query[:, active],
                key,
                value,
                bias,
                mask=near if mask is None else near & mask,
                scale=scale,
                softcap=options.get("softcap"),
                keep=keep,
                dropout_rate=options.get("dropout_rate", 0.0),
            )
            output, lse = nothing.copy(), np.full((self.heads, self.count), -np.inf)
            output[:, active], lse[:, active] = made
            outputs.append(output)
            lses.append(lse)
        merged, lse = merge_attention(np.stack(outputs), np.stack(lses))
        return merged, lse


class Rows(Forward):
    """The same rows, and the gradient of their queries where there are cotangents, with a budget for each element."""

    def __init__(self, of: Part, rows: Integers, target: Format, *, lse_unit: float, d_output: Any = None, d_lse: Any = None) -> None:
        super().__init__(of, rows)
        self.target = target
        self.doubled = 2.0 if target.name == "float64" else 1.0  # the reference errs in float64 too
        self.finite = np.ones(self.lse.shape, bool)
        self.highest, self.error = np.full_like(self.lse, -np.inf), np.zeros_like(self.lse)
        self.sum, self.lost = LongSum(self.merged.shape, target), np.zeros_like(self.merged)
        self.d_sum, self.along = LongSum(self.query.shape, target), np.zeros_like(self.query)
        self.d_output = None if d_output is None else of.of_queries(d_output, rows)
        d = 0.0 if d_lse is None else part(d_lse, of.lead, of.heads, rows + of.queries.start)
        self.delta = None if self.d_output is None else (self.merged * self.d_output).sum(axis=-1) - d
        for span, active in self._blocks():
            self._add(span, active)
        self._limit(lse_unit)

    def _add(self, span: slice, active: Integers) -> None:
        """What one block of keys adds."""
        at, t = (slice(None), active), underflow(self.target)
        key, value = (self._clean(x, span, active) for x in (self.of.call.key, self.of.call.value))
        pairs = self.of.pairs(self.query[:, active], key, self.rows[active], span)
        weights = weights_of(pairs, self.lse[:, active, None])
        scores = pairs.logits if pairs.allowed is None else np.where(pairs.allowed, pairs.logits, -np.inf)
        self.highest[at] = np.maximum(self.highest[at], scores.max(axis=-1))
        error = (growth(key.shape[-1]) + 2) * pairs.size + 2 * pairs.added
        seen_error = error if pairs.allowed is None else np.where(pairs.allowed, error, 0)
        self.error[at] = np.maximum(self.error[at], self.target.accumulator * seen_error.max(axis=-1, initial=0))
        some = np.isfinite(self.highest[at])
        unit = np.exp(np.where(some, self.lse[at], 0) - np.where(some, self.highest[at], 0))[..., None]
        self.sum.add(at, weights * pairs.kept, value, unit=unit)
        if self.target.is_narrow:
            seen = np.broadcast_to(True if pairs.allowed is None else pairs.allowed, weights.shape) * 1.0
            self.lost[at] += t * (seen @ np.abs(value)) / unit
        if self.d_output is not None and self.delta is not None:
            d = score_gradients(pairs, weights, self.d_output[:, active], value, self.delta[:, active, None], self.target)
            self.d_sum.add(at, d.raw, key, own=d.error + t * np.abs(pairs.slope))
            self.along[at] += (weights * pairs.slope) @ key

    def _limit(self, lse_unit: float) -> None:
        """The budgets of output and log-sum-exp."""
        e, u = self.target.accumulator, self.target.unit
        self.counted = growths(self.last - self.first + 1)
        made = np.where(np.isfinite(self.merged), np.abs(self.merged), 0)
        rounded = (2 * u + e * self.counted[:, None]) * made
        shared = (2 * self.error + 4 * e)[..., None] * self.sum.size
        self.output_budget = self.doubled * (rounded + shared + self.sum.error + self.lost + self.target.floor)
        self.finite_lse = np.where(np.isfinite(self.lse), np.abs(self.lse), 0)
        self.lse_budget = self.doubled * (2 * self.error + e * self.counted + (e + lse_unit) * self.finite_lse + self.target.floor)

    def _clean(self, x: Any, span: slice, active: Integers) -> Array:
        """Keys or values, with 0 for what is not finite: the gradients of rows that see such numbers are not compared."""
        block = self.of.of_keys(x, span)
        if np.isfinite(block.sum()):
            return block
        bad = np.asarray(~np.isfinite(block).all(axis=-1))
        pairs = self.of.pairs(self.query[:, active], np.zeros((len(bad), self.query.shape[-1])), self.rows[active], span)
        seen = np.broadcast_to(True if pairs.allowed is None else pairs.allowed, (self.heads, len(active), len(bad)))
        self.finite[:, active] &= ~(seen & bad).any(axis=-1)
        return np.where(np.isfinite(block), block, 0)

    def output(self) -> Exact:
        """The attended values."""
        value = self.merged
        if self.of.call.options.get("masked_rows") == "nan":
            value = np.where(np.isneginf(self.lse)[..., None], np.nan, value)
        return Exact(value, self.output_budget)

    def log_sum_exp(self) -> Exact:
        """The log-sum-exp."""
        return Exact(self.lse, self.lse_budget)

    def d_query(self) -> Exact:
        """The gradient of these queries."""
        e, u, d_output = self.target.accumulator, self.target.unit, np.asarray(self.d_output)
        of_delta = quadrature(
            np.sqrt(((d_output * self.output_budget) ** 2).sum(axis=-1)),
            growth(self.value_dim) * e * np.abs(d_output * self.merged).sum(axis=-1),
        )
        common = (2 * self.error + e * (self.counted + self.finite_lse + 4))[..., None] * self.d_sum.size
        budget = u * np.abs(self.d_sum.total) + self.d_sum.error + common + of_delta[..., None] * np.abs(self.along)
        return Exact(self.d_sum.total, self.doubled * (budget + self.target.floor), told=self.finite)


def weights_of(pairs: Any, lse: Array) -> Array:
    """Weights of finite scores; 0 where nothing is seen."""
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.exp(pairs.logits - np.where(np.isfinite(lse), lse, np.inf))
    return weights if pairs.allowed is None else np.where(pairs.allowed, weights, 0)


@dataclass(frozen=True)
class ScoreGradients:
    """The gradients of the products of queries and keys, and their own errors, those of storing them aside."""

    raw: Array
    error: Array


def score_gradients(pairs: Any, weights: Array, d_output: Array, value: Array, delta: Array, target: Format) -> ScoreGradients:
    """What a block of pairs gives."""
    e, u = target.accumulator, target.unit
    d_weights = pairs.kept * (d_output @ value.swapaxes(-1, -2))
    magnitude = pairs.kept * (np.abs(d_output) @ np.abs(value).swapaxes(-1, -2))
    attended = weights * pairs.slope
    error = np.abs(attended) * (growth(value.shape[-1]) * e * magnitude + u * np.abs(d_weights))
    if pairs.slope is not pairs.scale:  # 1 - tanh**2 errs as 1 does, however small it is
        error = error + 4 * e * np.abs(weights * (d_weights - delta) * pairs.scale)
    return ScoreGradients(attended * (d_weights - delta), error)
