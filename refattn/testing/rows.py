"""Is this kernel right at a million tokens? Some rows of it, compared element by element."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from refattn._core import Array, Integers, Mechanism
from refattn._core.arrays import as_array
from refattn._core.random import Random
from refattn.testing.candidates import refuse_what_is_no_mechanism
from refattn.testing.long.arrays import named, spans, unit_of
from refattn.testing.long.choice import chosen, said
from refattn.testing.long.columns import Columns
from refattn.testing.long.given import Given, given, wrong_shapes
from refattn.testing.long.judged import Looked, judged
from refattn.testing.long.parts import DENSE, PACKED, Long, Part, long_call, starts_and_ends
from refattn.testing.long.sampled import Exact, Forward, Rows
from refattn.testing.precision import Format, named_format
from refattn.testing.report import Report, Result

SMALL = 2**26
"""Pairs of queries and keys of one head up to which every row's log-sum-exp is computed here, where it is not given: a second or two."""


def check_rows(
    got: Any,
    mechanism: Mechanism[..., Any],
    inputs: Mapping[str, Any],
    *,
    rows: int | Sequence[int] | Integers = 32,
    columns: int | Sequence[int] | Integers | None = None,
    seed: int = 0,
    gradients: Mapping[str, Any] | None = None,
    cotangents: Any = None,
    dtype: Any = "float32",
    lse: Any = None,
) -> Report:
    """Compare some rows of softmax attention over very many tokens, without the matrix of all scores.

    Parameters
    ----------
    got : array or tuple of array
        The outputs.
    mechanism : mechanism
        ``refattn.scaled_dot_product_attention``, ``refattn.varlen_attention``, or one of these with log-sum-exp.
    inputs : mapping
        The arguments by name, as the kernel saw them. Arrays and tensors are read in blocks. `mask`, `bias`, `scale` and
        `keep` may be functions: called with the positions of some queries and some keys, they return an array that broadcasts to
        ``(..., heads, rows, columns)``.
    rows : int or sequence of int, optional
        How many queries of each head, or which. Of a number, up to two thirds are the first and the last, edges of tiles, and where a window or
        a causal mask begins and ends; the others are drawn, one from each of as many equal parts of the sequence.
    columns : int or sequence of int or None, optional
        The same for the keys whose gradients are compared; None is as many as `rows`.
    seed : int, optional
        Another seed draws others.
    gradients : mapping or None, optional
        Gradients by name. Those of `query`, `key` and `value` are compared, others listed as skipped.
    cotangents : array or tuple of array or None, optional
        What the gradients were computed from; needed with `gradients`.
    dtype : str or dtype, optional
        The precision of the kernel.
    lse : array or None, optional
        The kernel's natural log-sum-exp of every row, where the outputs do not contain it. Gradients of keys and values need
        it; without it they are compared only where it costs little to compute.

    Returns
    -------
    Report
        One result for each output and gradient, in which rows are numbered as in the whole array. Rows of which the budget is
        larger than what stands there are not counted as compared; where that holds for all, the result is skipped.

    Notes
    -----
    Time grows with heads times chosen rows times tokens. Memory, beside the arrays that are given: a few dozen arrays of 4096
    tokens of one head in float64, or of ``group * rows * 4096 / group`` scores, 100 to 200 MB with head_dim 64 and 32 rows.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> query, key, value = (np.sin(np.arange(4000.0) * k).reshape(1, 1000, 4) for k in (1, 2, 3))
    >>> output = refattn.scaled_dot_product_attention(query, key, value, causal=True)
    >>> inputs = {"query": query, "key": key, "value": value, "causal": True}
    >>> refattn.testing.check_rows(output, refattn.scaled_dot_product_attention, inputs).passed
    True
    >>> output[0, 999] *= 1.05
    >>> refattn.testing.check_rows(output, refattn.scaled_dot_product_attention, inputs).failures[0].worst_index[:2]
    (0, 999)
    """
    refuse_what_is_no_mechanism(mechanism)
    if mechanism.spec.name not in (*DENSE, *PACKED):
        raise ValueError(f"mechanism is {mechanism.spec.name}, but must be one of {', '.join((*DENSE, *PACKED))}")
    call = long_call(mechanism, named("inputs", inputs))
    have = given(mechanism, got, gradients, cotangents, lse)
    return Report(RowCheck(mechanism.spec.name, call, have, named_format(dtype)).results(rows, columns, seed))


def all_sums(call: Long) -> Array:
    """The log-sum-exp of every row, computed here."""
    lse = np.full((*call.lead, call.query.shape[-3], call.query.shape[-2]), -np.inf)
    for lead, head in call.heads():
        for i in range(len(call.queries)):
            of = call.at(lead, head, i)
            for span in spans(0, of.lengths[0], 256):
                at = slice(of.queries.start + span.start, of.queries.start + span.stop)
                lse[(*lead, of.heads, at)] = Forward(of, np.arange(span.start, span.stop)).lse
    return lse


