"""The plugin of pytest: what it checks, what it says, and that it is silent and light where nobody uses it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import refattn
from refattn import pytest_plugin, testing
from refattn.testing.pytest_cases import parameters
from refattn.testing.units import drawn

pytest_plugins = ["pytester"]

HERE = Path(__file__).parent
SOFTMAX = len(list(testing.cases(refattn.softmax)))
PACKAGE = Path(refattn.__file__).parent
INI = """
[pytest]
addopts = --strict-markers --strict-config -p no:cacheprovider
filterwarnings = error
"""
TESTS = """
import numpy as np
import pytest
import refattn

def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)

def gradients(d, x):
    return refattn.softmax.vjp(x)[1](d)

def test_right(refattn_check):
    report = refattn_check(softmax, refattn.softmax, gradients=gradients, dtype="float64")
    assert report.counts["pass"] > 2 * len(list(refattn.testing.cases(refattn.softmax)))

def test_wrong(refattn_check):
    refattn_check(lambda x: softmax(x) * 1.01, refattn.softmax)

@refattn.testing.parametrize_cases(refattn.softmax, dtype=["float32", "float64"])
def test_cases(refattn_case):
    x = refattn_case.arguments["x"]
    assert x.dtype == refattn_case.dtype
    refattn_case.assert_matches(softmax(x), gradients=gradients(*refattn_case.cotangents, x))

@refattn.testing.parametrize_cases(refattn.softmax)
def test_wrong_gradient(refattn_case):
    x = refattn_case.arguments["x"]
    refattn_case.assert_matches(softmax(x), gradients={"x": 0.99 * gradients(*refattn_case.cotangents, x)["x"] + 1e-3})

@refattn.testing.parametrize_cases(refattn.softmax)
def test_in_place(refattn_case):
    x = refattn_case.arguments["x"]
    y = softmax(x)
    x[...] = y
    refattn_case.assert_matches(y)

@refattn.testing.parametrize_cases(refattn.linear, supports=[])
@refattn.testing.parametrize_cases(refattn.relu)
def test_both(refattn_case):
    refattn_case.assert_matches(refattn_case.mechanism(**refattn_case.arguments))

def test_bare(refattn_case):
    pass
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run pytest in a process of its own, with this plugin and no others that are installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]))
    pytester.makeini(INI)

    def run(*arguments, plugins=("refattn.pytest_plugin",)):
        return pytester.runpytest_subprocess(*(x for name in plugins for x in ("-p", name)), *arguments)

    return run


def section(lines):
    """The lines of the plugin's summary."""
    start = next(i for i, line in enumerate(lines) if re.fullmatch("=+ refattn =+", line))
    end = next(i for i, line in enumerate(lines[start + 1 :], start + 1) if line.startswith("="))
    return lines[start + 1 : end]


def test_results_reach_the_terminal_and_the_file_from_one_process_and_from_two(run, pytester):
    pytester.makepyfile(TESTS)
    wrong = testing.check(lambda x: refattn.softmax(x) * 1.01, refattn.softmax).counts
    right = testing.check(refattn.softmax, refattn.softmax, dtype="float64").counts
    alone = run("--refattn-report=out/alone.json")
    shared = run("--refattn-report=out/shared.json", "-n2", plugins=("refattn.pytest_plugin", "xdist.plugin"))
    for result in (alone, shared):
        counts = result.parseoutcomes()
        assert {n: counts[n] for n in ("failed", "errors")} == {"failed": 1 + 2 * SOFTMAX, "errors": 1}
        assert counts["skipped"] == sum("bias" in c.arguments for c in testing.cases(refattn.linear))
    assert section(alone.outlines)[:-1] == section(shared.outlines)[:-1]
    table = section(alone.outlines)
    assert re.split("  +", table[0]) == ["mechanism", "dtype", "right", "wrong", "skipped", "worst error/budget", "where"]
    assert len({line.index(word) for line, word in zip(table[:2], ("dtype", "float32"), strict=True)}) == 1
    assert [re.split("  +", line)[:5] for line in table if line.startswith("softmax")] == [
        ["softmax", "float32", *(str(n) for n in (3 * SOFTMAX + wrong["pass"], 2 * SOFTMAX + wrong["fail"], wrong["skipped"]))],
        ["softmax", "float64", str(2 * SOFTMAX + right["pass"]), "0", "0"],
    ]
    alone_json, shared_json = ((pytester.path / "out" / name).read_text() for name in ("alone.json", "shared.json"))
    assert alone_json == shared_json
    results = json.loads(alone_json)
    assert [r["test"] for r in results] == sorted(r["test"] for r in results)
    assert table[-1] == f"refattn: {len(results)} results are in {pytester.path / 'out' / 'alone.json'}"
    failed = {r["test"].partition("::")[2]: r for r in results if r["status"] == "fail" and r["case"] == "plain"}
    assert {name.partition("[")[0]: r["what"] for name, r in failed.items()} == {
        "test_wrong": "output",
        "test_wrong_gradient": "d_x",
        "test_in_place": "all",
    }
    assert {r["reason"] for r in results if r["mechanism"] == "linear" and r["status"] == "skipped"} == {"bias: not supported"}

    out = alone.stdout.str()
    assert "test_wrong_gradient[softmax-float32-far_from_zero]" in out
    assert f"E       refattn.testing.report.RefattnAssertionError: {wrong['fail']} of {sum(wrong.values())} comparisons are wrong" in out
    assert re.search(r"E +softmax, plain, float32: output differs at 30 of 30 elements: .* times its budget", out)
    assert "changed in place: x" in out
    assert "refattn_case needs @refattn.testing.parametrize_cases(mechanism) above the test" in out
    assert ">       refattn_check(lambda x: softmax(x) * 1.01, refattn.softmax)" in out
    assert "pytest_cases.py" not in out  # tracebacks end in the test
    assert "Warning" not in out


