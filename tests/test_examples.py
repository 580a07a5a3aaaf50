"""Every example of every docstring, of the README and of the documents runs, and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil
import re
import sys
import types
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


def test_the_tests_of_the_readme_are_right(monkeypatch):
    """The kernel there is somebody's; here it is the reference, in his precision."""

    def backward(d_output, **arguments):
        return refattn.scaled_dot_product_attention.vjp(**arguments)[1](d_output)

    def forward(query, key, value, *, scale=None):
        return refattn.scaled_dot_product_attention(query, key, value, scale=scale)

    block, with_fixture = blocks(ROOT / "README.md", "python")
    package = types.ModuleType("my_package")
    package.flash_attention, package.flash_attention_backward = forward, backward
    monkeypatch.setitem(sys.modules, "my_package", package)
    found = {}
    exec(block, found)
    found["test_flash_attention"]()
    package.flash_attention = lambda query, key, value: 1.01 * forward(query, key, value)
    exec(block, found)
    with pytest.raises(refattn.testing.RefattnAssertionError, match="scaled_dot_product_attention"):
        found["test_flash_attention"]()
    exec(with_fixture, found)
    with pytest.raises(refattn.testing.RefattnAssertionError, match="scaled_dot_product_attention"):
        found["test_flash_attention"](lambda *given, **options: refattn.testing.check(*given, **options).raise_if_wrong())


def test_the_walk_through_is_right(monkeypatch):
    monkeypatch.setattr(sys.modules["refattn._core.mechanism"], "_REGISTRY", {})
    rule, definition = blocks(ROOT / "docs" / "design.md", "python")
    made = {"__name__": "refattn.primitives.scaled_tanh"}
    defined = {"np": np, "math": math}
    exec(rule, made)
    exec(definition, defined)
    m = made["scaled_tanh"]
    monkeypatch.setattr(refattn, "scaled_tanh", m, raising=False)
    for sample in refattn.testing.samples(m):
        given = refattn.testing.in_precision(m, sample.arguments, np.longdouble)
        y, pullback = m.vjp(**given)
        ds = refattn.testing.cotangents(y)
        assert all(e < 1e-7 for e in refattn.testing.directional_errors(m, given, ds, pullback(*ds)).values())
        np.testing.assert_allclose(m(**sample.arguments), defined["scaled_tanh"](**sample.arguments), rtol=1e-14)
    assert wrong_examples(doctest.DocTestFinder(recurse=False).find(m.spec.rule, "scaled_tanh", globs={})) == ""