class RowCheck:
    """The comparisons of one call."""

    def __init__(self, name: str, call: Long, have: Given, target: Format) -> None:
        self.name, self.call, self.have, self.target = name, call, have, target
        self.lse_unit = unit_of(have.lse, target) if have.lse is not None else 0.0

    def results(self, rows: Any, columns: Any, seed: int) -> list[Result]:
        """One for each output and gradient."""
        if self.call.options.get("masked_rows") == "uniform":
            return [self._result("all", {"status": "skipped", "reason": "masked_rows='uniform': not supported"})]
        if wrong := [self._result(what, fields) for what, fields in wrong_shapes(self.call, self.have)]:
            return wrong
        found = self._rows(rows, seed)
        wanted = [n for n in ("key", "value") if n in self.have.gradients]
        if wanted:
            found += self._columns(rows if columns is None else columns, seed, wanted, found)
        others = sorted(self.have.gradients.keys() - {"query", "key", "value"})
        return found + [self._result(f"d_{n}", {"status": "skipped", "reason": "is no sum over one row or column"}) for n in others]

    def _rows(self, rows: Any, seed: int) -> list[Result]:
        some = (self.call.at((0,) * len(self.call.lead), 0, i) for i in range(min(4, len(self.call.queries))))
        edges = starts_and_ends(self.call) + [p.queries.start + r for p in some for r in p.edges]
        looked: dict[str, list[Looked]] = {}
        sampled = ""
        for random, lead, head in self._draws(seed):
            picked, sampled = _picked("rows", rows, self.call.query.shape[-2], edges, random)
            for of, at in self._by_sequence(lead, head, picked, self.call.queries):
                ds = {"d_output": self.have.d_output, "d_lse": self.have.d_lse} if "query" in self.have.gradients else {}
                made = Rows(of, at, self.target, lse_unit=self.lse_unit, **ds)
                exact: dict[str, tuple[Any, Exact]] = {"output": (self.have.output, made.output())}
                if self.have.lse is not None:
                    exact["lse"] = (self.have.lse, made.log_sum_exp())
                if "query" in self.have.gradients:
                    exact["d_query"] = (self.have.gradients["query"], made.d_query())
                for what, (whole, one) in exact.items():
                    looked.setdefault(what, []).append(Looked(lead, of.heads, at + of.queries.start, whole, one))
        return [self._result(what, judged(x, sampled, self.target.floor)) for what, x in looked.items()]

    def _columns(self, columns: Any, seed: int, wanted: list[str], found: list[Result]) -> list[Result]:
        lse, reason = self.have.lse, ""
        if lse is not None and any(r.what == "lse" and r.status != "pass" for r in found):
            reason = "the log-sum-exp, from which this would be computed, is wrong or cannot be told"
        elif lse is None and self.call.query.shape[-2] * self.call.key.shape[-2] > SMALL:
            reason = "lse is not given, and to compute it would take as long as the whole attention"
        if reason:
            return [self._result(f"d_{n}", {"status": "skipped", "reason": reason}) for n in wanted]
        lse = all_sums(self.call) if lse is None else lse
        looked: dict[str, list[Looked]] = {n: [] for n in wanted}
        sampled = ""
        for random, lead, head in self._draws(seed + 1):
            picked, sampled = _picked("columns", columns, self.call.key.shape[-2], [], random)
            for of, at in self._by_sequence(lead, head, picked, self.call.keys):
                made = Columns(of, at, self.target, lse_unit=self.lse_unit).gradients(
                    lse, self.have.output, self.have.d_output, self.have.d_lse
                )
                for n, one in zip(("key", "value"), made, strict=True):
                    if n in wanted:
                        of_head = Exact(one.value[None], one.budget[None])
                        looked[n].append(Looked(lead, slice(head, head + 1), at + of.keys.start, self.have.gradients[n], of_head))
        return [self._result(f"d_{n}", judged(x, sampled, self.target.floor)) for n, x in looked.items()]

    def _draws(self, seed: int) -> Iterator[tuple[Random, tuple[int, ...], int]]:
        for i, (lead, head) in enumerate(self.call.heads()):
            yield Random(2**20 * seed + i), lead, head

    def _by_sequence(self, lead: tuple[int, ...], head: int, picked: Integers, sequences: list[slice]) -> Iterator[tuple[Part, Integers]]:
        for i, span in enumerate(sequences):
            inside = picked[(picked >= span.start) & (picked < span.stop)]
            if inside.size:
                yield self.call.at(lead, head, i), inside - span.start

    def _result(self, what: str, fields: Mapping[str, Any]) -> Result:
        return Result(self.name, "chosen rows", what, self.target.name, **fields)


def _picked(name: str, wanted: Any, length: int, edges: list[int], random: Random) -> tuple[Integers, str]:
    what = {"rows": "rows", "columns": "keys"}[name]
    if isinstance(wanted, (int, np.integer)):
        if wanted < 1:
            raise ValueError(f"{name} is {wanted}, but must be at least 1")
        picked, drawn = chosen(length, int(wanted), edges, random)
        return picked, said(len(picked), length, drawn, what)
    given = as_array(wanted, name)
    if given.dtype.kind not in "iu" or given.ndim != 1:
        raise TypeError(f"{name} is {given.dtype} of {given.ndim} axes, but must be an int, or positions in one axis")
    if given.size and not 0 <= given.min() <= given.max() < length:
        raise ValueError(f"{name} runs from {given.min()} to {given.max()}, but there are {length}")
    return np.unique(given).astype(int), f"{len(np.unique(given))} of {length} {what}, as asked for"
