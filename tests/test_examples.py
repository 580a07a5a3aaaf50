"""Every example of every docstring, of the README and of the documents runs, and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import refattn
from tests.enumeration import EACH, MECHANISMS

ROOT = Path(__file__).parent.parent
NAMES = {m.__name__ for m in MECHANISMS}
MODULES = sorted(info.name for info in pkgutil.walk_packages(refattn.__path__, "refattn.") if not info.name.endswith("__main__"))


def wrong_examples(tests):
    """What the examples of these docstrings print in place of what they say."""
    said = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in tests:
        with np.printoptions(legacy=False):
            runner.run(test, out=said.append)
    return "".join(said)


@pytest.mark.parametrize("m", EACH)
def test_examples_of_mechanisms(m):
    tests = doctest.DocTestFinder(recurse=False).find(m.spec.rule, m.__name__, globs=vars(sys.modules[m.spec.module]).copy())
    assert any(t.examples for t in tests)
    assert wrong_examples(tests) == ""


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_modules(name):
    tests = doctest.DocTestFinder().find(importlib.import_module(name), name)
    assert wrong_examples([t for t in tests if t.name.rpartition(".")[2] not in NAMES]) == ""


def blocks(path, language):
    """The fenced blocks of one language in a document."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)


DOCUMENTS = [
    pytest.param(block, id=f"{path.stem}-{i}")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if path.exists()
    for i, block in enumerate(blocks(path, "pycon"))
]


@pytest.mark.parametrize("block", DOCUMENTS)
def test_examples_of_documents(block):
    test = doctest.DocTestParser().get_doctest(block, {}, "document", None, None)
    assert test.examples
    assert wrong_examples([test]) == ""
