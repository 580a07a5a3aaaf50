"""Give every dimension of a call one size, or say where two arguments disagree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from refattn._core import dims
from refattn._core.docstring import Leaf

Found = tuple[str, Leaf, Any]


class ShapeError(ValueError):
    """An argument does not have the shape that the docstring states."""


class Unifier:
    """One pass over the arrays of a call."""

    def __init__(self, name: str, found: list[Found], options: Mapping[str, Any], relations: tuple[tuple[str, str, str], ...] = ()) -> None:
        self.name, self.found, self.relations = name, found, relations
        self.sizes: dict[str, Any] = dict(options)
        self.first = dict.fromkeys(options, "the options")

    def run(self) -> dict[str, Any]:
        """The size of each word, and the sizes of each group; raises `ShapeError`."""
        later = []
        waiting = [t for t in self.found if t[1].exact]
        for hurried in (False, True):  # an array with two unknown groups waits until another tells one of them
            for arg, leaf, x in waiting:
                if hurried or len(self._new_groups(leaf)) <= 1:
                    later += self._pair(arg, leaf, x.shape)
            waiting = [t for t in waiting if self._new_groups(t[1])]
        while later:
            ready = [t for t in later if len(dims.names(t[1]) - self.sizes.keys()) <= 1]
            if not ready:
                break
            for arg, dim, n in ready:
                self._expression(arg, dim, n)
            later = [t for t in later if t not in ready]
        for left, sign, right in self.relations:
            self._relation(left, sign, right)
        self._together()
        for arg, leaf, x in self.found:
            if not leaf.exact:
                self._broadcastable(arg, leaf, x.shape)
            if leaf.indexing:
                self._indices(arg, leaf, x)
        return self.sizes

    def _new_groups(self, leaf: Leaf) -> list[str]:
        """Groups that may have any number of axes; an integer option of the same name says how many a group has."""
        return [d for d in leaf.dims if dims.is_group(d) and d not in self.sizes and d.lstrip("*") not in self.sizes]

    def _axes(self, dim: str) -> int:
        """How many axes a dimension stands for, where that is known."""
        return 1 if not dims.is_group(dim) else len(self.sizes[dim]) if dim in self.sizes else self.sizes[dim.lstrip("*")]

    def _pair(self, arg: str, leaf: Leaf, shape: tuple[int, ...]) -> list[tuple[str, str, int]]:
        """Sizes of plain words and groups; what is arithmetic is returned for later."""
        free = self._new_groups(leaf)
        if len(free) > 1:
            raise ValueError(f"{self.name}: {arg} has more than one group of unknown length: {leaf}")
        lengths = [0 if d in free else self._axes(d) for d in leaf.dims]
        spare = len(shape) - sum(lengths)
        if spare < 0 or (spare and not free):
            self._fail(f"{arg} has {len(shape)} axes, but needs {'at least ' * bool(free)}{sum(lengths)}", {arg})
        later, at = [], 0
        for dim, length in zip(leaf.dims, lengths, strict=True):
            n = spare if dim in free else length
            if dims.is_group(dim):
                self._same(dim, shape[at : at + n], arg)
            elif dim.isidentifier():
                self._same(dim, shape[at], arg)
            else:
                later.append((arg, dim, shape[at]))
            at += n
        return later

    def _same(self, dim: str, n: Any, arg: str) -> None:
        if self.sizes.setdefault(dim, n) != n:
            known = f"{self.sizes[dim]} in {self.first[dim]}"
            what = "the leading shape" if dim == "..." else dim.lstrip("*")
            self._fail(f"{what} is {n} in {arg}, but {known}", {arg, self.first[dim]}, dim)
        self.first.setdefault(dim, arg)

    def _expression(self, arg: str, dim: str, n: int) -> None:
        if dims.names(dim) <= self.sizes.keys():
            if (want := dims.value(dim, self.sizes)) != n:
                self._fail(f"{dim} is {n} in {arg}, but should be {want}", {arg}, dim)
            return
        solved = dims.solve(dim, n, self.sizes)
        if solved is None:
            known = ", ".join(f"{k} = {self.sizes[k]}" for k in sorted(dims.names(dim) & self.sizes.keys()))
            self._fail(f"{dim} is {n} in {arg}, which no whole number solves with {known}", {arg}, dim)
        self._same(*solved, arg)

    def _relation(self, left: str, sign: str, right: str) -> None:
        if not dims.names(right) <= self.sizes.keys():
            return
        want = dims.value(right, self.sizes)
        if sign == "=" or (sign == ":=" and left not in self.sizes):  # ":=" is the size of what no argument tells
            self._same(left, want, "the options")
        elif sign == ">=" and dims.names(left) <= self.sizes.keys() and (n := dims.value(left, self.sizes)) < want:
            self._fail(f"{left} is {n}, but must be at least {right}", set(), left)

    def _together(self) -> None:
        """Arrays that broadcast to each other tell the leading shape that none of them has by itself."""
        shapes = {arg: x.shape for arg, leaf, x in self.found if leaf.dims == ("...",) and not leaf.exact}
        if shapes and "..." not in self.sizes:
            try:
                self.sizes["..."] = np.broadcast_shapes(*shapes.values())
            except ValueError:
                self._fail(f"{' and '.join(shapes)} do not broadcast to each other", set(shapes))

    def _broadcastable(self, arg: str, leaf: Leaf, shape: tuple[int, ...]) -> None:
        full: tuple[int, ...] = ()
        for d in leaf.dims:
            full += self.sizes.get(d, ()) if dims.is_group(d) else (dims.value(d, self.sizes),)
        if len(shape) > len(full) or any(n not in {1, m} for n, m in zip(shape[::-1], full[::-1], strict=False)):
            self._fail(f"{arg} {shape} does not broadcast to {full}", {arg}, *leaf.dims)

    def _indices(self, arg: str, leaf: Leaf, x: Any) -> None:
        low, high = (int(np.min(x)), int(np.max(x))) if x.size else (0, -1)
        if low < leaf.lowest or high >= self.sizes[leaf.indexing]:
            self._fail(f"{arg} runs from {low} to {high}, but indexes {leaf.indexing} = {self.sizes[leaf.indexing]}", {arg}, leaf.indexing)

    def _fail(self, what: str, arguments: set[str], *about: str) -> NoReturn:
        words = {w for dim in about for w in dims.names(dim)} | set(about)
        rows = [t for t in self.found if t[0] in arguments or words & {w for d in t[1].dims for w in (dims.names(d) or {d})}]
        wide, stated = (max((len(str(t[i])) for t in rows), default=0) for i in (0, 1))
        table = "".join(f"\n  {arg:<{wide}}  {leaf!s:<{stated}}  = {x.shape}" for arg, leaf, x in rows)
        raise ShapeError(f"{self.name}: {what}{table}")
