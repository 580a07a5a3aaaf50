"""Softmax attention as parts that can be looked at alone: one key head of one sequence each, with the queries that read it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, Integers, Mechanism
from refattn._core.arrays import as_array
from refattn.attention.cached.varlen import spans_of
from refattn.attention.dot_product.scaled_dot_product import within_reach
from refattn.primitives.attention_stages import softcap as softcapped
from refattn.testing.long.arrays import large, part

DENSE = ("scaled_dot_product_attention", "scaled_dot_product_attention_with_lse")
PACKED = ("varlen_attention", "varlen_attention_with_lse")
PAIRWISE = ("mask", "bias", "scale", "keep")


@dataclass(frozen=True)
class Long:
    """A call of softmax attention whose arrays are only read in parts.

    Attributes
    ----------
    query, key, value : array
        As they were given, in any library.
    options : dict
        The other arguments, defaults included; `mask`, `bias`, `scale` and `keep` may be functions of rows and columns.
    queries, keys : list of slice
        The positions of each sequence.
    """

    query: Any
    key: Any
    value: Any
    options: dict[str, Any]
    queries: list[slice]
    keys: list[slice]

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes before the heads."""
        return tuple(self.query.shape[:-3])

    @property
    def group(self) -> int:
        """How many query heads share a key head."""
        return self.query.shape[-3] // max(self.key.shape[-3], 1)

    def heads(self) -> Iterator[tuple[tuple[int, ...], int]]:
        """Every entry of the leading axes with every key head."""
        for lead in np.ndindex(*self.lead):
            for head in range(self.key.shape[-3]):
                yield lead, head

    def at(self, lead: tuple[int, ...], head: int, sequence: int) -> Part:
        """One key head of one sequence."""
        return Part(self, lead, head, self.queries[sequence], self.keys[sequence])

    @property
    def sinks(self) -> Array | None:
        """A score for each query head, or None."""
        given = self.options.get("sinks")
        return None if given is None else as_array(given).astype(np.float64)


def long_call(mechanism: Mechanism[..., Any], inputs: Mapping[str, Any]) -> Long:
    """The call, held to what its arrays must be; errors name the argument."""
    name = mechanism.spec.name
    try:
        mechanism.spec.signature.bind(**inputs)
    except TypeError as error:
        raise TypeError(f"{name}: inputs: {error}") from None
    q, k, v = (large(f"{name}: {n}", inputs[n]) for n in ("query", "key", "value"))
    if q.ndim < 3 or k.ndim != q.ndim or v.ndim != q.ndim:
        raise ValueError(f"{name}: query, key and value have {q.ndim}, {k.ndim} and {v.ndim} axes, but need the same number, at least 3")
    for axis, a, b in ((-1, q, k), (-2, k, v), (-3, k, v)):
        if a.shape[axis] != b.shape[axis]:
            raise ValueError(f"{name}: axis {axis} is {a.shape[axis]} in {tuple(a.shape)}, but {b.shape[axis]} in {tuple(b.shape)}")
    if tuple(q.shape[:-3]) != tuple(k.shape[:-3]) or q.shape[-3] % max(k.shape[-3], 1):
        raise ValueError(f"{name}: query is {tuple(q.shape)}, whose heads are no multiple of those of key, {tuple(k.shape)}")
    rest = {n: inputs.get(n, d) for n, d in mechanism.spec.defaults.items()}
    if name in PACKED:
        starts = [None if (x := inputs.get(n)) is None else as_array(x, n) for n in ("cu_seqlens_q", "cu_seqlens_k")]
        queries, keys = spans_of(np.asarray(starts[0]), starts[1], q.shape[-2], k.shape[-2])
        return Long(q, k, v, {n: x for n, x in rest.items() if not n.startswith("cu_seqlens")}, queries, keys)
    for n in PAIRWISE:
        x = rest[n]
        if x is not None and not callable(x) and not isinstance(x, (int, float)):
            rest[n] = as_array(x, n)
            _full(rest[n], (*q.shape[:-1], k.shape[-2]), f"{name}: {n}")
    long = Long(q, k, v, rest, [slice(0, q.shape[-2])], [slice(0, k.shape[-2])])
    for queries, keys in zip(long.queries, long.keys, strict=True):
        within_reach(*lengths(queries, keys), **_positions(rest), rows=np.arange(0), columns=np.arange(0))  # refuses a missing alignment
    return long


class Pairs(NamedTuple):
    """Queries and keys, pair by pair; every array broadcasts to (group, rows, columns).

    Attributes
    ----------
    logits : array
        Scores after soft cap and bias, 0 where the pair is masked.
    allowed : bool array or None
        None where no pair is masked.
    scale : array or float
        What the product of query and key is multiplied by.
    slope : array or float
        The derivative of a logit by the product of query and key.
    kept : array or float
        What dropout makes of a weight.
    size : array
        The magnitudes of which a logit is made: what its rounding errors are relative to, besides the number of products.
    added : array or float
        The same for soft cap and bias, whose errors do not grow with the number of products.
    """

    logits: Array
    allowed: Any
    scale: Any
    slope: Any
    kept: Any
    size: Array
    added: Any


