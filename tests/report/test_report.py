"""The report: one file, nothing fetched, nothing a hostile name can run, and it looks right in a browser."""

import re
import shutil
from pathlib import Path

import pytest

from groundup.recipe import build
from groundup.report.charts import Line, line_chart, smooth, ticks

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def page(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(recipe.parent)
    (recipe.parent / "tales" / "evil.txt").write_text("<script>document.title = 'owned'</script> & the king. " * 5)
    return (
        build(
            "tiny.toml",
            ["evals.prompts=['<img src=x onerror=alert(1)>']", "model.context_length=32"],
            say=lambda text: None,
        ).run.resolve()
        / "report.html"
    )


def test_nothing_is_fetched_and_nothing_runs(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"""<[a-z][^>]*\b(src|href)\s*=|url\(|@import|https?://|<script|<img""", text)
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_it_tells_all_that_was_promised(page: Path) -> None:
    text = page.read_text()
    for part in (
        "What was built from what", "What it writes", "Training", "Evaluation", "Corpus", "Tokenizer", "Model",
        "bits per byte on unseen documents", "seed 0", "learning rate", "gradient norm", "loss, nats per token",
        "time for everything", "FLOP", "torch 2.", "groundup 0.", "The same prompt during the run", "bytes per token",
        "first merges", "batch_tokens = 64",
    ):  # fmt: skip
        assert part in text, part
    assert text.count("<svg") >= 5


def test_curves_go_through_their_points() -> None:
    chart = line_chart([Line("a", [0, 5, 10], [1.0, 3.0, 2.0])], "step", "loss")
    points = re.search(r'points="([^"]+)"', chart)
    assert points is not None
    places = [tuple(map(float, point.split(","))) for point in points[1].split()]
    assert [x for x, _ in places] == [76.0, 344.0, 612.0]  # left edge, middle, right edge
    assert [y for _, y in places] == [220.0, 12.0, 116.0]  # lowest at the bottom, highest on top


@pytest.mark.parametrize("values", [[], [1.0]])
def test_charts_of_nothing_and_of_one_point_are_drawn(values: list[float]) -> None:
    assert line_chart([Line("", values, values)], "x", "y")


def test_smoothing_is_the_mean_of_the_last() -> None:
    assert smooth([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 7), (0.0012, 0.0019), (1e6, 5e6)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high, 5)
    assert 2 <= len(found) <= 12
    assert all(low <= tick <= high for tick in found)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (CI installs it)")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_real_browser_it_fits_and_says_nothing_on_the_console(page: Path, width: int) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        tab = browser.new_page(viewport={"width": width, "height": 900})
        heard: list[str] = []
        asked: list[str] = []
        tab.on("console", lambda message: heard.append(message.text))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        assert heard == []
        assert asked == [page.as_uri()]
        assert tab.title() == "tiny: groundup"
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        for chart in tab.query_selector_all("svg"):
            box = chart.bounding_box()
            assert box is not None
            assert box["width"] > 200
            assert box["height"] > 20
        browser.close()
