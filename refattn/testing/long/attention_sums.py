"""Sums over all tokens of one head of softmax attention, of which its conservation laws are made."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, Integers
from refattn.testing.budget import growth, underflow
from refattn.testing.long.arrays import part, spans, unit_of
from refattn.testing.long.parts import Long
from refattn.testing.long.sums import growths
from refattn.testing.precision import Format


class Row(NamedTuple):
    """Some queries of one head: (group, rows, ...).

    Attributes
    ----------
    query : array
        The queries.
    reached : array
        A bound of the magnitude of each score's products.
    eps : array
        The relative error that all weights of a row may share.
    sink : array
        The weight of the sink.
    mass : array
        What the other weights sum to.
    nothing : bool array
        Whether there is nothing to see.
    slack : array
        How far an output of values of size 1 may be off.
    """

    query: Array
    reached: Array
    eps: Array
    sink: Array
    mass: Array
    nothing: Any
    slack: Array


class HeadSums:
    """The sums of each head of one call; every array is read once, block by block."""

    def __init__(self, call: Long, have: Any, target: Format) -> None:
        self.call, self.have, self.target = call, have, target
        self.lse_unit = unit_of(have.lse, target) if have.lse is not None else 0.0
        self.head_dim, self.value_dim = call.query.shape[-1], call.value.shape[-1]
        scale = call.options.get("scale")
        self.factor = self.head_dim**-0.5 if scale is None else scale
        self.magnitude = 1.0 if callable(self.factor) else float(np.abs(self.factor).max(initial=0))
        self.hides = any(call.options.get(n) is not None for n in ("mask", "bias"))
        query_len = call.query.shape[-2]
        self.last, self.counts = np.zeros(query_len, int), np.zeros(query_len, int)
        for i, (queries, keys) in enumerate(zip(call.queries, call.keys, strict=True)):
            first, last = call.at((0,) * len(call.lead), 0, i).reach(np.arange(queries.stop - queries.start))
            self.counts[queries] = np.maximum(last - first + 1, 0)
            self.last[queries] = last + keys.start

    def of(self, lead: tuple[int, ...], head: int) -> dict[str, Any]:
        """All sums of one key head and the queries that read it."""
        total = self._keys(lead, head)
        extremes = Extremes(self.call, lead, head, self.last)
        heads = slice(head * self.call.group, (head + 1) * self.call.group)
        for span in spans(0, self.call.query.shape[-2]):
            for name, x in self._queries(lead, heads, span, total["longest"], extremes).items():
                total[name] = np.maximum(total.get(name, 0), x) if name.startswith("max") else total.get(name, 0) + x
        return total

    def _keys(self, lead: tuple[int, ...], head: int) -> dict[str, Any]:
        """Sums over keys and values and their gradients."""
        call, grads = self.call, self.have.gradients
        found: dict[str, Any] = {"longest": 0.0}
        for span in spans(0, call.key.shape[-2]):
            key = part(call.key, lead, head, span)
            finite = np.where(np.isfinite(key), key, 0)
            found["longest"] = max(found["longest"], float(np.sqrt((finite**2).sum(axis=-1).max())))
            sums: dict[str, Any] = {}
            for name in {"key", "value"} & grads.keys():
                d = part(grads[name], lead, head, span)
                sums |= {f"d_{name}": d.sum(axis=0), f"d_{name}_square": (d**2).sum(axis=0), f"d_{name}_size": np.abs(d).sum(axis=0)}
                if name == "key":
                    each = finite * d
                    sums |= {
                        "key": each.sum(),
                        "key_size": np.abs(each).sum(),
                        "key_stored": (each**2).sum(),
                        "key_rows": (each.sum(axis=-1) ** 2).sum(),
                    }
            for name, x in sums.items():
                found[name] = found.get(name, 0) + x
        return found

    def row(self, lead: tuple[int, ...], heads: slice, span: slice, longest: float) -> Row:
        """What is known of some queries without their keys."""
        e, u, options = self.target.accumulator, self.target.unit, self.call.options
        query, counts = part(self.call.query, lead, heads, span), self.counts[span]
        length = np.sqrt((query**2).sum(axis=-1))
        reached = self.magnitude * length * longest
        lse = None if self.have.lse is None else part(self.have.lse, lead, heads, span)
        size = reached + np.log(np.maximum(counts, 1)) if lse is None else np.where(np.isfinite(lse), np.abs(lse), 0)
        added = 4.0 * (options.get("softcap") or 0.0) + size * (options.get("bias") is not None)
        score = e * ((growth(self.head_dim) + 2) * reached + 2 * added)
        eps = 2 * score + e * growths(counts) + (2 * e + self.lse_unit) * size
        sink = np.zeros_like(length)
        if self.call.sinks is not None and lse is not None:
            sink = np.exp(self.call.sinks[heads, None] - np.where(np.isneginf(lse), np.inf, lse))
        nothing = np.broadcast_to(counts == 0, length.shape) if lse is None else np.isneginf(lse)
        slack = 2 * u + 2 * score + 4 * e + e * growths(counts) + underflow(self.target) * counts
        return Row(query, reached, eps, sink, np.where(nothing, 0, 1 - sink), nothing, slack)

    def masses(self) -> tuple[Array, Array]:
        """What the weights of every row sum to, and how far an honest kernel's may be from it."""
        shape = tuple(self.call.query.shape[:-1])
        mass, slack = np.zeros(shape), np.zeros(shape)
        for lead, head in self.call.heads():
            heads = slice(head * self.call.group, (head + 1) * self.call.group)
            longest = self._keys(lead, head)["longest"]
            for span in spans(0, shape[-1]):
                row = self.row(lead, heads, span, longest)
                mass[(*lead, heads, span)], slack[(*lead, heads, span)] = row.mass, row.slack + row.eps * row.sink
        return mass, slack

    def _queries(self, lead: tuple[int, ...], heads: slice, span: slice, longest: float, extremes: Extremes) -> dict[str, Any]:
        """Sums over one block of queries."""
        have, e, u = self.have, self.target.accumulator, self.target.unit
        counts, sinks = self.counts[span], self.call.sinks
        query, reached, eps, sink, mass, nothing, slack = self.row(lead, heads, span, longest)
        raw = part(have.output, lead, heads, span)
        output = np.where(nothing[..., None], 0, raw)
        found: dict[str, Any] = {"max_reached": reached.max(initial=0), "max_empty": _largest(raw[:, counts == 0])}
        found |= extremes.compare(output, span, slack, counts, open_to_zero=sinks is not None or self.hides)
        if have.d_output is None:
            return found
        d_output = part(have.d_output, lead, heads, span)
        d_lse = 0.0 if have.d_lse is None else part(have.d_lse, lead, heads, span)
        delta = (output * d_output).sum(axis=-1) - d_lse
        norms = np.sqrt((output**2).sum(axis=-1) * (d_output**2).sum(axis=-1))
        products = np.abs(output * d_output)
        fine = e * ((growth(self.value_dim) * np.sqrt(self.value_dim) + 2 * (growth(self.head_dim) + 2) * reached) * norms)
        of_delta = (
            2 * u * np.sqrt((products**2).sum(axis=-1)) + fine + eps * np.abs(delta) + growth(self.value_dim) * e * products.sum(axis=-1)
        )
        found |= {
            "mass": (mass[..., None] * d_output).sum(axis=(0, 1)),
            "cotangents": np.abs(d_output).sum(axis=(0, 1)),
            "mass_error": ((eps**2 + u**2 / 3)[..., None] * (mass[..., None] * d_output) ** 2).sum(axis=(0, 1)),
            "mass_square": (mass[..., None] * d_output**2).sum(axis=(0, 1)),
            "left": (query * (sink * delta)[..., None]).sum(axis=(0, 1)),
            "left_error": (query**2 * (of_delta**2 + (sink * eps * delta) ** 2)[..., None]).sum(axis=(0, 1)),
            "left_size": (np.abs(query) * np.abs(sink * delta)[..., None]).sum(axis=(0, 1)),
            "sinks": -(sink * delta).sum(axis=-1),
            "sinks_error": ((sink * of_delta) ** 2 + (eps * sink * delta) ** 2).sum(axis=-1),
            "sinks_size": np.abs(sink * delta).sum(axis=-1),
        }
        if "query" in have.gradients:
            d_query = part(have.gradients["query"], lead, heads, span)
            each = query * d_query
            found |= {
                "query": each.sum(),
                "query_size": np.abs(each).sum(),
                "query_stored": (each**2).sum(),
                "query_rows": (each.sum(axis=-1) ** 2).sum(),
                "query_delta": ((fine * reached) ** 2).sum(),
            }
            found["max_empty"] = max(found["max_empty"], _largest(d_query[:, counts == 0]))
        return found


