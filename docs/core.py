"""Write docs/core.md: the core of the field, what gives each system, from which paper, compared with what, and how exact it is.

Run as ``python -m docs.core`` in a clone, with pytest installed: what is measured comes from tests/test_definitions.py.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import refattn
from refattn._core.docstring import REFERENCE
from refattn.testing.adapters import ADAPTERS
from refattn.view.core import CORE, System, given_by, missing

ROOT = Path(__file__).parent.parent
PAGE = Path(__file__).with_suffix(".md")
PEERS = {"torch": "PyTorch", "keras": "Keras", "onnx": "ONNX", "jax": "JAX"}
NOTHING = "-"

INTRODUCTION = """\
# The core of the field

The systems that introductions to attention name. `refattn list --tag core` prints this table's first columns, and whether
all of it is there; `refattn show NAME` prints the shapes and the equation of one.

- **Given by**: mechanisms, which have a value and gradients, and functions and commands around them. Links lead to the source.
- **Paper**: what the docstrings cite; with section or equation [below](#papers).
- **Compared with**: outside implementations, run on the same inputs: values, and gradients where they have them, in float64 where
  they can. Links lead to the tests; those in small letters are tests of this repository's own.
- **Worst error**: of the mechanisms' outputs, in float64, against an index-by-index transcription of the equations in plain
  Python ([`tests/definitions`](../tests/definitions)): the largest `|ours - definition| / (1 + |definition|)` over all samples. It
  was measured once, and differs a little from machine to machine; the tests hold it under 1e-12 everywhere.

`python -m docs.core` writes this page.
"""


class Papers:
    """What is cited: each paper once, with the places in it."""

    def __init__(self) -> None:
        self.labels: dict[str, str] = {}  # by title
        self.links: dict[str, str] = {}  # by label
        self.full: dict[str, str] = {}  # by label: title and venue
        self.places: dict[str, list[str]] = {}  # by label: sections and equations

    def label(self, reference: str) -> str:
        """Authors and year, in brackets where they link to the paper."""
        text, _, identifier = reference.partition(" arXiv:")
        found = re.match(r'(?P<authors>.*?), "(?P<title>.*?)",? ?(?P<venue>.*?\b(?P<year>(19|20)\d\d)\b)?(?P<place>.*)', text)
        if not found:
            raise ValueError(f"a reference that has not authors, title and year: {reference}")
        authors, title = found["authors"].split(", "), found["title"]
        label = self.labels.get(title)
        if label is None:
            who = f"{authors[0]} et al." if len(authors) > 2 else " and ".join(authors)
            label = f"{who} {found['year']}"
            label += next(letter for letter in ("", *"bcdefgh") if label + letter not in self.full)
            self.labels[title] = label
            self.full[label] = f"*{title}*, {found['venue']}"
            if identifier:
                self.links[label] = f"https://arxiv.org/abs/{identifier.rstrip('.')}"
        places = self.places.setdefault(label, [])
        places += [p for p in found["place"].strip(",:. ").split("; ") if p and p not in places]
        return self.shown(label)

    def shown(self, label: str) -> str:
        """The label as it stands in the page."""
        return f"[{label}]" if label in self.links else label

    def lines(self) -> Iterator[str]:
        """All papers, by author."""
        for label, full in sorted(self.full.items(), key=lambda item: item[0].lower()):
            places = "; ".join(self.places.get(label, ()))
            yield f"- {self.shown(label)}: {full}{f': {places}' if places else ''}"


def main() -> None:
    """Measure, and write the page."""
    from tests.test_definitions import worst_error  # noqa: PLC0415  # the tests read this module too

    named = {name for system in CORE for name in system.mechanisms}
    errors = {m.__name__: worst_error(m) for m in refattn.mechanisms() if m.__name__ in named}
    measured = [max((errors[n] for n in system.mechanisms if n in errors), default=None) for system in CORE]
    PAGE.write_text(page(NOTHING if e is None else f"{e:.0e}" if e else "0" for e in measured), "utf-8")


def page(errors: Iterable[str]) -> str:
    """The whole page, with these cells in its last column."""
    papers, links, witnesses = Papers(), dict[str, str](), witnessed()
    rows: list[tuple[str, ...]] = [("#", "system", "given by", "paper", "compared with", "worst error")]
    for number, (system, error) in enumerate(zip(CORE, errors, strict=True), 1):
        labels = dict.fromkeys(papers.label(r) for r in references(system))
        cells = (given(system, links), labels, compared(system, witnesses, links))
        rows.append((str(number), system.name, *(", ".join(c) or NOTHING for c in cells), error))
    targets = [f"[{label}]: {target}" for label, target in sorted({**links, **papers.links}.items())]
    return "\n".join([INTRODUCTION, *aligned(rows), "", "## Papers", "", *papers.lines(), "", *targets, ""])


def measured_cells(text: str) -> list[str]:
    """The last column of a page."""
    rows = [line for line in text.splitlines() if re.match(r"\| *\d", line)]
    return [row.strip("|").split("|")[-1].strip() for row in rows]


def aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """A Markdown table; numbers are on the right."""
    right = {0, len(rows[0]) - 1}
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for i, row in enumerate(rows):
        cells = (c.rjust(w) if n in right else c.ljust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True)))
        yield f"| {' | '.join(cells)} |"
        if i == 0:
            yield f"| {' | '.join('-' * (w - 1) + ':' if n in right else '-' * w for n, w in enumerate(widths))} |"


def given(system: System, links: dict[str, str]) -> Iterator[str]:
    """Links to what gives a system."""
    known, lacking = {m.__name__: m for m in refattn.mechanisms()}, missing(system)
    for name in given_by(system):
        if name in lacking:
            yield f"`{name}` (missing)"
        elif " " in name:  # a command
            yield f"`{name}`"
        else:
            found = known[name].spec.rule if name in known else pkgutil.resolve_name(name)
            links[f"`{name}`"] = path(found.__name__ if inspect.ismodule(found) else found.__module__)
            yield f"[`{name}`]"


def path(module: str) -> str:
    """The source of a module, seen from this folder."""
    within = Path(*module.split("."))
    is_package = hasattr(sys.modules[module], "__path__")
    return f"../{(within / '__init__.py' if is_package else within.with_suffix('.py')).as_posix()}"


def references(system: System) -> Iterator[str]:
    """What the docstrings of a system cite."""
    known = {m.__name__: m for m in refattn.mechanisms()}
    for name in system.mechanisms:
        if name in known:
            yield from known[name].spec.facts.references
    for name in system.functions:
        if f"refattn.{name}" not in missing(system):
            doc = inspect.getdoc(pkgutil.resolve_name(f"refattn.{name}")) or ""
            yield from (" ".join(m[2].split()) for m in REFERENCE.finditer(doc))


def compared(system: System, witnesses: Mapping[str, Mapping[str, str]], links: dict[str, str]) -> Iterator[str]:
    """Links to the comparisons of a system."""
    found = {title: target for name in system.mechanisms for title, target in witnesses.get(name, {}).items()}
    for pattern in system.tests:
        folder, _, name = pattern.rpartition("/")
        if "*" in name:
            found[title_of(Path(name)).partition(" ")[0]] = f"../{folder}"
        elif (ROOT / pattern).is_file():
            found.setdefault(title_of(Path(name)), f"../{pattern}")
    whole = {title.partition(" ")[0] for title in found if not title.endswith("adapter")}
    for title, target in found.items():
        if not (title.endswith("adapter") and title.partition(" ")[0] in whole):  # its own tests compare more
            links[title] = target
            yield f"[{title}]"


def title_of(file: Path) -> str:
    """From ``test_torch_scores.py`` to ``PyTorch scores``."""
    peer, _, rest = file.stem.removeprefix("test_").partition("_")
    return f"{PEERS[peer]} {rest}".replace("_", " ") if peer in PEERS else file.stem.removeprefix("test_").replace("_", " ")


def witnessed() -> dict[str, dict[str, str]]:
    """For each mechanism the outside comparisons that name it: their titles and files."""
    names = [m.__name__ for m in refattn.mechanisms()]
    found: dict[str, dict[str, str]] = {name: {} for name in names}

    def note(pattern: str, title: str, target: str) -> None:
        for name in names:
            if re.fullmatch(pattern, name):
                found[name][title] = target

    for peer, title in PEERS.items():
        for file in sorted((ROOT / "tests" / "external").glob(f"test_{peer}_*.py")):
            for pattern in mentioned(ast.parse(file.read_text("utf-8"))):
                note(pattern, title_of(file), f"../{file.relative_to(ROOT).as_posix()}")
        if peer in ADAPTERS:
            for pattern in looked_up(ast.parse(inspect.getsource(ADAPTERS[peer][1]))):
                note(pattern, f"{title} adapter", "../tests/external/test_adapters.py")
    return found


def mentioned(tree: ast.Module) -> Iterator[str]:
    """Patterns of the mechanisms that a test file calls: as attributes of the package, or by name where it looks them up so."""
    by_name = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "refattn":
            yield re.escape(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            by_name |= isinstance(node.args[0], ast.Name) and node.args[0].id == "refattn"
        elif isinstance(node, ast.ImportFrom):
            by_name |= node.module == "tests.external.composed"
    if by_name:
        yield from looked_up(tree)


def looked_up(tree: ast.Module) -> Iterator[str]:
    """Patterns of names in strings, also in those with a part to fill in, and of functions that are named as what they compare.

    The values of keywords, defaults and mappings are options, not names; nor is a string whose own part has no word, as that of
    ``f"{kind}_{part}"``, which every name would fit.
    """
    options: set[ast.AST | None] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword):
            options.add(node.value)
        elif isinstance(node, ast.arguments):
            options |= {*node.defaults, *node.kw_defaults}
        elif isinstance(node, ast.Dict):
            options |= {*node.values}
    for node in ast.walk(tree):
        if node in options:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.escape(node.value)
        elif isinstance(node, ast.JoinedStr):
            own = [str(v.value) if isinstance(v, ast.Constant) else None for v in node.values]
            if any(part and re.search("[a-z]{2}", part) for part in own):
                yield "".join("[a-z0-9]+" if part is None else re.escape(part) for part in own)
        elif isinstance(node, ast.FunctionDef):
            yield re.escape(node.name)


if __name__ == "__main__":
    main()
