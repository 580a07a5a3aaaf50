"""The core of the field: `refattn list --tag core`, and docs/core.md."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

import refattn
from docs import core as document
from refattn.__main__ import main
from refattn.view import core
from tests.enumeration import MECHANISMS
from tests.test_definitions import TOLERANCE

ROOT = Path(__file__).parent.parent
EACH = [pytest.param(system, id=system.name) for system in core.CORE]


def test_list_prints_a_line_for_each_system(capsys):
    assert main(["list", "--tag", "core"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["#", "status", "system", "given", "by"]
    assert [line[:2].strip() for line in lines] == [str(i) for i in range(1, 35)]
    for line, system in zip(lines, core.CORE, strict=True):
        assert all(part in line for part in (system.name, *core.given_by(system)))


def test_list_as_json(capsys):
    assert main(["list", "--tag", "core", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["number"] for row in listed] == list(range(1, 35))
    assert [row["name"] for row in listed] == [system.name for system in core.CORE]
    assert all(row["status"] == ("missing" if row["missing"] else "done") for row in listed)


@pytest.mark.parametrize("system", EACH)
def test_all_is_there(system):
    assert core.given_by(system)
    assert core.missing(system) == []


@pytest.mark.parametrize("system", [s for s in EACH if s.values[0].tests])
def test_comparisons_are_there(system):
    for pattern in system.tests:
        assert list(ROOT.glob(pattern)), pattern


def test_what_is_not_there_is_said():
    system = core.System("x", ("softmax", "sofmax"), ("optim.adam", "optim.madam", "opt", "masks"), ("show softmax", "show", "train it"))
    assert core.missing(system) == ["sofmax", "refattn.optim.madam", "refattn.opt", "refattn show", "refattn train it"]


def test_names_are_named_once():
    assert len({system.name for system in core.CORE}) == len(core.CORE) == 34


def test_core_is_no_tag_of_a_mechanism_and_of_no_family(capsys):
    assert not [m for m in MECHANISMS if "core" in m.spec.tags]
    assert refattn.mechanisms(tag="core") == ()
    assert main(["list", "--tag", "core", "--family", "score"]) == 2
    assert capsys.readouterr().err == "refattn: --family is 'score', but --tag core lists systems of every family\n"


PAGE = document.PAGE.read_text("utf-8")


def test_the_page_is_current():
    """All but what was measured, which differs from machine to machine: where this fails, run `python -m docs.core`."""
    assert document.page(document.measured_cells(PAGE)) == PAGE


def test_what_was_measured_is_within_the_tolerance():
    cells = document.measured_cells(PAGE)
    assert [cell != document.NOTHING for cell in cells] == [bool(system.mechanisms) for system in core.CORE]
    assert all(0 <= float(cell) <= TOLERANCE for cell in cells if cell != document.NOTHING)


def test_links_of_the_page_lead_somewhere():
    labels = dict(re.findall(r"^\[(.*)\]: (.*)$", PAGE, re.MULTILINE))
    table = [line for line in PAGE.splitlines() if line.startswith(("|", "- ["))]
    used = {label for line in table for label in re.findall(r"\[([^]]*)\](?!\()", line)}
    assert used == labels.keys()
    files = [target.removeprefix("../") for target in labels.values() if not target.startswith("https://arxiv.org/abs/")]
    package = Path(refattn.__file__).parent.parent  # which may be installed elsewhere
    assert all(((package if file.startswith("refattn/") else ROOT) / file).exists() for file in files)
    assert len(files) > 40


WITNESSES = document.witnessed()


@pytest.mark.parametrize("name", sorted({name for system in core.CORE for name in system.mechanisms}))
def test_each_is_compared_with_something_outside(name):
    assert WITNESSES[name]


def test_names_are_found_in_tests():
    """As attributes of the package; as strings and functions where mechanisms are looked up by name, but not as options."""
    plain = "refattn.softmax(x)\nother.linear(x)\nnames = ['erf']"
    by_name = "def relu(x, activation='tanh'): f(m='gelu', **{'silu': 'add'})\ngetattr(refattn, f'conv{axes}d')\nf'{a}_{b}'"
    assert set(document.mentioned(ast.parse(plain))) == {"softmax"}
    assert set(document.mentioned(ast.parse(by_name))) == {"relu", "silu", "conv[a-z0-9]+d", "conv", "d", "_"}


@pytest.mark.parametrize(
    ("reference", "label", "line"),
    [
        ('Hu, Shen, Sun, "A, B", CVPR 2018, section 3. arXiv:1709.01507.', "[Hu et al. 2018]", "*A, B*, CVPR 2018: section 3"),
        ('Wu, He, "Title", ECCV 2018: the score "dot". arXiv:1.2.', "[Wu and He 2018]", '*Title*, ECCV 2018: the score "dot"'),
        ('Bridle, "Title", 1990.', "Bridle 1990", "*Title*, 1990"),
    ],
)
def test_papers_are_cited_in_short(reference, label, line):
    papers = document.Papers()
    assert papers.label(reference) == label
    assert list(papers.lines()) == [f"- {label}: {line}"]


def test_a_paper_is_listed_once_and_another_of_the_same_year_differs():
    papers = document.Papers()
    places = ('Wu, "One", ICML 2018, eq. (1).', 'Wu, "One", ICML 2018, section 2.', 'Wu, "Two", ECCV 2018.')
    assert [papers.label(r) for r in places] == ["Wu 2018", "Wu 2018", "Wu 2018b"]
    assert list(papers.lines()) == ["- Wu 2018: *One*, ICML 2018: eq. (1); section 2", "- Wu 2018b: *Two*, ECCV 2018"]
