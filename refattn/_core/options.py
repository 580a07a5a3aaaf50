"""Options as a docstring writes them: ``{"zero", "nan"}``, ``positive int or (int, int) or None``, ``probability``.

Alternatives are joined by ``or``. What a docstring states is what a call accepts; nothing is checked a second time.
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Accepts = Callable[[Any], bool]


@dataclass(frozen=True)
class Option:
    """What the docstring states of one argument that is not an array."""

    text: str
    accepts: Accepts

    def check(self, name: str, x: Any) -> None:
        """Raise a TypeError for a value of another type, a ValueError for one of this type that is not allowed."""
        if self.accepts(x):
            return
        shown = repr(x) if isinstance(x, (str, int, float, tuple, type(None))) else f"a {type(x).__name__}"
        expected = (str if "{" in self.text else (), (int, float) if NUMERIC.search(self.text) else (), tuple if "(" in self.text else ())
        kind = ValueError if isinstance(x, tuple(_flat(expected))) and not isinstance(x, bool) else TypeError
        raise kind(f"{name} is {shown}, but must be {self.text}")


NUMERIC = re.compile(r"\b(int|float|probability)\b")


def _flat(kinds: tuple[Any, ...]) -> list[type]:
    return [t for kind in kinds for t in (kind if isinstance(kind, tuple) else (kind,))]


def _is_int(x: Any) -> bool:
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool) and abs(int(x)) < 2**63


def _is_float(x: Any) -> bool:
    return (_is_int(x) or isinstance(x, (float, np.floating))) and not math.isnan(x)


ATOMS: dict[str, Accepts] = {
    "None": lambda x: x is None,
    "bool": lambda x: isinstance(x, (bool, np.bool_)),
    "int": _is_int,
    "positive int": lambda x: _is_int(x) and x > 0,
    "non-negative int": lambda x: _is_int(x) and x >= 0,
    "float": _is_float,
    "positive float": lambda x: _is_float(x) and 0 < x < math.inf,
    "non-negative float": lambda x: _is_float(x) and 0 <= x < math.inf,
    "probability": lambda x: _is_float(x) and 0 <= x < 1,
}


def is_scalar(x: Any) -> bool:
    """A Python number or a NumPy scalar: not an array, so without a gradient."""
    return isinstance(x, (int, float, np.number)) and not isinstance(x, bool)


def parse_option(where: str, text: str) -> Option:
    """Read one statement of an option; ValueError where it does not parse."""
    alternatives = [_alternative(where, part) for part in _split(text, " or ")]
    return Option(text, lambda x: any(accepts(x) for accepts in alternatives))


def _alternative(where: str, text: str) -> Accepts:
    if text in ATOMS:
        return ATOMS[text]
    if text.startswith("{"):
        choices = _choices(where, text)
        return lambda x: isinstance(x, str) and x in choices
    if text.startswith("tuple of "):
        item = _alternative(where, text.removeprefix("tuple of "))
        return lambda x: isinstance(x, (tuple, list)) and all(map(item, x))
    if text.startswith("("):
        items = [parse_option(where, part).accepts for part in _split(text[1:-1], ", ")]
        return lambda x: isinstance(x, (tuple, list)) and len(x) == len(items) and all(item(v) for item, v in zip(items, x, strict=True))
    raise ValueError(f"{where}: cannot read {text!r}")


def _choices(where: str, text: str) -> set[str]:
    try:
        choices = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        choices = None
    if not isinstance(choices, set) or not all(isinstance(c, str) for c in choices):
        raise ValueError(f"{where}: cannot read {text!r}")
    return choices


@functools.cache
def _split(text: str, separator: str) -> list[str]:
    """Split at the separators that stand outside all brackets."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "({[") - (character in ")}]")
        if depth == 0 and text.startswith(separator, i):
            parts.append(text[start:i])
            start = i + len(separator)
    return [*parts, text[start:]]
