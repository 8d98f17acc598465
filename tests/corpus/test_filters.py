"""Filters name their reason, and let words in any script through."""

from pathlib import Path

import pytest

from groundup.corpus.document import Document, Drop
from groundup.corpus.filters import judge, looks
from groundup.corpus.settings import Characters, CorpusSettings, Length

BOTH = (Length(minimum=5, maximum=40), Characters())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("the king", None),
        ("王様は丘を越えて行った", None),
        ("राजा पहाड़ी पर गया", None),  # vowel signs are marks, not letters
        ("king", "shorter than 5 characters"),
        ("king " * 20, "longer than 40 characters"),
        ("1 2 3 4 5 + = |||||", "less than 60% letters"),
        ("words with \ufffd in it", "more than 0.1% replacement characters"),
    ],
)
def test_reasons(text: str, reason: str | None) -> None:
    _, drop = judge(Document(text, "a.txt"), CorpusSettings(sources=("a.txt",)), looks(BOTH, Path()))
    assert (drop.reason if drop else None) == reason


def test_without_filters_all_but_the_empty_passes() -> None:
    settings = CorpusSettings(sources=("a.txt",))
    assert judge(Document("1", "a.txt"), settings, [])[1] is None
    assert judge(Document(" ", "a.txt"), settings, [])[1] == Drop("read.empty", "empty")
