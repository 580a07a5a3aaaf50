"""Is this kernel right at a million tokens? Some rows of it, compared element by element."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

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
        How many queries of each head, or which. Of a number, up to two thirds are the first and the last, edges of tiles, and
        where a window or a causal mask begins and ends; the others are drawn, one from each of as many equal parts of the sequence.
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
    tokens of one head in float64 or of ``rows * 4096`` scores, below 100 MB with head_dim 64 and 32 rows, in each of two threads
    that share the heads.

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


class Job(NamedTuple):
    """Some positions of one key head of one sequence."""

    of: Part
    at: Integers


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
        wanted = {"d_output": self.have.d_output, "d_lse": self.have.d_lse} if "query" in self.have.gradients else {}
        jobs, sampled = self._jobs("rows", rows, self.call.queries, edges, seed)

        def run(job: Job) -> dict[str, Looked]:
            made = Rows(job.of, job.at, self.target, lse_unit=self.lse_unit, **wanted)
            exact: dict[str, tuple[Any, Exact]] = {"output": (self.have.output, made.output())}
            if self.have.lse is not None:
                exact["lse"] = (self.have.lse, made.log_sum_exp())
            if wanted:
                exact["d_query"] = (self.have.gradients["query"], made.d_query())
            at = job.at + job.of.queries.start
            return {what: Looked(job.of.lead, job.of.heads, at, whole, one) for what, (whole, one) in exact.items()}

        return self._results(jobs, run, sampled)

    def _columns(self, columns: Any, seed: int, wanted: list[str], found: list[Result]) -> list[Result]:
        reason = ""
        if self.have.lse is not None and any(r.what == "lse" and r.status != "pass" for r in found):
            reason = "the log-sum-exp, from which this would be computed, is wrong or cannot be told"
        elif self.have.lse is None and self.call.query.shape[-2] * self.call.key.shape[-2] > SMALL:
            reason = "lse is not given, and to compute it would take as long as the whole attention"
        if reason:
            return [self._result(f"d_{n}", {"status": "skipped", "reason": reason}) for n in wanted]
        lse = all_sums(self.call) if self.have.lse is None else self.have.lse
        jobs, sampled = self._jobs("columns", columns, self.call.keys, [], seed + 1)

        def run(job: Job) -> dict[str, Looked]:
            made = Columns(job.of, job.at, self.target, lse_unit=self.lse_unit)
            each: dict[str, Exact] = dict(
                zip(("key", "value"), made.gradients(lse, self.have.output, self.have.d_output, self.have.d_lse), strict=True)
            )
            head, at = slice(job.of.head, job.of.head + 1), job.at + job.of.keys.start
            of_head = {n: Exact(each[n].value[None], each[n].budget[None], told=each[n].told) for n in wanted}
            return {f"d_{n}": Looked(job.of.lead, head, at, self.have.gradients[n], x) for n, x in of_head.items()}

        return self._results(jobs, run, sampled)

    def _results(self, jobs: list[Job], run: Callable[[Job], dict[str, Looked]], sampled: str) -> list[Result]:
        """All jobs, two at a time: NumPy leaves the other core idle between products."""
        looked: dict[str, list[Looked]] = {}
        with ThreadPoolExecutor(2) as pool:
            for made in pool.map(run, jobs):
                for what, one in made.items():
                    looked.setdefault(what, []).append(one)
        return [self._result(what, judged(x, sampled, self.target.floor)) for what, x in looked.items()]

    def _jobs(self, name: str, wanted: Any, sequences: list[slice], edges: list[int], seed: int) -> tuple[list[Job], str]:
        """The chosen positions of each head and sequence, and what to say of them."""
        jobs, sampled = [], ""
        for i, (lead, head) in enumerate(self.call.heads()):
            picked, sampled = _picked(name, wanted, sequences[-1].stop if sequences else 0, edges, Random(2**20 * seed + i))
            for j, span in enumerate(sequences):
                inside = picked[(picked >= span.start) & (picked < span.stop)] - span.start
                jobs += [Job(self.call.at(lead, head, j), inside)] if inside.size else []
        return jobs, sampled

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
