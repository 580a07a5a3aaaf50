"""Dimensions as a docstring writes them: words, numbers, and arithmetic such as ``kv_heads * group``."""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Mapping

OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}


def is_group(dim: str) -> bool:
    """``...`` or ``*name``: any number of axes."""
    return dim == "..." or dim.startswith("*")


@functools.cache
def parsed(dim: str) -> ast.expr:
    """The expression of one dimension; ValueError where it is not one."""
    try:
        tree = ast.parse(dim, mode="eval").body
    except SyntaxError:
        raise ValueError(f"{dim!r} is not a dimension") from None
    for node in ast.walk(tree):
        whole = isinstance(node, ast.Constant) and type(node.value) is int
        if not whole and not isinstance(node, (ast.Name, ast.Load, ast.BinOp, *OPERATIONS)):
            raise ValueError(f"{dim!r} is not a dimension")
    return tree


@functools.cache
def names(dim: str) -> frozenset[str]:
    """The words in a dimension."""
    if is_group(dim):
        return frozenset()
    return frozenset(n.id for n in ast.walk(parsed(dim)) if isinstance(n, ast.Name))


def value(dim: str, sizes: Mapping[str, int]) -> int:
    """The size of a dimension all of whose words are known."""
    return _value(parsed(dim), sizes)


def solve(dim: str, size: int, sizes: Mapping[str, int]) -> tuple[str, int] | None:
    """The one unknown word and its size; None where no whole number does, or where it cannot be told."""
    return _solve(parsed(dim), size, sizes)


def _value(tree: ast.expr, sizes: Mapping[str, int]) -> int:
    match tree:
        case ast.Name(id=name):
            return sizes[name]
        case ast.Constant(value=int(number)):
            return number
        case ast.BinOp(left, op, right):
            return OPERATIONS[type(op)](_value(left, sizes), _value(right, sizes))
    raise AssertionError(ast.dump(tree))


def _solve(tree: ast.expr, size: int, sizes: Mapping[str, int]) -> tuple[str, int] | None:
    match tree:
        case ast.Name(id=name):
            return (name, size) if size >= 0 else None
        case ast.BinOp(left, op, right):
            unknown_left, unknown_right = (any(isinstance(n, ast.Name) and n.id not in sizes for n in ast.walk(t)) for t in (left, right))
            if unknown_left and unknown_right:
                return None
            part, other = (left, _value(right, sizes)) if unknown_left else (right, _value(left, sizes))
            match op:
                case ast.Add():
                    return _solve(part, size - other, sizes)
                case ast.Sub():
                    return _solve(part, size + other if unknown_left else other - size, sizes)
                case ast.Mult() if other and size % other == 0:
                    return _solve(part, size // other, sizes)
    return None
