"""Validate the docstring of every public name with numpydoc; the checks are those of pyproject.toml."""

from __future__ import annotations

import importlib
import inspect
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from numpydoc.validate import ERROR_MSGS, validate

import refattn

EXAMPLES = ("digits", "series", "training")
MODULES = ("refattn", "refattn.masks", "refattn.testing", "refattn.view", *(f"refattn.examples.{name}" for name in EXAMPLES))


def public_names() -> Iterator[str]:
    """Every function and class that a user can reach without an underscore, once."""
    found = {f"{m.spec.module}.{m.__name__}" for m in refattn.mechanisms()}
    for module in map(importlib.import_module, MODULES):
        for name in getattr(module, "__all__", vars(module)):
            thing = getattr(module, name)
            if (
                not name.startswith("_")
                and (inspect.isfunction(thing) or inspect.isclass(thing))
                and thing.__module__.startswith("refattn")
            ):
                found.add(f"{thing.__module__}.{thing.__qualname__}")
    yield from sorted(found)


def main() -> int:
    """Print one line for each error; the exit status is 1 where there is one."""
    stated = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["tool"]["numpydoc_validation"]["checks"]
    checks = set(ERROR_MSGS) - set(stated) if "all" in stated else set(stated)
    names = list(public_names())
    errors = [(name, code, text) for name in names for code, text in validate(name)["errors"] if code in checks]
    for name, code, text in errors:
        print(f"{name}: {code} {text}", file=sys.stderr)
    print(f"numpydoc: {len(names)} public names, {len(errors)} errors")
    return bool(errors)


if __name__ == "__main__":
    sys.exit(main())
