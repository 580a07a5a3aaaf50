"""The page of a report as people meet it: pointed at, walked over with keys, on a telephone, in the dark."""

from __future__ import annotations

import pytest

import refattn
from refattn import testing
from tests.tiled_kernel import TiledAttention

pytest.importorskip("selenium.webdriver")
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser.test_view import colours


def convolution(x, weight, **options):
    y = refattn.conv2d(x, weight, **options)
    y[..., -1] *= 1.01
    return y


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The path of each page, and the report that it shows."""
    attention = refattn.scaled_dot_product_attention
    made = {
        "attention": testing.check(TiledAttention("float32", fault="causal off by one"), attention, case="causal edge, 131x200"),
        "convolution": testing.check(convolution, refattn.conv2d),
        "right": testing.check(refattn.softmax, refattn.softmax),
    }
    written = {}
    for name, report in made.items():
        path = tmp_path_factory.mktemp("reports") / f"{name}.html"
        path.write_text(report.to_html(f"{name} </script>"), encoding="utf-8")
        written[name] = path, report
    return written


def stages(browser, number, part):
    """The heat maps of one part of one failure."""
    maps = browser.find_elements(By.CSS_SELECTOR, f"#drawn-{number} .map")
    return maps[part].find_elements(By.CSS_SELECTOR, ".stage")


def said(stage):
    return stage.find_element(By.XPATH, "./ancestor::figure").find_element(By.TAG_NAME, "output").text.split("\n")


def test_pointing_at_a_cell_reads_it(browser, opened):
    report = opened("attention")
    (r,) = report.failures
    _, head, query, _ = r.worst_index
    (stage,) = stages(browser, 0, 1)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", stage)
    dx, dy = (query + 0.5) / 131 - 0.5, (head + 0.5) / 4 - 0.5
    ActionChains(browser, duration=0).move_to_element_with_offset(
        stage, round(dx * stage.size["width"]), round(dy * stage.size["height"])
    ).perform()
    value, where = said(stage)
    assert where == f"head {head}, query {query}"
    assert float(value.removesuffix(" × budget")) == pytest.approx(r.error_over_budget, rel=0.06)
    assert stage.get_attribute("aria-valuetext") == f"{where}: {value}"


def test_without_a_pointer_the_worst_is_read(browser, opened):
    (r,) = opened("attention").failures
    (stage,) = stages(browser, 0, 1)
    value, where = said(stage)
    assert where.startswith("worst: head ")
    assert float(value.removesuffix(" × budget")) == pytest.approx(r.error_over_budget, rel=0.06)


def test_arrow_keys_walk_over_the_cells_of_all_heads(browser, opened):
    opened("attention")
    panels = stages(browser, 0, 0)
    assert len(panels) == 4
    panels[0].send_keys(Keys.HOME, Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert {said(p)[1] for p in panels} == {"queries 16 to 31, keys 16 to 31"}
    panels[0].send_keys(Keys.END)
    assert {said(p)[1] for p in panels} == {"queries 128 to 130, keys 192 to 199, partly masked"}
    panels[0].send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert panels[0].get_attribute("aria-valuenow") == panels[0].get_attribute("aria-valuemax")


def test_text_stays_text_and_says_what_matches(browser, opened):
    opened("attention")
    assert browser.title == "attention </script>"
    assert "output matches if each query sees one key beyond the causal edge" in browser.find_element(By.CSS_SELECTOR, ".matches").text
    opened("right")
    assert browser.find_elements(By.CSS_SELECTOR, ".failure") == []


@pytest.mark.parametrize("width", [320, 375, 1280])
@pytest.mark.parametrize("name", ["attention", "convolution", "right"])
def test_nothing_is_wider_than_the_screen(browser, opened, name, width):
    opened(name, width)
    assert browser.execute_script("const r = document.documentElement; return r.scrollWidth - r.clientWidth") == 0
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('section, figure, .stage, button')].map((e) => e.getBoundingClientRect().right)"
    )
    assert max(boxes) <= width


def test_the_theme_can_be_changed(browser, opened):
    opened("convolution", theme="light")
    light = colours(browser)
    browser.find_element(By.ID, "theme").click()
    dark = colours(browser)
    assert dark[0] != light[0]
    assert dark[1] != light[1]
    opened("convolution", theme="dark")
    assert colours(browser) == dark


def test_tables_and_lines_can_be_reached_with_the_keyboard(browser, opened):
    opened("convolution", 375)
    reached = set()
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    for _ in range(6):
        active = browser.switch_to.active_element
        reached.add(active.get_attribute("class") or active.tag_name)
        active.send_keys(Keys.TAB)
    assert {"scroll", "code", "stage"} <= reached
