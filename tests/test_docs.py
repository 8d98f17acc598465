"""The pages: what they show runs, what they name is there."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


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
