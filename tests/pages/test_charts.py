"""Charts as a reader sees them: the curves that the script draws, and the table without it."""

import base64
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

from groundup.pages.assets import asset
from groundup.pages.charts import MAX_ROWS, Chart, Curve


def test_the_table_has_the_positions_that_all_curves_share() -> None:
    chart = Chart("", "x", "y", [Curve("a", [1, 2, 3, 4], [5, 6, 7, 8]), Curve("b", [2, 4], [0.5, 1.5])])
    assert chart.rows == [[2, 6, 0.5], [4, 8, 1.5]]
    assert Chart("", "x", "y", [Curve("a", [1], [2]), Curve("b", [3], [4])]).rows == [[1, 2, None], [3, None, 4]]
    assert Chart("", "x", "y", [Curve("", [], [])]).rows == []


def test_a_long_table_is_thinned_from_the_first_to_the_last_position() -> None:
    rows = Chart("", "x", "y", [Curve("a", range(1000), range(1000))]).rows
    assert len(rows) == MAX_ROWS
    assert rows[0] == [0, 0]
    assert rows[-1] == [999, 999]


@pytest.fixture(scope="module")
def tab(browser: Any) -> Iterator[Any]:
    """A page in which `chart` is the module chart.js."""
    tab = browser.new_page(viewport={"width": 900, "height": 600})
    url = "data:text/javascript;base64," + base64.b64encode(asset("chart.js").encode()).decode()
    tab.evaluate("async url => { window.chart = await import(url); }", url)
    tab.set_content(f"<style>{asset('style.css')}{asset('board.css')}</style><main></main>")
    yield tab
    tab.close()


DRAW = """
([x, y, logX, logY, dots]) => {
  const drawn = new chart.Chart("title", "unit", () => {});
  document.querySelector("main").replaceChildren(drawn.node);
  drawn.draw({ curves: [{ name: "a", series: 0, x, mean: y, smoothed: y, low: null, dots }], marks: [], axis: "x",
    axisName: "x", logX, logY, low: x[0], high: x.at(-1) });
  return [drawn.drawing.querySelector("path.line")?.getAttribute("d") ?? "", drawn.drawing.clientWidth,
    [...drawn.drawing.querySelectorAll("text")].map(text => text.textContent),
    [...drawn.drawing.querySelectorAll("circle")].map(dot => `${dot.getAttribute("cx")} ${dot.getAttribute("cy")}`)];
}
"""


def draw(tab: Any, x: list[float], y: list[float], *, log: bool = False) -> tuple[list[tuple[float, float]], Any]:
    """The points of the curve, and width, texts and dots of the drawing."""
    path, *rest = tab.evaluate(DRAW, [x, y, log, log, True])
    return [(float(a), float(b)) for a, b in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path)], rest


def test_curves_go_through_their_points(tab: Any) -> None:
    points, (width, _, dots) = draw(tab, [0, 5, 10], [1.0, 3.0, 2.0])
    left, middle, right = (x for x, _ in points)
    assert (left, right) == (58, width - 12)
    assert middle == pytest.approx((left + right) / 2, abs=0.1)
    low, high, between = (y for _, y in points)
    assert high < between < low
    assert between == pytest.approx((low + high) / 2, abs=0.1)
    assert dots == [f"{x:g} {y:g}" for x, y in points]


def test_on_logarithmic_axes_a_power_law_is_a_straight_line(tab: Any) -> None:
    ((x1, y1), (x2, y2), (x3, y3)), (_, texts, _) = draw(tab, [1, 10, 100], [1000, 100, 10], log=True)
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)  # positions are written to a tenth
    assert y2 - y1 == pytest.approx(y3 - y2, abs=0.2)
    assert "1,000" in texts


@pytest.mark.parametrize("values", [[], [1.0]])
def test_charts_of_nothing_and_of_one_point_are_drawn(tab: Any, values: list[float]) -> None:
    points, (_, texts, _) = draw(tab, values, values)
    assert len(points) == len(values)
    assert ("nothing here" in texts) == (not values)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 7), (0.0012, 0.0019), (1e6, 5e6)])
def test_ticks_are_round_and_inside(tab: Any, low: float, high: float) -> None:
    ticks = tab.evaluate("([low, high]) => chart.ticks(low, high, 5)", [low, high])
    assert 2 <= len(ticks) <= 12
    assert all(low - 1e-9 <= tick <= high * (1 + 1e-9) for tick in ticks)
    step = ticks[1] - ticks[0]
    assert min(abs(step / 10 ** math.floor(math.log10(step) + 1e-9) - digit) for digit in (1, 2, 5, 10)) < 1e-6
