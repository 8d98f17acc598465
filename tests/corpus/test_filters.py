"""Filters name their reason, and let words in any script through."""

import pytest

from groundup.corpus.filters import refuse
from groundup.corpus.settings import Characters, Length

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
    assert refuse(text, BOTH) == reason


def test_without_filters_everything_passes() -> None:
    assert refuse("", ()) is None
