"""``refattn list`` and ``refattn show``: what there is, and everything that one docstring states."""

from __future__ import annotations

import difflib
import inspect
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import Any

import refattn
from refattn._core.docstring import Fact, Leaf, record_facts
from refattn._core.mechanism import Mechanism
from refattn.view.core import print_core
from refattn.view.table import Table


def add_list_arguments(parser: ArgumentParser) -> None:
    """The options of ``refattn list``."""
    parser.add_argument("--family", metavar="F", help="only those of this folder, for example dot_product")
    parser.add_argument(
        "--tag", metavar="T", help="only those with this tag; core: the systems that introductions name, and what gives each"
    )
    parser.add_argument("--json", action="store_true", help="print a list of objects")


def add_show_arguments(parser: ArgumentParser) -> None:
    """The options of ``refattn show``."""
    parser.add_argument("name", metavar="NAME", help="a name that `refattn list` prints")
    parser.add_argument("--json", action="store_true", help="print one object")


def find(name: str) -> Mechanism[..., Any]:
    """The mechanism of this name; a LookupError that suggests the closest where there is none."""
    known = {m.__name__: m for m in refattn.mechanisms()}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise LookupError(f"no mechanism is named {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return known[name]


def run_list(args: Namespace) -> int:
    """Print a line for each mechanism, or for each system of the core."""
    every = refattn.mechanisms()
    for option, known in (("family", {m.spec.family for m in every}), ("tag", {"core", *(t for m in every for t in m.spec.tags)})):
        asked = getattr(args, option)
        if asked is not None and asked not in known:
            raise LookupError(f"--{option} is {asked!r}, but must be one of {', '.join(sorted(known))}")
    if args.tag == "core":
        if args.family is not None:
            raise ValueError(f"--family is {args.family!r}, but --tag core lists systems of every family")
        print_core(args.json)
        return 0
    chosen = refattn.mechanisms(args.family, args.tag)
    if args.json:
        print(json.dumps([_listed(m) for m in chosen], indent=2))
        return 0
    table = Table("name", "family", "summary")
    for m in sorted(chosen, key=lambda m: (m.spec.family, m.__name__)):
        table.row(m.__name__, m.spec.family, m.spec.facts.summary)
    table.print(wrap=True)
    return 0


def run_show(args: Namespace) -> int:
    """Print what one docstring states."""
    m = find(args.name)
    shown = described(m)
    if args.json:
        print(json.dumps(shown, indent=2, ensure_ascii=False))
        return 0
    print(f"{_signature(m)}\n\n{shown['summary']}\n")
    table = Table("", "name", "kind", "shape or values", "default")
    for role in ("argument", "option", "output"):
        for row in shown[f"{role}s"]:
            table.row(role, row["name"], row.get("kind"), row.get("shape", row.get("values")), row.get("default"))
    table.print()
    print()
    for line in shown["equation"].split("\n"):
        print(f"  {line}")
    for i, reference in enumerate(shown["references"], 1):
        print(f"\n[{i}] {reference}")
    print(f"\n{shown['source']}:{shown['line']}")
    return 0


def _listed(m: Mechanism[..., Any]) -> dict[str, Any]:
    return {
        "name": m.__name__,
        "family": m.spec.family,
        "module": m.spec.module,
        "tags": sorted(m.spec.tags),
        "summary": m.spec.facts.summary,
    }


def described(m: Mechanism[..., Any]) -> dict[str, Any]:
    """Everything that `refattn show` prints of a mechanism, as plain data."""
    facts, defaults = m.spec.facts, {n: repr(x) for n, x in m.spec.defaults.items()}
    _, line = inspect.getsourcelines(m.spec.rule)
    return {
        **_listed(m),
        "signature": f"{m.__name__}{_unquoted(m)}",
        "arguments": [_with_default(row, defaults) for n, fact in facts.arguments.items() for row in _rows(n, fact)],
        "options": [_with_default({"name": n, "values": option.text}, defaults) for n, option in facts.options.items()],
        "outputs": [row for n, fact in facts.outputs.items() for row in _rows(n, fact)],
        "equation": facts.equation,
        "references": list(facts.references),
        "source": inspect.getsourcefile(m.spec.rule),
        "line": line,
    }


def _with_default(row: dict[str, Any], defaults: dict[str, str]) -> dict[str, Any]:
    return {**row, "default": defaults[row["name"]]} if row["name"] in defaults else row


def _rows(path: str, fact: Fact) -> Iterator[dict[str, Any]]:
    """One row for each array of an argument; a record has several."""
    if isinstance(fact, Leaf):
        kind = {"": "array", "float or": "float or array"}.get(fact.kind, f"{fact.kind} array")
        shape = f"{'' if fact.exact else 'broadcastable to '}({', '.join(fact.dims)})"
        yield {"name": path, "kind": f"{kind}{' or None' if fact.absent else ''}", "shape": shape}
    elif isinstance(fact, tuple):
        yield from _rows(f"{path}[i]", fact[0])
    else:
        for name, part in record_facts(fact).items():
            yield from _rows(f"{path}.{name}", part)


class _Bare:
    """A type hint that prints without quotes."""

    def __init__(self, text: Any) -> None:
        self.text = str(text)

    def __repr__(self) -> str:
        return self.text


def _unquoted(m: Mechanism[..., Any]) -> inspect.Signature:
    given = m.spec.signature
    parameters = [p.replace(annotation=_Bare(p.annotation)) for p in given.parameters.values()]
    return given.replace(parameters=parameters, return_annotation=_Bare(given.return_annotation))


def _signature(m: Mechanism[..., Any]) -> str:
    """The signature, one parameter a line where it is long."""
    signature = _unquoted(m)
    if len(whole := f"{m.__name__}{signature}") <= 100:
        return whole
    lines = [f"    {p}," for p in signature.parameters.values()]
    keyword_only = [p.kind is p.KEYWORD_ONLY for p in signature.parameters.values()]
    if True in keyword_only:
        lines.insert(keyword_only.index(True), "    *,")
    return "\n".join([f"{m.__name__}(", *lines, f") -> {signature.return_annotation}"])
