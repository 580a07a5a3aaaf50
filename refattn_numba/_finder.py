"""Lets `refattn_numba.cuda` be imported beside numba-cuda; who imports this has it so.

Its redirector takes every module whose name contains "numba.cuda" for one of Numba's, and never comes back from looking for ours.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

OURS = f"{__package__}.cuda"


class Finder:
    """Finds the modules of one package as Python does by itself."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Where a module is, if it is one of ours."""
        return PathFinder.find_spec(name, path, target) if name == OURS or name.startswith(f"{OURS}.") else None


def install() -> None:
    """Be asked before all others."""
    if Finder not in sys.meta_path:
        sys.meta_path.insert(0, Finder)


install()
