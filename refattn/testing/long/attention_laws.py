r"""The conservation laws of softmax attention, over all tokens in O(length * head_dim).

With p the weights, do the cotangent of the output, delta_i = o_i . do_i less the cotangent of the log-sum-exp, s_i the weight of the
sink, ``exp(sink - lse_i)``, and ds_ij = p_ij (do_i . v_j - delta_i) the gradient of a logit:

- sum of d_value: ``sum_j dv_j = sum_i (1 - s_i) do_i``, over rows that see something, as weights sum to 1 less the sink's. Not
  with dropout.
- sum of d_key: ``sum_j dk_j = scale sum_i q_i s_i delta_i``, which is 0 without sinks, as ``sum_j ds_ij = s_i delta_i``. Not with a
  soft cap, whose slope weighs the ds, nor with a scale that is an array.
- Euler: ``sum_i q_i . dq_i = sum_j k_j . dk_j``, as both are ``sum_ij (q_i . k_j) dL/d(q_i . k_j)``. It holds always: whatever is made of
  the products, soft cap, bias, sinks and dropout included.
- scale: ``sum scale * d_scale = sum_i q_i . dq_i``, always.
- sinks: ``d_sink = -sum_i s_i delta_i`` for each head, from the candidate's log-sum-exp and output.
- hull: every output lies between the least and the largest value up to the last key that causality or the window shows it, with 0
  where there is a sink or what may hide a whole row. Not with dropout.
- empty: a query that causality or the window shows nothing has output 0 and gradient 0.

Their budgets are probable errors of an honest kernel, with u the format's unit roundoff and e the accumulator's, and need many terms:

- what is stored errs by u, independently: ``4 u sqrt(sum_j x_j**2)`` for gradients, and as much for the weights, and the gradients of
  scores, from which they are made. For ``sum_ij a_ij**2``, which no sum over tokens holds, stands
  ``sum_j (sum_i a_ij)**2``, which it is in the mean where signs are as good as random;
- a sum over n terms errs by ``2 e g(n)`` relative to what it holds on its way, which is of the size of the sum itself where signs
  are as good as random; products and scores by ``r = e (g(value_dim) sqrt(value_dim) + 2 (g(head_dim) + 2) max|q| max|k| |scale|)``;
- a weight errs together with all others of its row by the error of the log-sum-exp, eps_i, and, where all of them are stored alike, by
  ``u / sqrt(3)``;
- delta_i errs by ``2 u |o do| + r_i |o| |do| + eps_i |delta_i|``, which the sum of d_key holds once for each row.

The laws do not see a factor that all of d_query and d_key have (sampled rows do), a wrong delta in the sum of d_value or in Euler's,
or a row of n whose error is below about ``4 u sqrt(n)`` times what is typical.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from refattn._core import Array
from refattn._core.arrays import as_array
from refattn.testing.attention_budget import SAFETY, TILE, growth
from refattn.testing.long.attention_sums import HeadSums
from refattn.testing.long.conserved import Law
from refattn.testing.long.parts import Long
from refattn.testing.precision import Format

MANY = 256
"""Queries and keys from which on sums have terms enough for probable errors."""

OWN = 2.0**-53
"""Unit roundoff of the sums that are made here."""


class AttentionLaws:
    """All laws of one call."""

    def __init__(self, call: Long, have: Any, target: Format) -> None:
        self.call, self.have, self.target = call, have, target
        self.sums = HeadSums(call, have, target)
        self.heads = [self.sums.of(lead, head) for lead, head in call.heads()]

    def laws(self) -> Iterator[tuple[str, Law | str]]:
        """The equation of each law that concerns this call, and what it says, or why it can't be tried."""
        sinks, grads = self.call.sinks is not None, self.have.gradients
        empty = (self.sums.counts == 0).any() and self.call.options.get("masked_rows", "zero") == "zero" and not sinks
        yield self._tried("d_value", "sum of d_value = sum of d_output", self._d_value)
        yield self._tried("d_key", "sum of d_key = what the sinks take" if sinks else "sum of d_key = 0", self._d_key)
        yield self._tried("Euler", "<query, d_query> = <key, d_key>", self._euler)
        if "scale" in grads:
            yield self._tried("scale", "<scale, d_scale> = <query, d_query>", self._scale)
        if sinks:
            yield self._tried("sinks", "d_sinks = -sum of sink weight * delta", self._sinks)
        yield self._tried("hull", "outputs within the values", self._hull)
        if empty:
            yield self._tried("empty", "queries that see nothing are 0", self._empty)

    def _tried(self, name: str, equation: str, law: Callable[[str], Law]) -> tuple[str, Law | str]:
        return equation, self.missing(name) or law(equation)

    def missing(self, name: str) -> str:
        """Why a law can't be tried; "" where it can."""
        options, grads = self.call.options, self.have.gradients
        needed = {"d_value": ["value"], "d_key": ["key"], "Euler": ["query", "key"], "scale": ["query"], "sinks": ["sinks"]}
        if lacking := [n for n in needed.get(name, []) if n not in grads]:
            return f"the gradient of {' and '.join(lacking)} is not given"
        if name in needed and min(self.call.query.shape[-2], self.call.key.shape[-2]) < MANY:
            return f"needs {MANY} queries and keys: gradients of fewer are for assert_matches"
        sinks = self.call.sinks is not None
        if {"d_value": self.sums.hides or sinks, "d_key": sinks, "sinks": True}.get(name) and self.have.lse is None:
            return "needs lse, where a sink, a mask or a bias may take from the sum of a row's weights"
        if name in {"d_value", "hull"} and options.get("keep") is not None:
            return "does not hold with dropout"
        if name == "d_key" and (options.get("softcap") is not None or not isinstance(self.sums.factor, (int, float))):
            return "does not hold with a soft cap, or a scale that is an array"
        return ""

    def _all(self, name: str) -> Array:
        """A sum in every head: (heads, ...)."""
        return np.stack([np.asarray(h[name], dtype=np.float64) for h in self.heads])

    def _made(self, name: str, queries: int) -> Array:
        """The error of the sum of a gradient of keys or values, of what is stored and of the sums over queries of which it is made."""
        e, u = self.target.accumulator, self.target.unit
        norm = np.sqrt(self._all(f"d_{name}_square"))
        own = OWN * self.call.key.shape[-2] * norm
        floor = self.target.floor * self.call.key.shape[-2]
        return (SAFETY * 2 * u + e * (2 * growth(queries) + growth(TILE) * TILE**0.5)) * norm + own + floor

    def _products(self) -> Array:
        """The relative error of the products and scores of which the gradient of a score is made, without that of storing it."""
        sums, e = self.sums, self.target.accumulator
        return e * (growth(sums.value_dim) * sums.value_dim**0.5 + 2 * (growth(sums.head_dim) + 2) * self._all("max_reached"))

    def _d_value(self, name: str) -> Law:
        queries = self.call.query.shape[-2] * self.call.group
        budget = self._made("value", queries) + SAFETY * np.sqrt(self._all("mass_error"))
        signal = np.sqrt(self._all("mass_square"))
        return Law(name, self._all("d_value"), self._all("mass"), budget + OWN * queries * signal, signal)

    def _d_key(self, name: str) -> Law:
        queries, factor = self.call.query.shape[-2] * self.call.group, abs(self.sums.factor)
        norm = np.sqrt(self._all("d_key_square"))
        budget = self._made("key", queries) + self._products()[:, None] * norm + SAFETY * factor * np.sqrt(self._all("left_error"))
        own = OWN * growth(queries) * self._all("left_size") * factor
        return Law(name, self._all("d_key"), self.sums.factor * self._all("left"), budget + own, norm)

    def _half(self, name: str, terms: int) -> Array:
        """The error of one side of Euler's identity."""
        e, u = self.target.accumulator, self.target.unit
        stored, rows = np.sqrt(self._all(f"{name}_stored")), np.sqrt(self._all(f"{name}_rows"))
        own = OWN * self.call.query.shape[-2] * stored  # sum |x| <= sqrt(n) norm(x), and a sum's error is below sqrt(n) OWN of it
        return (SAFETY * u + 2 * e * growth(terms)) * stored + (2 * SAFETY * u + self._products()) * rows + own

    def _euler(self, name: str) -> Law:
        budget = self._half("query", self.call.key.shape[-2]) + self._half("key", self.call.query.shape[-2] * self.call.group)
        budget = budget + SAFETY * np.sqrt(self._all("query_delta")) + self.target.floor * self.call.query.shape[-2]
        signal = np.sqrt(self._all("query_rows") + self._all("key_rows"))
        return Law(name, self._all("query"), self._all("key"), budget, signal)

    def _scale(self, name: str) -> Law:
        scale, d_scale = (as_array(x).astype(np.float64) for x in (self.sums.factor, self.have.gradients["scale"]))
        got, rows = np.asarray((scale * d_scale).sum()), np.sqrt(self._all("query_rows").sum())
        budget = self._half("query", self.call.key.shape[-2]).sum() + self.target.unit * np.abs(scale * d_scale).sum()
        sums = 2 * self.target.accumulator * growth(self.call.key.shape[-2]) * rows
        return Law(name, got, self._all("query").sum(), budget + sums + SAFETY * np.sqrt(self._all("query_delta").sum()), rows)

    def _sinks(self, name: str) -> Law:
        e, u = self.target.accumulator, self.target.unit
        shape = (-1, self.call.query.shape[-3])
        expected, size = (self._all(n).reshape(shape).sum(axis=0) for n in ("sinks", "sinks_size"))
        error = np.sqrt(self._all("sinks_error").reshape(shape).sum(axis=0))
        budget = u * np.abs(expected) + SAFETY * error + e * growth(self.call.query.shape[-2]) * size + self.target.floor
        return Law(name, as_array(self.have.gradients["sinks"]).astype(np.float64), expected, budget, np.abs(expected))

    def _hull(self, name: str) -> Law:
        beyond = self._all("max_beyond")
        return Law(name, np.maximum(beyond, 0), np.zeros_like(beyond), np.ones_like(beyond), 2 * np.ones_like(beyond))

    def _empty(self, name: str) -> Law:
        found = self._all("max_empty")
        return Law(name, found, np.zeros_like(found), np.full_like(found, self.target.floor), np.ones_like(found))
