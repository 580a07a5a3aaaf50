"""Read the facts that a docstring states: shapes, options, equation, references. What it cannot read, it refuses."""

from __future__ import annotations

import contextlib
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from refattn._core import dims
from refattn._core.glossary import GLOSSARY
from refattn._core.options import Option, is_scalar, parse_option

SECTION = re.compile(r"^(\w[\w ]*)\n-{3,}\n", re.MULTILINE)
ENTRY = re.compile(r"^(?:(\w+) : )?(\S.*)$", re.MULTILINE)
ARRAY = re.compile(
    r"(?P<kind>int |bool |constant |float or |int or real )?array(?P<absent> or None)?, (?P<exact>shape|broadcastable to) \((?P<dims>.*?)\)"
    r"(?:, indexing (?P<indexing>\w+)(?P<lowest> or -1)?)?"
)
EQUATION = re.compile(r"\.\. math::\n\n((?:[ ]+.*\n?|\n(?= ))+)")
SIZES = re.compile(r"^Sizes: (.*?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)
RELATION = re.compile(r"``([^`]+?) (=|>=|:=) ([^`]+)``")
REFERENCE = re.compile(r"^\.\. \[(\d+)\] (.+?)$(?=\n\.\.|\n\n|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Leaf:
    """What the docstring states of one array, for example ``int array, shape (batch + 1)``."""

    kind: str  # "" (real, differentiated), "constant" (real, not differentiated), "float or", "int or real", "int" or "bool"
    dims: tuple[str, ...]
    exact: bool = True
    absent: bool = False
    indexing: str = ""
    lowest: int = 0

    def __str__(self) -> str:
        kind = "" if self.kind in {"float or", "int or real"} else self.kind
        return f"{kind}{' ' * bool(kind)}{'' if self.exact else 'broadcastable to '}({', '.join(self.dims)})"

    @property
    def is_real(self) -> bool:
        return self.kind not in {"int", "bool"}

    def has_gradient(self, x: Any) -> bool:
        return self.kind in {"", "int or real"} or (self.kind == "float or" and not is_scalar(x))


Fact: TypeAlias = "Leaf | type | tuple[Fact]"
"""A leaf, a record, or (fact,) for a tuple of any length."""


@dataclass(frozen=True)
class Facts:
    """The facts of one docstring."""

    summary: str
    arguments: Mapping[str, Fact]
    options: Mapping[str, Option]
    outputs: Mapping[str, Fact]
    relations: tuple[tuple[str, str, str], ...] = ()
    equation: str = ""
    references: tuple[str, ...] = field(default=())

    def leaves(self, given: Mapping[str, Any]) -> list[tuple[str, Leaf, Any]]:
        """Path, fact and array of all that is an array in a call; absent ones are left out."""
        return [t for name, fact in self.arguments.items() for t in walk(name, fact, given.get(name))]

    def differentiable(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays of a call that have gradients, by dotted path."""
        return {path: x for path, leaf, x in self.leaves(given) if leaf.has_gradient(x)}


def walk(path: str, fact: Fact, x: Any) -> Iterator[tuple[str, Leaf, Any]]:
    """The leaves of one argument, with what the docstring states of each."""
    if x is None:
        return
    if isinstance(fact, Leaf):
        yield path, fact, x
    elif isinstance(fact, tuple):
        for i, part in enumerate(x):
            yield from walk(f"{path}.{i}", fact[0], part)
    else:
        for name, part in record_facts(fact).items():
            yield from walk(f"{path}.{name}", part, getattr(x, name))


def parse_docstring(name: str, doc: str, parameters: Mapping[str, Any], returns: tuple[str, ...]) -> Facts:
    """Read a docstring; `parameters` are the names and type hints that it must document, `returns` the output names."""
    doc = inspect.cleandoc(doc)
    sections = _sections(doc)
    arguments, options = _entries(name, sections.get("Parameters", ""), parameters)
    outputs, _ = _entries(name, sections.get("Returns", ""), {})
    documented = [n for n, _ in _named(sections.get("Parameters", ""))]
    if documented != list(parameters):
        raise ValueError(f"{name}: the docstring states {documented}, the parameters are {list(parameters)}")
    if tuple(outputs) != returns:
        raise ValueError(f"{name}: the docstring returns {tuple(outputs)}, the function {returns}")
    relations = tuple(r for m in SIZES.finditer(doc) for r in _relations(name, " ".join(m[1].split())))
    facts = Facts(
        summary=doc.split("\n", 1)[0],
        arguments=arguments,
        options=options,
        outputs=outputs,
        relations=relations,
        equation="\n".join(" ".join(m[1].split()) for m in EQUATION.finditer(doc)),
        references=tuple(" ".join(m[2].split()) for m in REFERENCE.finditer(doc)),
    )
    _refuse_unknown_words(name, facts)
    return facts


def _relations(name: str, text: str) -> list[tuple[str, str, str]]:
    """The relations of one paragraph of sizes; what is between them is prose."""
    found = RELATION.findall(text)
    if not found or "`" in RELATION.sub("", text) or any(sign != ">=" and not left.isidentifier() for left, sign, _ in found):
        raise ValueError(f"{name}: cannot read the sizes {text!r}")
    return found


def with_parameters_of(doc: str, other: str) -> str:
    """The docstring with the other's Parameters section, where it has none."""
    ours = inspect.cleandoc(doc)
    if "Parameters" in _sections(ours):
        return ours
    parameters = _sections(inspect.cleandoc(other))["Parameters"].rstrip()
    return ours.replace("\nReturns\n", f"\nParameters\n----------\n{parameters}\n\nReturns\n", 1)


def with_more_parameters(doc: str, other: str) -> str:
    """The docstring with the other's parameters after its own."""
    ours, more = inspect.cleandoc(doc), _sections(inspect.cleandoc(other))["Parameters"].rstrip()
    return ours.replace("\n\nReturns\n", f"\n{more}\n\nReturns\n", 1)


def options_in(doc: str) -> dict[str, Option]:
    """The parameters of a docstring that it states as options; the others are for people to read."""
    options = {}
    for name, text in _named(_sections(inspect.cleandoc(doc)).get("Parameters", "")):
        with contextlib.suppress(ValueError):
            options[name] = parse_option(name, text.removesuffix(", optional"))
    return options


_RECORDS: dict[type, dict[str, Fact]] = {}


def record_facts(record: type) -> dict[str, Fact]:
    """The facts of a record's fields, from the Attributes section of its docstring."""
    if record not in _RECORDS:
        hints = typing.get_type_hints(record)
        section = _sections(inspect.cleandoc(record.__doc__ or "")).get("Attributes", "")
        facts, _ = _entries(record.__name__, section, hints)
        if list(facts) != list(hints):
            raise ValueError(f"{record.__name__}: the docstring states {list(facts)}, the fields are {list(hints)}")
        _RECORDS[record] = facts
    return _RECORDS[record]


def _sections(doc: str) -> dict[str, str]:
    parts = SECTION.split(doc)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _named(section: str) -> Iterator[tuple[str, str]]:
    for m in ENTRY.finditer(section):
        yield m[1] or "output", m[2]


def _entries(where: str, section: str, hints: Mapping[str, Any]) -> tuple[dict[str, Fact], dict[str, Option]]:
    facts: dict[str, Fact] = {}
    options: dict[str, Option] = {}
    for name, text in _named(section):
        stated = text.removesuffix(", optional")
        record = _record(hints.get(name))
        if record is not None:
            facts[name] = record
        elif re.search(r"\barray\b", stated):
            facts[name] = _leaf(f"{where}, {name}", stated)
        else:
            options[name] = parse_option(f"{where}, {name}", stated)
    return facts, options


def _leaf(where: str, text: str) -> Leaf:
    m = ARRAY.fullmatch(text)
    if m is None:
        raise ValueError(f"{where}: cannot read {text!r}")
    parts = tuple(d.strip() for d in m["dims"].split(",")) if m["dims"] else ()
    try:
        for dim in parts:
            dims.names(dim)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return Leaf((m["kind"] or "").strip(), parts, m["exact"] == "shape", bool(m["absent"]), m["indexing"] or "", -1 if m["lowest"] else 0)


def _record(hint: Any) -> Fact | None:
    if isinstance(hint, type) and hasattr(hint, "_fields"):
        return hint
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        present = [a for a in typing.get_args(hint) if a is not type(None)]
        return _record(present[0]) if len(present) == 1 else None
    if typing.get_origin(hint) is tuple and len(args := typing.get_args(hint)) == 2 and args[1] is Ellipsis:
        inner = _record(args[0])
        return None if inner is None else (inner,)
    return None


def _all_leaves(fact: Fact) -> Iterator[Leaf]:
    if isinstance(fact, Leaf):
        yield fact
    else:
        for part in fact if isinstance(fact, tuple) else record_facts(fact).values():
            yield from _all_leaves(part)


def _refuse_unknown_words(name: str, facts: Facts) -> None:
    stated = [leaf for fact in (*facts.arguments.values(), *facts.outputs.values()) for leaf in _all_leaves(fact)]
    used = {w for leaf in stated for d in leaf.dims for w in (dims.names(d) or {d.lstrip("*.")})} | {leaf.indexing for leaf in stated}
    used |= {w for relation in facts.relations for part in relation[::2] for w in dims.names(part)}
    unknown = {w for w in used if w and not w.isdigit()} - GLOSSARY.keys() - facts.options.keys()
    if unknown:
        raise ValueError(f"{name}: {sorted(unknown)} are neither in the glossary nor options")