def test_collecting_alone_overwrites_no_report(run, pytester):
    pytester.makepyfile("def test_it(refattn_check):\n    pass\n")
    (pytester.path / "r.json").write_text("earlier")
    assert "results are in" not in run("--collect-only", "--refattn-report=r.json").stdout.str()
    assert (pytester.path / "r.json").read_text() == "earlier"


def test_a_worker_that_crashes_takes_no_results_with_it(run, pytester):
    pytester.makepyfile("""
        import os, refattn

        def test_first(refattn_check):
            refattn_check(refattn.softmax, refattn.softmax)

        def test_second():
            os._exit(1)

        def test_third(refattn_check):
            refattn_check(refattn.relu, refattn.relu)
    """)
    options = ("-n1", "--refattn-report=r.json")
    run(*options, plugins=("refattn.pytest_plugin", "xdist.plugin")).assert_outcomes(passed=2, failed=1)
    results = json.loads((pytester.path / "r.json").read_text())
    assert {r["mechanism"] for r in results} == {"softmax", "relu"}


def test_unused_it_prints_nothing_and_imports_nothing(run, pytester):
    pytester.makepyfile("""
        import sys

        def test_imports():
            assert "numpy" not in sys.modules
            assert {m for m in sys.modules if m.startswith("refattn")} == {"refattn", "refattn._lazy", "refattn.pytest_plugin"}
    """)
    result = run()
    result.assert_outcomes(passed=1)
    assert "refattn" not in "\n".join(line for line in result.outlines if not line.startswith(("plugins:", "rootdir:")))
    assert result.stderr.str() == ""


