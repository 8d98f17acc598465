"""What every page must be in a real browser."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAPER = 673  # CSS pixels between the margins of A4: (210 − 2 · 16) mm at 96 to the inch

TOO_FAINT = """
() => {
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parts(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
  };
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
    const style = getComputedStyle(element);
    const ink = light(parts(element instanceof SVGElement ? style.fill : style.color)), paper = light(behind(element));
    const contrast = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (contrast < 4.5) faint.push([element.tagName, element.textContent.slice(0, 30), contrast]);
  }
  return faint;
}
"""
"""Texts whose contrast with their background is below 4.5 (WCAG 2.2, 1.4.3), with that contrast."""

CUT_OFF = """
() => [...document.querySelectorAll("main *")]
  .filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== "visible"
    || e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(e => [e.tagName, e.className, e.textContent.slice(0, 30)])
"""


@pytest.fixture
def too_faint() -> str:
    return TOO_FAINT


@pytest.fixture
def look(browser: Any) -> Callable[[Path, int, str], None]:
    """Asserts of a page that it fits, that it can be read, and that it says and fetches nothing."""

    def check(page: Path, width: int, scheme: str) -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab = context.new_page()
        heard: list[str] = []
        asked: list[str] = []
        tab.on("console", lambda message: heard.append(message.text))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        assert heard == []
        assert asked == [page.as_uri()]
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate(TOO_FAINT) == []
        for chart in tab.query_selector_all("svg.chart"):
            box = chart.bounding_box()
            assert box is not None
            assert box["width"] > 200
            assert box["height"] > 100
        links = tab.eval_on_selector_all("nav a", "found => found.map(a => a.getAttribute('href'))")
        assert links
        assert all(tab.query_selector(link) for link in links)
        context.close()

    return check


@pytest.fixture
def print_out(browser: Any) -> Callable[[Path], None]:
    """Asserts of a page that paper shows all of it, dark on white, whatever the screen's colours."""

    def check(page: Path) -> None:
        context = browser.new_context(viewport={"width": PAPER, "height": 900}, color_scheme="dark")
        tab = context.new_page()
        tab.goto(page.as_uri())
        tab.emulate_media(media="print", color_scheme="dark")
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert tab.evaluate(TOO_FAINT) == []
        assert tab.evaluate(CUT_OFF) == []
        assert tab.evaluate("[...document.querySelectorAll('details > *')].every(e => e.checkVisibility())")
        context.close()

    return check
