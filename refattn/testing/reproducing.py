"""The line that repeats one failing case alone."""

from __future__ import annotations

import dataclasses
import difflib
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from refattn._core import Mechanism
from refattn.testing.battery import Case, Level, cases
from refattn.testing.candidates import Candidate
from refattn.testing.handling import runs
from refattn.testing.report import Result


def chosen(
    candidate: Candidate, mechanism: Mechanism[..., Any], level: Level, seed: int, case: str | None
) -> Iterator[tuple[Candidate, Case]]:
    """The cases of a level, or the one that is asked for, and who computes it; ValueError where there is none of this name."""
    every = runs(candidate, mechanism, cases(mechanism, level, seed), far=level != "quick")
    if case is None:
        yield from every
        return
    known = {c.name: (run, c) for run, c in every}
    if case not in known:
        near = difflib.get_close_matches(case, known, n=3, cutoff=0.3)
        raise ValueError(f"case is {case!r}, but {mechanism.spec.name} has no such case at level {level!r}; close to it: {near}")
    yield known[case]


def with_lines(results: Iterable[Result], line: Callable[[str, str], str]) -> Iterator[Result]:
    """The results, with the line of its case and dtype in each that is wrong."""
    for r in results:
        yield dataclasses.replace(r, reproduce=line(r.case, r.dtype)) if r.status == "fail" else r


def command_line(what: Iterable[str], options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Callable[[str, str], str]:
    """From a case and a dtype to the command ``refattn check`` for them; options that have their default are left out."""
    given = [(n, x) for n, x in options.items() if x != defaults[n]]
    rest = [f"--{n}={one}" for n, x in given for one in (x if isinstance(x, list) else [x])]
    return lambda case, dtype: shlex.join(["refattn", "check", *what, "--case", case, "--dtype", dtype, *rest])


def python_line(candidate: Any, mechanism: Mechanism[..., Any], options: Mapping[str, Any]) -> Callable[[str, str], str]:
    """From a case and a dtype to a call of Python for them; what to add to the call at hand, where a new process has no such function."""
    named = {n: x for n, x in options.items() if x is not None}
    functions = [candidate, *(x for x in named.values() if callable(x))]
    paths = [_importable(f) for f in functions]
    if any(p is None for p in paths):
        return lambda case, dtype: f"the same call of refattn.testing.check, with case={case!r}"
    shown = {id(f): name for f, (_, name, _) in zip(functions, filter(None, paths), strict=True)}
    imports = sorted({f"import {module}" for module, _, _ in filter(None, paths)} | {"import refattn"})
    roots = dict.fromkeys(str(root) for _, _, root in filter(None, paths) if root is not None)
    rest = "".join(f", {n}={shown.get(id(x)) or _literal(x)}" for n, x in named.items())

    def line(case: str, dtype: str) -> str:
        call = f"refattn.testing.check({shown[id(candidate)]}, refattn.{mechanism.spec.name}{rest}, dtype={_literal(dtype)}, case={_literal(case)})"
        prefix = f"PYTHONPATH={shlex.quote(':'.join(roots))}${{PYTHONPATH:+:$PYTHONPATH}} " if roots else ""
        program = "; ".join([*imports, f"{call}.raise_if_wrong()"])
        return f"{prefix}python -c {shlex.quote(program)}"

    return line


def _literal(x: Any) -> str:
    """A Python literal in double quotes, so that a shell's single quotes can stand around it."""
    return json.dumps(sorted(x) if isinstance(x, (set, frozenset, tuple)) else dict(x) if isinstance(x, Mapping) else x, ensure_ascii=False)


def _importable(function: Any) -> tuple[str, str, Path | None] | None:
    """Module, full name, and the folder that Python must look in for it; None where another process cannot import it."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not module or not name or module == "__main__" or "<" in name:
        return None
    found: Any = sys.modules.get(module)
    for step in name.split("."):
        found = getattr(found, step, None)
    if found is not function and getattr(found, "__wrapped__", None) is not getattr(function, "__wrapped__", function):
        return None
    file = getattr(sys.modules[module], "__file__", None)
    if file is None:
        return module, f"{module}.{name}", None
    root = Path(file).resolve().parents[module.count(".") + (Path(file).name == "__init__.py")]
    installed = "site-packages" in root.parts or root == Path.cwd()
    return module, f"{module}.{name}", None if installed else root
