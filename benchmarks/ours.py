"""The calls of our own packages: the compiled twin, the reference in NumPy, and the reference in float64 to measure errors with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import refattn
from benchmarks.cases import Call
from benchmarks.peers import peers
from benchmarks.softmax import Given, Problem

NUMPY_SCORES = 1 << 21  # the reference is not timed on more, nor on more keys
EXACT_SCORES = 1 << 24  # nor made of more to measure errors with


def by(module: Any, given: Given) -> Call:
    """The call of a package of ours: the output, and with the backward pass gradients."""
    inputs, options = (given.query, given.key, given.value), given.options

    def both() -> Any:
        y, pullback = module.scaled_dot_product_attention.vjp(*inputs, **options)
        grads = pullback(given.d)
        return (y, *(grads[n] for n in ("query", "key", "value", "bias") if n in grads))

    return both if given.problem.backward else lambda: module.scaled_dot_product_attention(*inputs, **options)


def exact(given: Given) -> dict[str, Call]:
    """Of the first sequence's first key head alone, unless heads share a bias; of its first rows, where a forward pass is large."""
    part = given.problem
    if "bias" not in given.options:
        part = replace(part, batch=1, heads=part.heads // part.kv_heads, kv_heads=1)
    options = {n: x.astype(float) if n == "bias" else x for n, x in given.options.items()}
    if part.scores > EXACT_SCORES:
        if part.backward or (mask := given.dense_mask()) is None:
            return {}
        part = replace(part, query_len=EXACT_SCORES // (part.heads * part.key_len))
        options = {"mask": mask[: part.query_len]}
    heads = (part.heads, part.kv_heads, part.kv_heads, part.heads)
    query, key, value, d = (x[: part.batch, :h].astype(float) for x, h in zip(given[1:5], heads, strict=True))
    return {"exact": by(refattn, Given(part, query[:, :, : part.query_len], key, value, d, options))}


def attention(problem: Problem) -> Mapping[str, Call]:
    """All contenders of one case."""
    import refattn_numba  # noqa: PLC0415  (the other suites do without)

    given = problem.drawn()
    calls = {"refattn_numba": by(refattn_numba, given), **peers(given)}
    if max(problem.scores, given.key.size) <= NUMPY_SCORES:
        calls["numpy"] = by(refattn, given)
    return {**calls, **exact(given)}
