"""The page of `refattn.view` as people meet it: pointed at, touched, walked over with keys, on a telephone, in the dark."""

from __future__ import annotations

import time

import numpy as np
import pytest

import refattn
from refattn._core import Random
from refattn.view import AttentionMap, attention_maps, page
from refattn.view.view_command import digits_page

pytest.importorskip("selenium.webdriver")
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

TOKENS = ["a", "</script><script>document.title = 'taken'</script>", "<b>c</b>", "&amp;", "a word that is longer than a telephone is wide"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The path of each page, and the maps in it."""
    random = Random(0)
    query, key, value = (random.normal((1, 2, len(TOKENS), 4)) for _ in range(3))
    _, words = attention_maps(refattn.scaled_dot_product_attention, query, key, value)
    made = {"words": (page("Words", words, tokens=TOKENS), words), **{m: digits_page(m, 1)[:2] for m in ("cnn", "transformer")}}
    shapes = {"non_local > mean_weights": (1, 2, 3, 16), "region_attention > masked_softmax": (1, 1, 1, 16), "softmax": (1, 4, 7)}
    photo = [AttentionMap(name, "weights", random.uniform(0, 1, shape)) for name, shape in shapes.items()]
    photo += [
        AttentionMap(name, "gate", random.uniform(0, 1, shape)) for name, shape in (("a", (2, 3)), ("b", (1, 3, 8, 8)), ("c", (1, 2, 5)))
    ]
    photo[0].array[0, 0, 0, :3] = -0.25, np.nan, np.inf
    made["photo"] = page("Photo", photo, image=random.uniform(0, 1, (3, 32, 32))), photo
    written = {}
    for name, (text, maps) in made.items():
        path = tmp_path_factory.mktemp("pages") / f"{name}.html"
        path.write_text(text, encoding="utf-8")
        written[name] = path, maps
    return written


def stages(browser, number):
    return browser.find_elements(By.CSS_SELECTOR, f"#drawn-{number} .panels:not(.one) .stage")


def said(browser, number, panel=0):
    """The number and the place that a heat map shows below it."""
    output = browser.find_elements(By.CSS_SELECTOR, f"#drawn-{number} .panels:not(.one) output")[panel]
    value, _, where = output.text.partition("\n")
    return value, where


def point(browser, stage, row, column, rows, columns):
    """Move the pointer to the middle of a cell."""
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", stage)
    dx = (column + 0.5) / columns - 0.5
    dy = (row + 0.5) / rows - 0.5
    ActionChains(browser, duration=0).move_to_element_with_offset(
        stage, round(dx * stage.size["width"]), round(dy * stage.size["height"])
    ).perform()


def is_read(text, x):
    """Whether a text is this number, of which the page holds five digits and shows four, or three of a small one."""
    return abs(float(text) - x) <= (0.51e-4 + 0.5e-5 if x >= 1e-3 else 0.51e-2 * x)


def test_pointing_at_a_gate_reads_it(browser, opened):
    maps = opened("cnn")
    for number, m in enumerate(maps):
        if m.array.ndim != 4:
            assert len(browser.find_elements(By.CSS_SELECTOR, f"#drawn-{number} li")) == m.array.size
            continue
        (stage,) = stages(browser, number)
        rows, columns = m.array.shape[-2:]
        for row, column in ((0, 0), (rows - 1, 1), (2, columns - 1)):
            point(browser, stage, row, column, rows, columns)
            value, where = said(browser, number)
            assert is_read(value, m.array[0, 0, row, column])
            assert where == f"row {row}, column {column}"
            assert stage.get_attribute("aria-valuetext") == f"{where}: {value}"


def test_all_heads_answer_for_the_patch_that_is_pointed_at(browser, opened):
    maps = opened("transformer")
    chooser = browser.find_element(By.CSS_SELECTOR, "#drawn-0 .panels.one .stage")
    point(browser, chooser, 1, 2, 4, 4)
    ActionChains(browser).click().perform()
    for number, m in enumerate(maps):
        point(browser, stages(browser, number)[1], 3, 0, 4, 4)
        for head in range(m.array.shape[1]):
            value, where = said(browser, number, head)
            assert is_read(value, m.array[0, head, 6, 12])
            assert where == "row 3, column 0"
    browser.find_element(By.XPATH, "//label[contains(., 'mean of all queries')]").click()
    point(browser, stages(browser, 0)[0], 2, 2, 4, 4)
    assert is_read(said(browser, 0)[0], maps[0].array[0, 0, :, 10].mean())


def test_without_a_pointer_a_head_says_what_is_largest(browser, opened):
    maps = opened("transformer")
    chooser = browser.find_element(By.CSS_SELECTOR, "#drawn-0 .panels.one .stage")
    point(browser, chooser, 0, 3, 4, 4)
    row = maps[0].array[0, 0, 3]
    assert is_read(said(browser, 0)[0], row.max())
    assert said(browser, 0)[1] == f"largest: row {row.argmax() // 4}, column {row.argmax() % 4}"


def test_queries_that_are_no_patches_are_chosen_from_a_list(browser, opened):
    m, one, table, _, gate, sequence = opened("photo")
    chooser = browser.find_element(By.CSS_SELECTOR, "#drawn-0 .panels.one .stage")
    point(browser, stages(browser, 0)[0], 0, 0, 4, 4)
    assert said(browser, 0)[0] == "-0.2500"
    assert browser.find_element(By.CSS_SELECTOR, "#drawn-0 .legend").text.startswith("-0.25")
    for column in (1, 2):
        point(browser, stages(browser, 0)[0], 0, column, 4, 4)
        assert said(browser, 0)[0] == "not finite"
    point(browser, chooser, 0, 2, 1, 3)
    ActionChains(browser).click().perform()
    point(browser, stages(browser, 0)[1], 1, 3, 4, 4)
    assert is_read(said(browser, 0, 1)[0], m.array[0, 1, 2, 7])
    point(browser, stages(browser, 1)[0], 3, 3, 4, 4)
    assert is_read(said(browser, 1)[0], one.array[0, 0, 0, 15])
    point(browser, stages(browser, 2)[0], 3, 6, 4, 7)
    assert is_read(said(browser, 2)[0], table.array[0, 3, 6])
    assert said(browser, 2)[1] == "query 3 → key 6"
    point(browser, stages(browser, 4)[0], 7, 0, 8, 8)
    for channel in range(3):
        assert is_read(said(browser, 4, channel)[0], gate.array[0, channel, 7, 0])
    point(browser, stages(browser, 5)[1], 0, 4, 1, 5)
    assert is_read(said(browser, 5, 1)[0], sequence.array[0, 1, 4])
    assert said(browser, 5, 1)[1] == "position 4"


def test_arrow_keys_walk_over_the_cells(browser, opened):
    (m,) = opened("words")
    stage = stages(browser, 0)[0]
    browser.find_element(By.ID, "theme").send_keys(Keys.TAB)
    while browser.switch_to.active_element != stage:
        browser.switch_to.active_element.send_keys(Keys.TAB)
    stage.send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert is_read(said(browser, 0)[0], m.array[0, 0, 1, 1])
    assert "query 1 “</script>" in said(browser, 0)[1]
    stage.send_keys(Keys.END)
    assert is_read(said(browser, 0)[0], m.array[0, 0, 4, 4])
    stage.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert is_read(said(browser, 0)[0], m.array[0, 0, 4, 4])
    stage.send_keys(Keys.HOME, Keys.ARROW_UP, Keys.ARROW_LEFT)
    assert is_read(said(browser, 0)[0], m.array[0, 0, 0, 0])
    assert stage.get_attribute("aria-valuenow") == "0"


def test_a_chosen_query_colours_the_keys(browser, opened):
    (m,) = opened("words")
    browser.find_elements(By.CSS_SELECTOR, "#drawn-0 .strip button")[2].click()
    row = m.array[0, 0, 2]
    assert is_read(said(browser, 0)[0], row.max())
    assert said(browser, 0)[1].startswith(f"largest: query 2 “<b>c</b>” → key {row.argmax()} “")
    titles = [li.get_attribute("title") for li in browser.find_elements(By.CSS_SELECTOR, "#drawn-0 figure:first-child ol li")]
    assert all(is_read(title, x) for title, x in zip(titles, m.array[0, 0, 2], strict=True))


def test_text_stays_text(browser, opened):
    opened("words")
    assert browser.title == "Words"
    assert [li.text for li in browser.find_elements(By.CSS_SELECTOR, ".input .tokens li")] == TOKENS
    assert browser.find_elements(By.TAG_NAME, "b") != []  # the names of heads
    assert not [b for b in browser.find_elements(By.TAG_NAME, "b") if b.text == "c"]


@pytest.mark.parametrize("width", [320, 375, 1280])
@pytest.mark.parametrize("name", ["words", "photo", "cnn", "transformer"])
def test_nothing_is_wider_than_the_screen(browser, opened, name, width):
    opened(name, width)
    assert browser.execute_script("const r = document.documentElement; return r.scrollWidth - r.clientWidth") == 0
    assert all(
        e.rect["x"] + e.rect["width"] <= width for e in browser.find_elements(By.CSS_SELECTOR, "section, figure, .stage, li, button")
    )


def test_a_finger_reads_a_cell_too(browser, opened):
    maps = opened("transformer", 375)
    stage = stages(browser, 0)[2]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", stage)
    box = browser.execute_script("const b = arguments[0].getBoundingClientRect(); return [b.x, b.y, b.width, b.height]", stage)
    spot = {"x": box[0] + box[2] * 0.375, "y": box[1] + box[3] * 0.875}
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [spot]})
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    value, where = said(browser, 0, 2)
    assert where == "row 3, column 1"
    assert any(is_read(value, x) for x in maps[0].array[0, 2, :, 13])  # whichever query the page begins with


def colours(browser):
    """The background of the page, and the first heat map as it is seen."""
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    return background, browser.find_element(By.CSS_SELECTOR, ".map .stage").screenshot_as_base64


def test_the_theme_is_the_readers_and_can_be_changed(browser, opened):
    opened("words", theme="light")
    light, button = colours(browser), browser.find_element(By.ID, "theme")
    assert button.text == "Dark theme"
    button.click()
    dark = colours(browser)
    assert dark[0] != light[0]
    assert dark[1] != light[1]
    assert button.text == "Light theme"
    button.click()
    assert colours(browser) == light
    opened("words", theme="dark")
    assert colours(browser) == dark
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "light"}]})
    for _ in range(20):
        if colours(browser) == light:
            break
        time.sleep(0.05)
    assert colours(browser) == light


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_background(browser, opened, theme):
    opened("transformer", theme=theme)
    ratios = browser.execute_script(
        """
        const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
        const light = (colour) => {
          const [r, g, b] = numbers(colour).map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const below = (e) => {
          const colour = getComputedStyle(e).backgroundColor;
          return numbers(colour)[3] === 0 ? below(e.parentElement) : colour;
        };
        return [...document.querySelectorAll('h1, h2, h3, p, dt, dd, figcaption b, output, label, .name, .number, button')]
          .filter((e) => e.checkVisibility() && e.textContent.trim())
          .map((e) => {
            const [a, b] = [light(getComputedStyle(e).color), light(below(e))];
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
          });
        """
    )
    assert len(ratios) > 20
    assert min(ratios) > 4.5  # what WCAG 2 asks of text


def test_stretching_gives_all_colours_to_the_numbers_there_are(browser, opened):
    maps = opened("cnn")
    number, m = next((i, m) for i, m in enumerate(maps) if m.array.ndim == 4)
    legend = browser.find_element(By.CSS_SELECTOR, f"#drawn-{number} .legend")
    assert legend.get_attribute("aria-label") == "colours from 0 to 1"
    browser.find_element(By.CSS_SELECTOR, f"#drawn-{number}").find_element(By.XPATH, ".//label[contains(., 'stretch')]").click()
    low, high = legend.text.split()
    assert is_read(low, m.array.min())
    assert is_read(high, m.array.max())
    assert legend.get_attribute("aria-label") == f"colours from {low} to {high}"
