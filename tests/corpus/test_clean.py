"""Cleaning repairs what is broken and leaves the rest; where ftfy has nothing to do it is not asked."""

import gzip
import itertools
import json
import lzma
import random
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import ftfy
import pytest
import regex
from ftfy.badness import MOJIBAKE_CATEGORIES, is_bad
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.corpus.clean import _REPAIR, clean, clean_whitespace, is_sound, repair
from groundup.corpus.settings import CorpusSettings

DEFAULT = CorpusSettings(sources=("x",))
SHARED = Path(__file__).parents[3] / "shared/data"
BMP = "".join(map(chr, range(0x10000)))
ODD = sorted(
    {each for of in MOJIBAKE_CATEGORIES.values() for each in re.findall(f"[{of}]", BMP)} | set("aZ ¹¼½¾\xa0\n")
)
"""The characters of broken decodings, and some others that stand beside them."""


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


def test_pairs_that_ftfy_takes_for_broken_are_suspect() -> None:
    missed = [a + b for a, b in itertools.product(ODD, ODD) if is_bad(a + b) and is_sound(a + b)]
    assert missed == []


def test_longer_runs_that_ftfy_takes_for_broken_are_suspect() -> None:
    draw = random.Random(0)
    runs = ("".join(draw.choices(ODD, k=draw.randint(3, 6))) for _ in range(20_000))
    bad = [run for run in runs if is_bad(run)]
    assert len(bad) > 10_000 and not any(is_sound(run) for run in bad)


@given(st.text(st.sampled_from([*ODD, *"abcé’\u0301\x00\x1b[0m\r\n\u2028\ufeff\u206a각"]), max_size=12))
@settings(max_examples=400, deadline=None)
def test_repair_equals_ftfy(text: str) -> None:
    assert repair(text) == ftfy.fix_text(text, _REPAIR)


@given(st.text(st.sampled_from(" \t\r\na\u3000"), max_size=12))
@settings(max_examples=400)
def test_whitespace_is_cleaned_as_by_regular_expressions(text: str) -> None:
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    plain = regex.sub(r"(?m)(?<![ \t])[ \t]+$", "", plain)
    assert clean_whitespace(text) == regex.sub(r"\n{3,}", "\n\n", plain).strip()


def staged(pattern: str) -> Iterator[str]:
    """The texts beside the project: books, tales, web pages, sentences in 30 languages."""
    for path in sorted(SHARED.glob(pattern)):
        with (gzip.open if path.suffix == ".gz" else lzma.open)(path) as file:
            if ".jsonl" in path.name:
                fields = (field for line in file for field in json.loads(line).values())
                yield from (field for field in fields if isinstance(field, str))
            elif ".warc" not in path.name and ".arc" not in path.name:
                yield file.read().decode("utf-8", "replace")
    with zipfile.ZipFile(SHARED / "messy/multilingual/udhr2.zip") as archive:  # a declaration in 388 languages
        yield from (archive.read(name).decode("utf-8", "replace") for name in archive.namelist())


def test_repair_equals_ftfy_on_some_of_the_staged_texts() -> None:
    if not SHARED.exists():
        pytest.skip("the staged texts are not beside the project")
    for text in itertools.islice(staged("messy/**/*.xz"), 0, None, 25):
        assert repair(text[:3_000]) == ftfy.fix_text(text[:3_000], _REPAIR)


@pytest.mark.slow
def test_repair_equals_ftfy_on_all_staged_texts() -> None:
    if not SHARED.exists():
        pytest.skip("the staged texts are not beside the project")
    assert all(
        repair(text) == ftfy.fix_text(text, _REPAIR)
        for pattern in ("corpora/*", "messy/**/*.[gx]z")
        for text in staged(pattern)
    )
