"""What a failed comparison leaves behind: the arrays of its case, so that it can be explained and shown."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

import refattn
from refattn._core import Array, Mechanism, tree
from refattn._core.docstring import Leaf

WORDS = {
    "batch": "example",
    "kv_heads * group": "head",
    "kv_heads": "head",
    "heads": "head",
    "query_len": "query",
    "key_len": "key",
    "length": "position",
    "out_length": "position",
    "head_dim": "channel",
    "value_dim": "channel",
    "model_dim": "feature",
    "height": "row",
    "out_height": "row",
    "width": "column",
    "out_width": "column",
    "kernel_height": "tap row",
    "kernel_width": "tap column",
    "groups * out_group": "output channel",
    "groups * in_group": "input channel",
    "channels": "channel",
    "classes": "class",
    "features": "feature",
}
"""What one index along a dimension is called."""


class Arrays(NamedTuple):
    """One output or gradient: what came, what should have come, and how far apart they may be."""

    got: Array
    exact: Array
    budget: Array


@dataclass(eq=False)
class Evidence:
    """The arrays of one case of which something is wrong.

    Attributes
    ----------
    mechanism, case, dtype : str
        Which comparison it was.
    arguments : mapping
        What both sides were given, rounded to the format, by the mechanism's names.
    exact_scores : bool
        Whether the budget has no term for scores.
    cotangents : tuple of array or None
        What gradients were computed from.
    arrays : dict of str to Arrays
        By the name of an output, or ``d_`` and that of a gradient.
    """

    mechanism: str
    case: str
    dtype: str
    arguments: Mapping[str, Any]
    exact_scores: bool = False
    cotangents: tuple[Array, ...] | None = None
    arrays: dict[str, Arrays] = field(default_factory=dict)

    @property
    def of(self) -> Mechanism[..., Any]:
        """The mechanism itself."""
        return getattr(refattn, self.mechanism, None) or next(m for m in refattn.mechanisms() if m.__name__ == self.mechanism)

    @property
    def elements(self) -> int:
        """How much there is to compute."""
        return sum(x.exact.size for x in self.arrays.values()) + sum(np.size(x) for _, x in tree.leaves(self.arguments))

    def axes(self, what: str) -> tuple[str, ...]:
        """What an index along each axis of an output or gradient is called."""
        return axes_of(self.of, what, self.arrays[what].exact.ndim)


def axes_of(mechanism: Mechanism[..., Any], what: str, ndim: int) -> tuple[str, ...]:
    """What an index along each axis is called; "axis-0 index" and so on where nothing is stated."""
    facts = mechanism.spec.facts
    stated: Any = facts.outputs.get(what)
    if stated is None:
        stated = functools.reduce(_part, what.removeprefix("d_").split(".")[1:], facts.arguments.get(what.removeprefix("d_").split(".")[0]))
    dims = stated.dims if isinstance(stated, Leaf) else ()
    named = [WORDS.get(d, d) for d in dims if d[:3] != "..." and d[:1] != "*"][-ndim:] if ndim else []
    lead = ndim - len(named)
    return (*("example" if lead == 1 and dims[:1] == ("...",) else f"axis-{i} index" for i in range(lead)), *named)


def _part(fact: Any, step: str) -> Any:
    """The fact of a field of a record; None where there is none."""
    if isinstance(fact, tuple):
        return fact[0]
    if isinstance(fact, type):
        from refattn._core.docstring import record_facts  # noqa: PLC0415

        return record_facts(fact).get(step)
    return None


def few(results: Iterable[Any], most: int = 32) -> list[Any]:
    """The results, of which the failures of the first cases alone keep their arrays: a large check must fit into memory."""
    kept: list[Any] = []
    cases: list[Evidence] = []
    for result in results:
        evidence = result.evidence
        if evidence is not None and evidence not in cases:
            cases.append(evidence)
        kept.append(result if evidence is None or len(cases) <= most or evidence in cases[:most] else result.without_evidence())
    return kept
