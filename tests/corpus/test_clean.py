"""Cleaning repairs what is broken and leaves the rest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus.clean import clean, clean_whitespace
from groundup.corpus.settings import CorpusSettings

DEFAULT = CorpusSettings(sources=("x",))


@pytest.mark.parametrize(
    ("broken", "repaired"),
    [
        ("itâ€™s", "it’s"),
        ("a\x00b\x1bc", "abc"),
        ("e\u0301", "é"),  # composed to NFC
        ("“curled” — ﬁne １２", "“curled” — ﬁne １２"),  # the author's choice
        ("x &lt; y", "x &lt; y"),
        ("one  \r\n\r\n\r\n\r\ntwo\t\n", "one\n\ntwo"),
        ("def f():\n    return 1", "def f():\n    return 1"),
        ("𝕬 🧚‍♀️ مرحبا こんにちは", "𝕬 🧚‍♀️ مرحبا こんにちは"),
    ],
)
def test_cleaning(broken: str, repaired: str) -> None:
    assert clean(broken, DEFAULT) == repaired


@given(st.text())
def test_cleaning_whitespace_twice_changes_nothing_more(text: str) -> None:
    assert clean_whitespace(clean_whitespace(text)) == clean_whitespace(text)


@given(st.text())
def test_kind_none_leaves_every_character(text: str) -> None:
    none = {"kind": "none"}
    settings = CorpusSettings.from_table({"sources": ["x"], "unicode": none, "whitespace": none})
    assert clean(text, settings) == text
