"""The plugin of pytest, ``refattn``: a fixture and parameters that check kernels, a summary, and a report of all that was checked.

It is loaded wherever refattn is installed, so it imports nothing and prints nothing until a test uses it. Results travel with
the reports of tests: from processes of pytest-xdist too, and from one that crashes later. (PYTEST_DONT_REWRITE)
"""

from __future__ import annotations

import importlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

LEVELS = ("quick", "full", "torture")
RECORDED = pytest.StashKey[list[dict[str, Any]]]()


def _testing(module: str) -> Any:
    """A module of `refattn.testing`, from its first use on."""
    return importlib.import_module(f"refattn.testing.{module}")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--refattn-level``, ``--refattn-seed`` and ``--refattn-report``, which may stand in the ini-file too."""
    group = parser.getgroup("refattn", "refattn: kernels and their reference")
    group.addoption("--refattn-level", choices=LEVELS, help="how many sizes and seeds a check has; default: quick")
    group.addoption("--refattn-seed", metavar="N", help="other numbers in all cases; default: 0")
    group.addoption("--refattn-report", metavar="FILE", help="write all results to FILE.json or FILE.html")
    parser.addini("refattn_level", "default of --refattn-level", default="quick")
    parser.addini("refattn_seed", "default of --refattn-seed", default="0")
    parser.addini("refattn_report", "default of --refattn-report, relative to the root directory", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what cannot be meant, before any test runs."""
    config.addinivalue_line("markers", "refattn_cases(mechanism, ...): what refattn.testing.parametrize_cases makes")
    _level(config)
    _seed(config)
    _report(config)
    if not hasattr(config, "workerinput"):  # where a person is told; workers of pytest-xdist send their reports there
        config.pluginmanager.register(_Gatherer(config), "refattn-results")


def _level(config: pytest.Config) -> str:
    level = config.getoption("--refattn-level") or config.getini("refattn_level")
    if level not in LEVELS:
        raise pytest.UsageError(f"refattn_level is {level!r}, but must be one of {', '.join(LEVELS)}")
    return level


def _seed(config: pytest.Config) -> int:
    option = config.getoption("--refattn-seed")
    seed = config.getini("refattn_seed") if option is None else option
    if not seed.isdecimal():
        raise pytest.UsageError(f"refattn_seed is {seed!r}, but must be a whole number from 0 on")
    return int(seed)


def _report(config: pytest.Config) -> Path | None:
    option, stated = config.getoption("--refattn-report"), config.getini("refattn_report")
    if config.option.collectonly or not (option or stated):
        return None
    path = config.invocation_params.dir / option if option else config.rootpath / stated
    if path.suffix not in {".json", ".html"} or path.is_dir():
        raise pytest.UsageError(f"refattn_report is {option or stated!r}, but must be a file that ends in .json or .html")
    return path


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case that the marker names; arrays are made when it runs."""
    marks = list(metafunc.definition.iter_markers("refattn_cases"))
    if marks:
        session = (_level(metafunc.config), _seed(metafunc.config))
        parameters = _testing("pytest_cases").parameters
        made = [p for mark in reversed(marks) for p in parameters(*mark.args, **mark.kwargs, session=session)]
        metafunc.parametrize("refattn_case", made, indirect=True, ids=[p.id for p in made])


def _recorder(request: pytest.FixtureRequest) -> Any:
    return _testing("pytest_session").recorder(request.node.stash.setdefault(RECORDED, []))


@pytest.fixture
def refattn_check(request: pytest.FixtureRequest) -> Any:
    """`refattn.testing.check` at the session's level and seed; a kernel that is wrong fails the test."""
    return _testing("pytest_session").Checker(_level(request.config), _seed(request.config), _recorder(request))


@pytest.fixture
def refattn_case(request: pytest.FixtureRequest) -> Any:
    """One case of a mechanism, which `refattn.testing.parametrize_cases` has named."""
    if not hasattr(request, "param"):
        pytest.fail("refattn_case needs @refattn.testing.parametrize_cases(mechanism) above the test", pytrace=False)
    case = _testing("pytest_cases").PytestCase(request.param, _recorder(request))
    if request.param.lacking:
        pytest.skip(case.skipped(request.param.lacking))
    return case


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Send with each report of a test what it has recorded since the last."""
    report = yield
    if recorded := item.stash.get(RECORDED, None):
        report.refattn = list(recorded)
        recorded.clear()
    return report


class _Gatherer:
    """Results of all tests, in the process that starts and ends the session."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.tests: dict[str, list[dict[str, Any]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test that is run again begins anew."""
        if report.when == "setup":
            self.tests.pop(report.nodeid, None)
        if recorded := getattr(report, "refattn", None):
            self.tests.setdefault(report.nodeid, []).extend(recorded)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Write the report."""
        if path := _report(self.config):
            _testing("pytest_session").write(path, self.tests)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """One line for each mechanism and format; nothing where nothing was checked."""
        if self.tests:
            terminalreporter.section("refattn")
            for line in _testing("pytest_session").summary(self.tests):
                terminalreporter.write_line(line)
        if path := _report(self.config):
            terminalreporter.write_line(f"refattn: {sum(map(len, self.tests.values()))} results are in {path}")
