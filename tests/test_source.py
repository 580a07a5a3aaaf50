"""Rules that hold for the text of the package."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import refattn
from refattn._core.glossary import GLOSSARY

ROOT = Path(refattn.__file__).parent
FILES = sorted(
    p
    for p in ROOT.rglob("*.py")
    if not {"_core", "testing", "view", "interop", "exact"} & set(p.relative_to(ROOT).parts) and p.name != "__main__.py"
)
BODIES = [pytest.param(p, id=str(p.relative_to(ROOT))) for p in FILES]

# What a body may call, so that one array subclass can carry a whole call to another arithmetic.
NUMPY = set(
    """
    abs add arange argmax argmin argsort asarray broadcast_to concatenate cos cumsum dtype einsum exp expm1 fft flip floating floor
    full_like inf isfinite isnan isneginf log log1p logical_and logical_or maximum minimum moveaxis nan ndarray ndim newaxis nonzero
    ones_like pad pi repeat reshape result_type round shape sign sin sqrt square stack sum swapaxes take_along_axis tanh tile tri unique
    where zeros zeros_like atleast_2d integer
    """.split()  # noqa: SIM905
)


def numpy_names(tree):
    """The dotted names below ``np`` that a file uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np":
            yield node.attr, node.lineno


@pytest.mark.parametrize("path", BODIES)
def test_bodies_use_a_closed_list_of_numpy(path):
    used = list(numpy_names(ast.parse(path.read_text())))
    assert not [(name, line) for name, line in used if name not in NUMPY]


@pytest.mark.parametrize("path", BODIES)
def test_scratch_arrays_take_their_precision_from_an_argument(path):
    bare = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"zeros", "ones", "empty", "full", "eye"}
        and not any(k.arg == "dtype" for k in node.keywords)
        and len(node.args) < 2
    ]
    assert not bare


FUNCTION = (ast.FunctionDef, ast.Lambda)


def bound_names(function):
    """Names and the lines on which a function itself binds them, inner functions left out."""
    arguments = function.args
    found = [(a.arg, function.lineno) for a in (*arguments.args, *arguments.kwonlyargs, *arguments.posonlyargs)]
    waiting = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        if isinstance(node, FUNCTION):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.append((node.id, node.lineno))
        waiting += ast.iter_child_nodes(node)
    return found


def late_bindings(tree):
    """Names that an inner function reads and that the outer one binds after it, or in a loop around it."""
    for outer in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]:
        bindings = bound_names(outer)
        loops = [n for n in ast.walk(outer) if isinstance(n, (ast.For, ast.While))]
        for inner in [n for n in ast.walk(outer) if isinstance(n, FUNCTION) and n is not outer]:
            own = {name for name, _ in bound_names(inner)}
            reads = {n.id for n in ast.walk(inner) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)} - own
            around = [loop for loop in loops if loop.lineno <= inner.lineno and inner.end_lineno <= loop.end_lineno]
            for name, line in bindings:
                if name in reads and (line > inner.end_lineno or any(loop.lineno <= line <= loop.end_lineno for loop in around)):
                    yield name, inner.lineno


@pytest.mark.parametrize("path", BODIES)
def test_captured_names_are_bound_once_and_before(path):
    assert not list(late_bindings(ast.parse(path.read_text())))


def test_late_bindings_are_found():
    after = "def f(x):\n    def g():\n        return x\n    x = 2\n    return g"
    loop = "def f(xs):\n    out = []\n    for x in xs:\n        out.append(lambda: x)\n    return out"
    fine = "def f(x):\n    y = x\n    return lambda d: d * y"
    assert [list(late_bindings(ast.parse(t))) != [] for t in (after, loop, fine)] == [True, True, False]


def test_import_needs_numpy_and_nothing_else():
    code = (
        "import sys; import numpy; before = set(sys.modules); import refattn; refattn.mechanisms(); "
        "print(*{m.partition('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"refattn", "numpy"}


def test_import_alone_is_light():
    code = "import numpy, sys; before = set(sys.modules); import refattn; print(sum(m.startswith('refattn') for m in set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10  # the rest comes on first use


def test_every_module_imports_on_its_own():
    for path in FILES:
        module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)


def test_glossary_is_sorted_and_used():
    assert list(GLOSSARY) == sorted(GLOSSARY)


@pytest.mark.parametrize("path", [pytest.param(p, id=p.name) for p in [*ROOT.parent.glob("*.md"), *ROOT.parent.glob("docs/*.md")]])
def test_texts_are_merged(path):
    """No marks of two versions of a text are left in it."""
    assert not [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(("<<<<<<<", ">>>>>>>"))]
