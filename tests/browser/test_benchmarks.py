"""The published benchmarks in a browser without network: curves of asv draw, and tables fit a telephone."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from benchmarks import history, libraries, publish

PUBLISHED = Path(__file__).parent.parent.parent / "docs" / "benchmarks"
INK = """
return [...document.querySelectorAll(arguments[0] + ' canvas.flot-base')].map(function (canvas) {
    var copy = document.createElement('canvas'), colours = 0;
    copy.width = canvas.width; copy.height = canvas.height;
    var drawn = copy.getContext('2d', {willReadFrequently: true});
    drawn.drawImage(canvas, 0, 0);
    var bytes = drawn.getImageData(0, 0, copy.width, copy.height).data;
    for (var i = 0; i < bytes.length; i += 4) {
        var least = Math.min(bytes[i], bytes[i + 1], bytes[i + 2]), most = Math.max(bytes[i], bytes[i + 1], bytes[i + 2]);
        colours += bytes[i + 3] > 0 && most - least > 60;
    }
    return colours;
});
"""


@pytest.fixture(scope="module")
def pages():
    return {"index": (PUBLISHED / "index.html", (PUBLISHED / "index.html").read_text("utf-8"))}


@pytest.fixture(scope="module")
def with_history(pages, tmp_path_factory):
    """What ``python -m benchmarks.publish`` writes besides."""
    pytest.importorskip("asv")
    if not libraries.has_npm():
        pytest.skip("needs npm, for the libraries of asv's page")
    if not all(history.is_here(revision) for revision in history.measured()):
        pytest.skip("this clone has not all commits that were measured")
    path = tmp_path_factory.mktemp("published") / "history.html"
    path.write_text(publish.history_page(history.COMMITTED), "utf-8")
    pages["history"] = path, path.read_text("utf-8")


@pytest.mark.usefixtures("with_history")
def test_a_curve_of_each_kind_is_drawn(browser, opened):
    opened("history")
    WebDriverWait(browser, 20).until(lambda b: "refattn" in b.title)
    for benchmark in ("attention.Attention.time_both", "errors.Errors.track_over_budget", "memory.Memory.peakmem_both"):
        browser.execute_script("location.hash = arguments[0]", f"#{benchmark}")
        WebDriverWait(browser, 20).until(lambda b, name=benchmark: b.find_element(By.ID, "title").text == name)
        WebDriverWait(browser, 20).until(lambda b: any(b.execute_script(INK, "#main-graph")))
        assert not browser.find_element(By.ID, "error").is_displayed()


@pytest.mark.usefixtures("with_history")
def test_benchmarks_are_listed_with_their_results(browser, opened):
    opened("history")
    browser.execute_script("location.hash = '#summarylist'")
    WebDriverWait(browser, 20).until(lambda b: len(b.find_elements(By.CSS_SELECTOR, "#summarylist-body tbody tr")) > 20)
    text = browser.find_element(By.ID, "summarylist-body").text
    assert "attention.Attention.time_both" in text
    assert "refattn_numba" in text
    browser.find_element(By.CSS_SELECTOR, "#summarylist-body thead th").click()  # sorted by a library that is newer than asv's own


@pytest.mark.parametrize("width", [320, 1280])
def test_tables_and_rooflines_fit(browser, opened, width):
    source = opened("index", width)
    assert browser.execute_script("const r = document.documentElement; return r.scrollWidth - r.clientWidth") == 0
    circles = browser.find_elements(By.CSS_SELECTOR, ".roofline circle")
    assert len(circles) == source.count("<circle") > 0
    assert all(c.rect["width"] > 0 for c in circles)
    assert len(browser.find_elements(By.CSS_SELECTOR, "tbody tr")) == source.count("<tr><td>") > 0
