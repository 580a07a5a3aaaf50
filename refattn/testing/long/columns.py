r"""Gradients of chosen keys and values of softmax attention, with a budget for each element.

Columns need the log-sum-exp and delta of every row, and take those of the candidate. What the candidate's own backward pass
reads is either these numbers, in which case nothing is lost, or its unrounded ones: so the budget of the log-sum-exp counts as
an independent relative error of every weight, and the rounding of the output as an error of delta,
``2 u sqrt(sum (o do)**2) + e g(value_dim) sum |o do|``. A wrong log-sum-exp or output of a row that no sample has seen is used as it
is: that row's forward result is for the rows and the laws to find.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._core import Array, Integers
from refattn.testing.attention_budget import growth, underflow
from refattn.testing.long.arrays import TOKENS, spans
from refattn.testing.long.parts import Part
from refattn.testing.long.sampled import Exact, score_gradients, weights_of
from refattn.testing.long.sums import LongSum, growths, quadrature
from refattn.testing.precision import Format


class Columns:
    """Some keys of one part, with all queries that read them, from the candidate's own log-sum-exp and output."""

    def __init__(self, of: Part, columns: Integers, target: Format, *, lse_unit: float) -> None:
        self.of, self.columns, self.target, self.lse_unit = of, columns, target, lse_unit
        key, value = (of.of_keys(x, columns) for x in (of.call.key, of.call.value))
        self.told = np.isfinite(key).all(axis=-1) & np.isfinite(value).all(axis=-1)
        self.key, self.value = (np.where(np.isfinite(x), x, 0) for x in (key, value))
        self.longest = max((_longest(of.of_keys(of.call.key, span)) for span in spans(0, of.lengths[1], TOKENS)), default=0.0)

    def gradients(self, lse: Any, output: Any, d_output: Any, d_lse: Any) -> tuple[Exact, Exact]:
        """The gradients of these keys and values."""
        of, target = self.of, self.target
        e, u, t = target.accumulator, target.unit, underflow(target)
        d_key, d_value = (LongSum((of.call.group, *x.shape), target) for x in (self.key, self.value))
        shared = np.zeros(len(self.columns))
        for span in spans(0, of.lengths[0], max(256, TOKENS // of.call.group)):
            first, last = of.reach(np.arange(span.start, span.stop))
            active = np.flatnonzero((self.columns >= first.min()) & (self.columns <= last.max()))
            if not active.size:
                continue
            query, o, d_o = (of.of_queries(x, span) for x in (of.call.query, output, d_output))
            sums = of.of_queries(lse[..., None], span)
            d_sums = 0.0 if d_lse is None else of.of_queries(d_lse[..., None], span)
            pairs = of.pairs(query, self.key[active], span, self.columns[active])
            weights = weights_of(pairs, sums)
            o = np.where(np.isneginf(sums), 0, o)  # where a row has nothing, what stands there is never read
            delta = (o * d_o).sum(axis=-1, keepdims=True) - d_sums
            relative = self._relative(query, sums, last - first + 1, pairs)
            of_delta = quadrature(2 * u * np.sqrt(((o * d_o) ** 2).sum(axis=-1)), growth(o.shape[-1]) * e * np.abs(o * d_o).sum(axis=-1))
            d = score_gradients(pairs, weights, d_o, self.value[active], delta, target)
            own = quadrature(d.error, relative * d.raw, of_delta[..., None] * np.abs(weights * pairs.slope), t * np.abs(pairs.slope))
            shared[active] = np.maximum(
                shared[active], (e * ((growth(query.shape[-1]) + 2) * pairs.size + 2 * pairs.added) * (weights > 0)).max(axis=(0, 1))
            )
            at = (slice(None), active)
            passed = weights * pairs.kept
            d_value.add(at, passed.swapaxes(-1, -2), d_o, own=(relative * passed + t).swapaxes(-1, -2))
            d_key.add(at, d.raw.swapaxes(-1, -2), query, own=np.broadcast_to(own, d.raw.shape).swapaxes(-1, -2))
        return self._together(d_key, shared), self._together(d_value, shared)

    def _relative(self, query: Array, lse: Array, counts: Integers, pairs: Any) -> Array:
        """The relative error of all weights of a row: that of the log-sum-exp, as `Rows` has it, with a bound of the largest score."""
        e, options = self.target.accumulator, self.of.call.options
        scale = np.abs(pairs.scale).max() if np.size(pairs.scale) else 0.0
        largest = scale * np.sqrt((query**2).sum(axis=-1, keepdims=True)) * self.longest
        added = 4.0 * (options.get("softcap") or 0.0) + np.abs(np.where(np.isfinite(lse), lse, 0)) * (options.get("bias") is not None)
        of_lse = 2 * e * ((growth(query.shape[-1]) + 2) * largest + 2 * added) + e * growths(counts)[:, None]
        return of_lse + (2 * e + self.lse_unit) * np.where(np.isfinite(lse), np.abs(lse), 0)

    def _together(self, total: LongSum, shared: Array) -> Exact:
        """The sum over the query heads of the group, of which a kernel may store each."""
        u, e = self.target.unit, self.target.accumulator
        each = total.error + u * np.abs(total.total) + (2 * shared[:, None] + 4 * e) * total.size
        value = total.total.sum(axis=0)
        budget = u * np.abs(value) + np.sqrt((each**2).sum(axis=0)) + self.target.floor
        return Exact(value, budget * (2.0 if self.target.name == "float64" else 1.0), told=self.told)


def _longest(key: Array) -> float:
    """The largest norm of a row; numbers that are not finite, which no honest row sees, do not count."""
    finite = key if np.isfinite(key.sum()) else np.where(np.isfinite(key), key, 0)
    return float(np.sqrt(np.einsum("nd,nd->n", finite, finite).max(initial=0)))