def _largest(x: Array) -> float:
    """The largest magnitude; infinity where something is not a number."""
    return float(np.nan_to_num(np.abs(x), nan=np.inf).max(initial=0))


class Extremes:
    """The least and the largest value up to the last key that each query may see, followed block by block."""

    def __init__(self, call: Long, lead: tuple[int, ...], head: int, last: Integers) -> None:
        self.call, self.lead, self.head, self.last = call, lead, head, last
        self.ordered = bool((np.diff(last) >= 0).all())
        self.done = 0
        self.low, self.high = np.full(call.value.shape[-1], np.inf), np.full(call.value.shape[-1], -np.inf)

    def compare(self, output: Array, span: slice, slack: Array, counts: Integers, *, open_to_zero: bool) -> dict[str, Any]:
        """How far beyond them the outputs of a block of queries are, in units of what rounding may do."""
        seen = np.flatnonzero(counts > 0)
        if not seen.size or not self.ordered:
            return {"max_beyond": 0.0, "max_signal": 0.0}
        last = self.last[span][seen]
        low, high = self._until(last)
        if open_to_zero:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
        size = np.maximum(np.abs(low), np.abs(high))
        beyond = np.maximum(output[:, seen] - high, low - output[:, seen])
        allowed = slack[:, seen, None] * size + np.finfo(float).tiny
        ratio = np.where(np.isnan(beyond), np.inf, beyond / allowed) if np.isfinite(size).all() else np.zeros(1)
        return {"max_beyond": ratio.max(initial=0), "max_signal": float(size.max(initial=0))}

    def _until(self, last: Integers) -> tuple[Array, Array]:
        """The extremes up to each of these keys, which do not fall."""
        lows, highs = [self.low[None]], [self.high[None]]
        start, stop = self.done, max(self.done, int(last[-1]) + 1)
        for span in spans(start, stop):
            block = part(self.call.value, self.lead, self.head, span)
            lows.append(np.fmin.accumulate(np.concatenate([lows[-1][-1:], block]))[1:])
            highs.append(np.fmax.accumulate(np.concatenate([highs[-1][-1:], block]))[1:])
        low, high = np.concatenate(lows), np.concatenate(highs)
        self.low, self.high, self.done = low[-1], high[-1], stop
        return low[last - start + 1], high[last - start + 1]
