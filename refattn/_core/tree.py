"""Records of arrays: nested named tuples, tuples and mappings, walked leaf by leaf."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

T = TypeVar("T")


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of a dotted path and an array; absent (None) leaves are skipped."""
    if isinstance(tree, Mapping):
        parts = list(tree.items())
    elif isinstance(tree, tuple):
        parts = list(zip(getattr(tree, "_fields", range(len(tree))), tree, strict=True))
    elif tree is None:
        return
    else:
        yield path, tree
        return
    for name, part in parts:
        yield from leaves(part, f"{path}.{name}" if path else str(name))


def map_leaves(function: Callable[..., Any], tree: T, *others: T) -> T:
    """The same record with `function` applied to each leaf."""
    if isinstance(tree, Mapping):
        named = cast("tuple[Mapping[str, Any], ...]", others)
        return cast("T", {name: map_leaves(function, part, *(other[name] for other in named)) for name, part in tree.items()})
    if isinstance(tree, tuple):
        parts = [map_leaves(function, *group) for group in zip(tree, *cast("tuple[Any, ...]", others), strict=True)]
        return cast("T", type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts))
    return cast("T", None if tree is None else function(tree, *others))


def add(*trees: T) -> T:
    """Leaf-wise sum: the gradient of a record that is used in several places."""
    return functools.reduce(functools.partial(map_leaves, operator.add), trees)


def replace(tree: T, path: str, leaf: Any) -> T:
    """The same record with another leaf at a dotted path; the empty path is the whole."""
    step, _, rest = path.partition(".")
    if not step:
        return leaf
    if isinstance(tree, Mapping):
        return cast("T", {**tree, step: replace(tree[step], rest, leaf)})
    if hasattr(tree, "_fields"):
        return cast("Any", tree)._replace(**{step: replace(getattr(tree, step), rest, leaf)})
    parts = cast("tuple[Any, ...]", tree)
    return cast("T", tuple(replace(part, rest, leaf) if i == int(step) else part for i, part in enumerate(parts)))


def pick(record: type[T], grads: Mapping[str, Any]) -> T:
    """The entries of a gradient mapping that are fields of a record; an absent one is None."""
    return record(**{name: grads.get(name) for name in cast("Any", record)._fields})
