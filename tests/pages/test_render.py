"""Pages from templates: what came in as text stays text, and a missing value is an error."""

from pathlib import Path
from typing import Any

import jinja2
import pytest

from groundup.errors import SettingsError
from groundup.pages.charts import Bar, Chart, Curve
from groundup.pages.render import _environment, data, render, write_page

HOSTILE = "<img src=x onerror=document.title='owned'>"


@pytest.fixture
def parts() -> Any:
    return _environment().get_template("parts.html").module


def test_bars_are_as_long_as_their_values(parts: Any) -> None:
    drawn = parts.bars([Bar("<a>", 2.0, "two", main=True), Bar("b", 1.0, "one"), Bar("c", 0.0, "none")])
    assert [line.split("* ")[1][:6] for line in drawn.splitlines() if "* " in line] == ["1.0000", "0.5000", "0.0000"]
    assert "&lt;a&gt;" in drawn


def test_bars_of_nothing_have_no_length(parts: Any) -> None:
    assert "* 0.0000)" in parts.bars([Bar("a", 0.0, "0")])


def test_what_came_in_as_text_stays_text(parts: Any) -> None:
    chart = Chart(HOSTILE, HOSTILE, HOSTILE, [Curve(HOSTILE, [1], [2])])
    drawn = [
        parts.table([HOSTILE], [[HOSTILE]]),
        parts.numbers(chart),
        data(["</script>", HOSTILE]),
    ]
    for text in drawn:
        assert "<img" not in text
        assert "</script" not in text


def test_a_value_that_a_template_misses_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render("tokens.html")


def test_a_page_is_not_written_over_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is a folder; the page needs a file"):
        write_page(tmp_path, "page.html")
    write_page(tmp_path / "new" / "page.html", "page.html")
    text = (tmp_path / "new" / "page.html").read_text()
    assert "default-src 'none'; style-src 'unsafe-inline'\"" in text
    assert "<script" not in text
