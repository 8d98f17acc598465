"""The pages: what they show runs, what they name is there."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


# What the code says, the pages of reference say


@pytest.mark.parametrize("name", ["recipe", "commands"])
def test_the_pages_of_reference_are_those_of_the_code(name: str) -> None:
    pages = runpy.run_path(str(DOCS / "reference.py"))["PAGES"]
    assert (DOCS / "reference" / f"{name}.md").read_text() == pages[name](), "run `make docs`"


def test_every_setting_and_every_option_says_what_it_means() -> None:
    for name in ("recipe", "commands"):
        lines = (DOCS / "reference" / f"{name}.md").read_text().splitlines()
        for line, below in zip(lines, lines[1:], strict=False):
            assert not line.endswith("<br>") or below.strip(), line


def test_code_beside_the_words_is_the_code() -> None:
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    for page in PAGES:
        hooks["expand"](page.read_text())
    shown = hooks["expand"]("before\n<!-- code: train/fit.py Step accumulate -->\nafter")
    source = (ROOT / "src" / "groundup" / "train" / "fit.py").read_text().splitlines()
    first = next(number for number, line in enumerate(source) if line.startswith("def accumulate"))
    assert f'linenums="{first + 1}"' in shown
    assert f"    {source[first + 1]}" in shown
    assert '"""' in shown
    assert "@dataclass" in shown, "decorators belong to a class"


@pytest.mark.parametrize(
    ("mark", "answer"),
    [("train/fit.py nothing", "nothing of train/fit.py"), ("train/fitt.py fit", "train/fitt.py, which is not")],
)
def test_a_page_that_shows_code_that_is_gone_fails(mark: str, answer: str) -> None:
    expand = runpy.run_path(str(DOCS / "hooks.py"))["expand"]
    with pytest.raises(Exception, match=answer):
        expand(f"<!-- code: {mark} -->")


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly."""
    place = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", place],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return place


def test_the_site_is_built_without_a_warning_and_has_the_code_beside_the_words(site: Path) -> None:
    assert {page.relative_to(site).with_suffix(".md") for page in site.rglob("*.html")} >= {
        page.relative_to(DOCS) for page in DOCS.rglob("*.md")
    }
    tour = (site / "tour.html").read_text()
    assert "<!-- code:" not in tour
    assert tour.count('<details class="code"') > 20
    assert not list(site.rglob("*.py"))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (CI installs it)")
def test_on_a_phone_and_a_desk_the_site_fits_asks_nobody_and_is_searched(site: Path) -> None:
    """From disk, without a server."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        heard: list[str] = []
        asked: list[str] = []
        for width, pages in ((1280, [DOCS / "index.md"]), (390, list(DOCS.rglob("*.md")))):
            tab = browser.new_page(viewport={"width": width, "height": 900})
            tab.on("console", lambda message: heard.append(message.text))
            tab.on("pageerror", lambda error: heard.append(str(error)))
            tab.on("request", lambda request: asked.append(request.url))
            for page in pages:
                tab.goto((site / page.relative_to(DOCS)).with_suffix(".html").as_uri())
                assert tab.evaluate("document.documentElement.scrollWidth") <= width, (
                    f"{page.relative_to(ROOT)} at {width}"
                )
        tab.set_viewport_size({"width": 1280, "height": 900})
        tab.keyboard.press("/")
        tab.keyboard.type("warmup_steps")
        tab.wait_for_selector(".md-search-result__link")
        assert heard == []
        assert [url for url in asked if not url.startswith((site.as_uri(), "about:", "data:", "blob:"))] == []
        browser.close()