def test_level_and_seed_come_from_the_command_line_or_the_file(run, pytester):
    pytester.makeini(INI + "refattn_level = full\nrefattn_seed = 3\nrefattn_report = made/report.json\n")
    pytester.makepyfile("""
        import refattn

        def test_check(refattn_check, request):
            level, seed = request.config.getoption("--refattn-level"), request.config.getoption("--refattn-seed")
            assert (refattn_check.level, refattn_check.seed) == (level or "full", int(seed or 3))
            refattn_check(refattn.softmax, refattn.softmax)

        @refattn.testing.parametrize_cases(refattn.relu)
        def test_case(refattn_case):
            refattn_case.assert_matches(refattn.relu(**refattn_case.arguments))
    """)
    below = pytester.mkdir("below")
    for options, seed in (([], "(seed 3)"), (["--refattn-level=quick", "--refattn-seed=5", f"--rootdir={pytester.path}"], "(seed 5)")):
        os.chdir(below if options else pytester.path)
        assert run("-c", str(pytester.path / "tox.ini"), str(pytester.path), *options).ret == 0
        results = json.loads((pytester.path / "made" / "report.json").read_text())
        assert {r["mechanism"] for r in results} == {"softmax", "relu"}
        assert all(seed in r["case"] for r in results)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--refattn-level=most"], "invalid choice: 'most'"),
        (["-o", "refattn_level=most"], "refattn_level is 'most', but must be one of quick, full, torture"),
        (["--refattn-seed=-1"], "refattn_seed is '-1', but must be a whole number from 0 on"),
        (["--refattn-report=r.txt"], "refattn_report is 'r.txt', but must be a file that ends in .json or .html"),
    ],
)
def test_bad_options_are_refused_before_any_test_runs(run, options, message):
    result = run(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in result.stderr.str()
    assert "Traceback" not in result.stderr.str()


def test_html_is_written(tmp_path):
    from refattn.testing import pytest_session

    stated = []
    pytest_session.recorder(stated)(testing.check(lambda x: 0 * x, refattn.softmax).results)
    pytest_session.write(tmp_path / "r.html", {"test_b": stated, "test_a": stated})
    text = (tmp_path / "r.html").read_text()
    assert text.startswith("<!doctype html>")
    assert "far from zero" in text


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution on the path that offers the plugin as the installed package does."""
    info = tmp_path / "site" / "refattn_stand_in-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: refattn-stand-in\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pytest11]\nrefattn = refattn.pytest_plugin\n")
    (info / "RECORD").write_text("refattn/__init__.py,,\nrefattn/pytest_plugin.py,,\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(info.parent), str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]))


def test_the_entry_point_can_be_switched_off_and_warns_of_nothing(installed, pytester):
    pytester.makeini(INI)
    pytester.makepyfile("def test_it(refattn_check):\n    assert refattn_check.seed == 0\n")
    code = "import sys, refattn, pytest; sys.exit(pytest.main(sys.argv[1:]))"  # imported before pytest could rewrite it
    for options, outcome in (([], "1 passed"), (["-p", "no:refattn"], "fixture 'refattn_check' not found")):
        done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, cwd=pytester.path)
        assert outcome in done.stdout
        assert "Warning" not in done.stdout + done.stderr


def test_the_entry_point_is_stated():
    import tomllib

    path = HERE.parent / "pyproject.toml"
    stated = tomllib.loads(path.read_text())["project"]["entry-points"]
    assert stated == {"pytest11": {"refattn": pytest_plugin.__name__}}


def test_a_test_that_runs_again_begins_anew():
    gatherer = pytest_plugin._Gatherer(SimpleNamespace())
    for result in ("first", "second"):
        for when, recorded in (("setup", {}), ("call", {"refattn": [result]}), ("teardown", {})):
            gatherer.pytest_runtest_logreport(SimpleNamespace(nodeid="a", when=when, **recorded))
    assert gatherer.tests == {"a": ["second"]}


@pytest.mark.parametrize("seeds", [(0,), (0, 7)])
def test_names_of_tests_are_their_own(seeds):
    how = {"dtypes": ("float16", "float32"), "level": None, "seeds": seeds, "framework": "numpy", "supports": None, "session": ("quick", 0)}
    for m in refattn.mechanisms():
        made = list(parameters(m.__name__, **how))
        assert len({p.id for p in made}) == len(made) == 2 * len(seeds) * len(list(testing.cases(m)))
        assert all(re.fullmatch(r"[\w.+-]+", p.id) for p in made)


def test_a_case_is_drawn_when_it_is_asked_for():
    attention = refattn.scaled_dot_product_attention
    how = {"dtypes": ("float32",), "level": None, "seeds": None, "framework": "numpy", "session": ("quick", 2)}
    made = list(parameters(attention.__name__, supports=("causal", "align"), **how))
    for p, case in zip(made, testing.cases(attention, "quick", 2), strict=True):
        assert bool(p.lacking) == bool(case.arguments.keys() - {"query", "key", "value", "causal", "align"})
    again = drawn(made[5].unit)
    (wanted,) = [c for i, c in enumerate(testing.cases(attention, "quick", 2)) if i == 5]
    assert again.name == wanted.name
    assert (again.arguments["query"] == wanted.arguments["query"]).all()


def test_bad_calls_of_parametrize_cases():
    make = testing.parametrize_cases
    with pytest.raises(TypeError, match="mechanism is a str, but must be a function"):
        make("softmax")
    with pytest.raises(ValueError, match="dtype is 'int8', but must be one of"):
        make(refattn.softmax, dtype=["float32", "int8"])
    with pytest.raises(ValueError, match="framework is 'caffe', but must be one of"):
        make(refattn.softmax, framework="caffe")
    with pytest.raises(TypeError, match="supports is a str, but must be a collection"):
        make(refattn.softmax, supports="bias")
    with pytest.raises(ValueError, match=r"supports names \['bias'\], which softmax does not have"):
        make(refattn.softmax, supports=["bias"])
