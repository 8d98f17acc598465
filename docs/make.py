"""Write what is derived from the code: the recipe's JSON Schema and, of a finished run, the README's picture."""

import json
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

from groundup.recipe import Recipe

ROOT = Path(__file__).parents[1]


def schema() -> None:
    target = ROOT / "recipes" / "recipe.schema.json"
    target.write_text(json.dumps(Recipe.model_json_schema(), indent=1) + "\n")


def picture() -> None:
    page = ROOT / "runs" / "storybook" / "report.html"
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not page.is_file() or not chromium:
        print("no picture: it needs `make demo` before, and Chromium")
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 900, "height": 1500})
        tab.goto(page.as_uri())
        tab.screenshot(path=ROOT / "docs" / "report.png")
        browser.close()


if __name__ == "__main__":
    schema()
    picture()
