"""Sums over all tokens of one head of softmax attention, of which its conservation laws are made."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, Integers
from refattn.testing.attention_budget import growth, underflow
from refattn.testing.long.arrays import TOKENS, part, spans, unit_of
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
        for span in spans(0, self.call.query.shape[-2], TOKENS):
            for name, x in self._queries(lead, heads, span, total["longest"], extremes).items():
                total[name] = np.maximum(total.get(name, 0), x) if name.startswith("max") else total.get(name, 0) + x
        return total

    def _keys(self, lead: tuple[int, ...], head: int) -> dict[str, Any]:
        """Sums over keys and values and their gradients."""
        call, grads = self.call, self.have.gradients
        found: dict[str, Any] = {"longest": 0.0}
        for span in spans(0, call.key.shape[-2], TOKENS):
            key = part(call.key, lead, head, span)
            key = key if np.isfinite(key.sum()) else np.where(np.isfinite(key), key, 0)
            found["longest"] = max(found["longest"], float(np.sqrt(_dots(key, key).max())))
            sums: dict[str, Any] = {}
            for name in {"key", "value"} & grads.keys():
                d = part(grads[name], lead, head, span)
                sums |= {f"d_{name}": d.sum(axis=0), f"d_{name}_square": np.einsum("nd,nd->d", d, d)}
                if name == "key":
                    sums |= _inner("key", key * d)
            for name, x in sums.items():
                found[name] = found.get(name, 0) + x
        return found

    def row(self, lead: tuple[int, ...], heads: slice, span: slice, longest: float) -> Row:
        """What is known of some queries without their keys."""
        e, u, options = self.target.accumulator, self.target.unit, self.call.options
        query, counts = part(self.call.query, lead, heads, span), self.counts[span]
        length = np.sqrt(_dots(query, query))
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
        output, blind = part(have.output, lead, heads, span), np.flatnonzero(counts == 0)
        found: dict[str, Any] = {"max_reached": reached.max(initial=0), "max_empty": _largest(output[:, blind])}
        output = np.where(nothing[..., None], 0, output) if nothing.any() else output
        found |= extremes.compare(output, span, slack, counts, open_to_zero=sinks is not None or self.hides)
        if have.d_output is None:
            return found
        d_output = part(have.d_output, lead, heads, span)
        products = output * d_output
        delta = products.sum(axis=-1) - (0.0 if have.d_lse is None else part(have.d_lse, lead, heads, span))
        norms = np.sqrt(_dots(output, output) * _dots(d_output, d_output))
        fine = e * (growth(self.value_dim) * np.sqrt(self.value_dim) + 2 * (growth(self.head_dim) + 2) * reached) * norms
        of_delta = 2 * u * np.sqrt(_dots(products, products)) + fine + eps * np.abs(delta)
        squares, taken = d_output**2, sink * delta
        found |= {
            "mass": _weighted(mass, d_output),
            "mass_square": _weighted(mass, squares),
            "mass_error": _weighted((eps**2 + u**2 / 3) * mass**2, squares),
            "left": _weighted(taken, query) if sinks is not None else np.zeros(self.head_dim),
            "left_size": _weighted(np.abs(taken), np.abs(query)) if sinks is not None else np.zeros(self.head_dim),
            "left_error": _weighted(of_delta**2 + (eps * taken) ** 2, query**2),
            "sinks": -taken.sum(axis=-1),
            "sinks_error": ((sink * of_delta) ** 2 + (eps * taken) ** 2).sum(axis=-1),
            "sinks_size": np.abs(taken).sum(axis=-1),
        }
        if "query" in have.gradients:
            d_query = part(have.gradients["query"], lead, heads, span)
            found |= {**_inner("query", query * d_query), "query_delta": ((fine * reached) ** 2).sum()}
            found["max_empty"] = max(found["max_empty"], _largest(d_query[:, blind]))
        return found


def _dots(x: Array, y: Array) -> Array:
    """Inner products along the last axis."""
    return np.einsum("...d,...d->...", x, y)


def _weighted(weights: Array, x: Array) -> Array:
    """The sum of all rows of (group, rows, features), each times a number."""
    return (weights[:, None, :] @ x).sum(axis=(0, 1))


def _inner(name: str, each: Array) -> dict[str, Any]:
    """Of the elements of which an inner product is the sum: that, their squares, and the squares of what each row adds."""
    rows = each.sum(axis=-1)
    return {name: rows.sum(), f"{name}_stored": (_dots(each, each)).sum(), f"{name}_rows": (rows**2).sum()}


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
            return {"max_beyond": 0.0}
        last = self.last[span][seen]
        self._advance(int(last[0]) + 1)
        first_low, first_high = self.low, self.high
        inside = output.min(initial=0) >= first_low.max() and output.max(initial=0) <= first_high.min()
        if inside or ((output.min(axis=1) >= first_low) & (output.max(axis=1) <= first_high)).all():
            return {"max_beyond": 0.0}
        low, high = self._until(last)
        if open_to_zero:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
        size = np.maximum(np.abs(low), np.abs(high))
        beyond = np.maximum(output[:, seen] - high, low - output[:, seen])
        allowed = slack[:, seen, None] * size + np.finfo(float).tiny
        ratio = np.where(np.isnan(beyond), np.inf, beyond / allowed) if np.isfinite(size).all() else np.zeros(1)
        return {"max_beyond": ratio.max(initial=0)}

    def _advance(self, stop: int) -> None:
        """Take in all values before this key."""
        for span in spans(self.done, max(stop, self.done), TOKENS):
            block = part(self.call.value, self.lead, self.head, span)
            self.low = np.fmin(self.low, np.fmin.reduce(block))
            self.high = np.fmax(self.high, np.fmax.reduce(block))
        self.done = max(stop, self.done)

    def _until(self, last: Integers) -> tuple[Array, Array]:
        """The extremes up to each of these keys, which do not fall, and of which the first is taken in."""
        block = part(self.call.value, self.lead, self.head, slice(self.done, int(last[-1]) + 1))
        low = np.fmin.accumulate(np.concatenate([self.low[None], block]))
        high = np.fmax.accumulate(np.concatenate([self.high[None], block]))
        return low[last - self.done + 1], high[last - self.done + 1]
