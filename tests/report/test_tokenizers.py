"""The page of tokenizers side by side: it holds every number of the comparison, and nothing from outside."""

import html
import re
from pathlib import Path

import pytest

from groundup.errors import SettingsError
from groundup.evals.tokenizers import compare
from groundup.report.tokenizers import verdicts, write_page
from groundup.tokenizer.tokenizer import Tokenizer


def test_the_page_has_all_numbers_and_escapes_what_came_in(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("low lower lowest")
    (tmp_path / "b.txt").write_text("Жила-была лиса")
    low = Tokenizer.learn(["low low low"], vocab_size=320)
    sources = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    comparison = compare({"low": low, "<b>letters": Tokenizer.of_merges([], "gpt2")}, sources)
    page = tmp_path / "deep" / "page.html"
    write_page(comparison, page)
    written = page.read_text()
    for row in comparison.group_rows:
        for cell in row:
            assert html.escape(cell) in written
    for verdict in verdicts(comparison):
        assert html.escape(verdict) in written
    assert "<b>letters" not in written
    assert written.count('<dl class="bars">') == len(comparison.groups) == 5
    assert not re.search(r'(src|href)="(?!#)', written)
    with pytest.raises(SettingsError, match="is a folder; the page needs a file"):
        write_page(comparison, tmp_path)
