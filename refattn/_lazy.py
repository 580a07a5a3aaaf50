"""Exports that are imported on first use, so that importing hundreds of modules costs nothing.

The names and their types stand once, in the ``__init__.pyi`` beside the package's ``__init__.py``.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy_exports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package, read from its stub."""
    module = sys.modules[package]
    origin: dict[str, tuple[str, str]] = {}
    for node in ast.parse((Path(str(module.__file__)).parent / "__init__.pyi").read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(package):
            origin |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name not in origin:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        source, attribute = origin[name]
        if source == package:  # a module of the package itself
            found = importlib.import_module(f"{package}.{attribute}")
        else:
            found = getattr(importlib.import_module(source), attribute)
        setattr(module, name, found)
        return found

    def __dir__() -> list[str]:  # noqa: N807
        return sorted({*vars(module), *origin})

    return __getattr__, __dir__, sorted(origin)
