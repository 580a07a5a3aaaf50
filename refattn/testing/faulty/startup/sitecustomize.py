"""Replace one function when its module is imported, in this process and in all that it starts.

``refattn mutants`` puts the folder of this file first on PYTHONPATH, so that Python imports it before anything else. It imports
nothing of refattn before the module is, and lets any other sitecustomize run.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import json
import os
import sys
from typing import Any

VARIABLE = "REFATTN_MUTANT"
HERE = os.path.realpath(os.path.dirname(__file__))  # noqa: PTH120  # pathlib takes longer to import than all else here


class Finder(importlib.abc.MetaPathFinder):
    """Finds the module as Python would, and replaces the function when the module has run."""

    def __init__(self, planted: dict[str, Any]) -> None:
        self.planted, self.searching = planted, False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """None for all modules but one."""
        if name != self.planted["module"] or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_replace(module: Any) -> None:
                run(module)
                replace(module, self.planted)

            spec.loader.exec_module = run_and_replace
        return spec


def replace(module: Any, planted: dict[str, Any]) -> None:
    """Put the kernel in the function's place."""
    try:
        replacing = importlib.import_module("refattn.testing.faulty.replacing")
    except ModuleNotFoundError:  # another environment's Python: it needs NumPy, and finds refattn behind all of its own
        sys.path.append(planted["refattn"])
        replacing = importlib.import_module("refattn.testing.faulty.replacing")
    replacing.install(module, planted)


def run_next() -> None:
    """The sitecustomize that this one hides."""
    sys.path[:] = [p for p in sys.path if os.path.realpath(p) != HERE]
    own = sys.modules.pop("sitecustomize", None)
    try:
        importlib.import_module("sitecustomize")
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        if own is not None:
            sys.modules.setdefault("sitecustomize", own)


def start() -> None:
    """Wait for the module, if there is one to wait for."""
    if VARIABLE in os.environ:
        planted = json.loads(os.environ[VARIABLE])
        if planted["module"] in sys.modules:
            replace(sys.modules[planted["module"]], planted)
        else:
            sys.meta_path.insert(0, Finder(planted))
    run_next()


if __name__ == "sitecustomize":
    start()