@dataclass(frozen=True)
class Part:
    """One key head of one sequence, of which positions are counted from 0."""

    call: Long
    lead: tuple[int, ...]
    head: int
    queries: slice
    keys: slice

    @property
    def heads(self) -> slice:
        """Which query heads read it."""
        return slice(self.head * self.call.group, (self.head + 1) * self.call.group)

    @property
    def lengths(self) -> tuple[int, int]:
        """How many queries and keys there are."""
        return lengths(self.queries, self.keys)

    def of_queries(self, x: Any, rows: Any) -> Array:
        """Rows of an array that is laid out as the queries are: (group, rows, features)."""
        return part(x, self.lead, self.heads, self._of(self.queries, rows))

    def of_keys(self, x: Any, columns: Any) -> Array:
        """Rows of an array that is laid out as the keys are."""
        return part(x, self.lead, self.head, self._of(self.keys, columns))

    @staticmethod
    def _of(within: slice, at: Any) -> Any:
        return slice(within.start + at.start, within.start + at.stop) if isinstance(at, slice) else within.start + at

    def reach(self, rows: Integers) -> tuple[Integers, Integers]:
        """The first and the last key that causality and the window let each query see; the last is before the first where none."""
        query_len, key_len = self.lengths
        own = rows + (key_len - query_len if self.call.options.get("align") == "lower_right" else 0)
        left, right = self.call.options.get("window") or (None, None)
        first = np.zeros_like(own) if left is None else np.maximum(own - left, 0)
        last = np.full_like(own, key_len - 1) if right is None else np.minimum(own + right, key_len - 1)
        return first, np.minimum(last, own) if self.call.options.get("causal") else last

    @property
    def edges(self) -> list[int]:
        """Queries at which what they see changes: the first that sees anything, and the first and last that a window cuts off."""
        query_len, key_len = self.lengths
        offset = key_len - query_len if self.call.options.get("align") == "lower_right" else 0
        left, right = self.call.options.get("window") or (None, None)
        changes = [-offset, key_len - offset]
        changes += [] if left is None else [left - offset, left + 1 - offset]
        changes += [] if right is None else [key_len - 1 - right - offset]
        return [p + by for p in changes for by in (-1, 0) if 0 <= p + by < query_len]

    def option(self, name: str, rows: Any, columns: Any) -> Any:
        """What `mask`, `bias`, `scale` or `keep` says of these pairs, as (group, rows, columns), or a number, or None."""
        x = self.call.options.get(name)
        if x is None or isinstance(x, (int, float)):
            return x
        query_len, key_len = self.lengths
        shape = (*self.call.lead, self.call.query.shape[-3])
        if not callable(x):
            whole = _full(x, (*shape, query_len, key_len), name)[(*self.lead, self.heads)]
            return whole[:, rows][..., columns]
        at = [np.arange(p.start, p.stop) if isinstance(p, slice) else p for p in (rows, columns)]
        made = _full(as_array(x(*at), name), (*shape, len(at[0]), len(at[1])), name)
        return made[(*self.lead, self.heads)]

    def pairs(self, query: Array, key: Array, rows: Any, columns: Any) -> Pairs:
        """What these queries, (group, rows, head_dim), make of these keys."""
        options = self.call.options
        first, last = self.reach(np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows)
        places = np.arange(columns.start, columns.stop) if isinstance(columns, slice) else columns
        inside = first.max(initial=0) <= places.min(initial=0) and places.max(initial=0) <= last.min(initial=0)
        allowed = None if inside else (places >= first[:, None]) & (places <= last[:, None])
        mask, bias, keep = (self.option(n, rows, columns) for n in ("mask", "bias", "keep"))
        given = self.option("scale", rows, columns)
        scale = query.shape[-1] ** -0.5 if given is None else given
        if mask is not None:
            allowed = mask if allowed is None else allowed & mask
        if bias is not None and (hidden := np.isneginf(bias)).any():
            allowed = ~hidden if allowed is None else allowed & ~hidden
        logits, slope = query @ key.swapaxes(-1, -2) * scale, scale
        size, added = np.abs(query) @ np.abs(key).swapaxes(-1, -2) * np.abs(scale), 0.0
        if (cap := options.get("softcap")) is not None:
            logits, slope = softcapped(logits, cap=cap), scale * (1 - np.tanh(logits / cap) ** 2)
            added = 4.0 * cap
        if bias is not None:
            finite = np.where(np.isneginf(bias), 0, bias)
            logits, added = logits + finite, added + np.abs(finite) + size
        if allowed is not None:
            logits = np.where(allowed, logits, 0)
        kept = 1.0 if keep is None else keep / (1 - options.get("dropout_rate", 0.0))
        return Pairs(logits, allowed, scale, slope, kept, size, added)


def lengths(queries: slice, keys: slice) -> tuple[int, int]:
    """The lengths of two slices."""
    return queries.stop - queries.start, keys.stop - keys.start


def _positions(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"causal": bool(options.get("causal")), "window": options.get("window"), "align": options.get("align")}


def _full(x: Any, shape: tuple[int, ...], name: str) -> Any:
    try:
        return np.broadcast_to(x, shape)
    except ValueError:
        raise ValueError(f"{name} has shape {x.shape}, which does not broadcast to {shape}") from None


def starts_and_ends(long: Long) -> list[int]:
    """The first and last positions of packed sequences, from the outer ones inwards."""
    edges = [(s.start, s.stop - 1) for s in long.queries if s.stop > s.start]
    return list(itertools.chain(*edges[:2], *edges[-2:])) if len(edges) > 1 else []
