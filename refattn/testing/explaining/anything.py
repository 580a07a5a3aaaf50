"""Alternatives that follow from a signature alone: options that are ignored or different, arguments in each other's place."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from refattn._core import Mechanism
from refattn._core.docstring import Leaf
from refattn.testing.explaining.alternative import Alternative, Arguments, Call, DoesNotApply, Map, Named, given, into, out_of, swapped

CHOICES = re.compile(r"\{[^}]*\}")
MOST_PAIRS = 12


def anything(mechanism: Mechanism[..., Any], arguments: Arguments, covered: Collection[str]) -> Iterator[Alternative]:
    """Alternatives for a call of any mechanism; options that others know better are left out."""
    spec = mechanism.spec
    for name, default in spec.defaults.items():
        if name in covered:
            continue
        x = arguments.get(name, default)
        if name in arguments and not (x is default or (not isinstance(x, np.ndarray) and x == default)):
            yield Alternative(f"{name} is ignored", name, given(lambda a, n=name, d=default: {n: d}))
        for other in _others(spec.facts.options.get(name), x):
            yield Alternative(f"{name} is {other!r}", name, given(lambda a, n=name, o=other: {n: o}))
        if isinstance(x, tuple) and len(x) > 1 and x != x[::-1]:
            yield Alternative(f"the entries of {name} are in reverse order", name, given(lambda a, n=name, o=x[::-1]: {n: o}))
    arrays = {n: x for n, x in arguments.items() if isinstance(x, np.ndarray) and isinstance(spec.facts.arguments.get(n), Leaf)}
    pairs = (
        p
        for p in itertools.combinations(arrays, 2)
        if arrays[p[0]].shape == arrays[p[1]].shape and arrays[p[0]].dtype == arrays[p[1]].dtype
    )
    for one, two in itertools.islice(pairs, MOST_PAIRS):
        yield Alternative(f"{one} and {two} are in each other's place", f"{one}, {two}", _exchanged(one, two))
    for name, x in arrays.items():
        if x.ndim > 1 and x.shape[-1] == x.shape[-2] > 1:
            yield Alternative(f"the last two axes of {name} are swapped", f"{name} axes", into(lambda a, n=name: {n: swapped(-1, -2)}))
        elif x.ndim > 1 and min(x.shape[-2:]) > 1 and x.dtype.kind == "f" and name.startswith(("w_", "weight")):
            yield Alternative(
                f"memory of {name} is read with its last two axes swapped", f"{name} axes", into(lambda a, n=name: {n: _memory(a[n].shape)})
            )
    for name, fact in spec.facts.outputs.items():
        if isinstance(fact, Leaf) and len(fact.dims) > 1:
            yield Alternative(f"the last two axes of {name} are swapped", f"{name} axes", out_of(lambda a, n=name: {n: swapped(-1, -2)}))


def _others(option: Any, x: Any) -> list[Any]:
    """The other values that an option may have, where they can be counted."""
    if option is None:
        return []
    if isinstance(x, bool):
        return [not x]
    return [c for found in CHOICES.findall(option.text) for c in sorted(ast.literal_eval(found)) if c != x]


def _exchanged(one: str, two: str) -> Any:
    def changed(call: Call) -> Call:
        def other(a: Arguments) -> tuple[Named, Any]:
            if not isinstance(a.get(one), np.ndarray) or not isinstance(a.get(two), np.ndarray):
                raise DoesNotApply
            y, pullback = call({**a, one: a[two], two: a[one]})
            names = {one: two, two: one}
            return y, lambda ds: {names.get(n, n): g for n, g in pullback(ds).items()}

        return other

    return changed


def _memory(shape: tuple[int, ...]) -> Map:
    other = (*shape[:-2], shape[-1], shape[-2])
    return Map(lambda x: x.reshape(other).swapaxes(-1, -2), lambda d: d.swapaxes(-1, -2).reshape(shape))
