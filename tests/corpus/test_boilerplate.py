"""Lines that are no text go, those of texts stay; leftover markup goes. All in linear time."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from groundup.corpus.clean import clean
from groundup.corpus.document import Document
from groundup.corpus.filters import looks
from groundup.corpus.settings import (
    C4,
    Boilerplate,
    Characters,
    CorpusSettings,
    Filter,
    FineWeb,
    Gopher,
    GopherRepetition,
    Markup,
)


def edited(rules: Filter, text: str) -> Document:
    (look,) = looks([rules], Path())
    document = look(Document(text, "a"))
    assert isinstance(document, Document)
    return document


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("We use cookies to give you the best experience on our website.", "cookies"),
        ("By continuing to browse this site you agree to this.", "cookies"),
        ("Accept all cookies", "cookies"),
        ("She baked cookies for the whole village, and he ate them.", None),
        ("Page 3 of 10", "page-numbers"),
        ("- 12 -", "page-numbers"),
        ("[Pg 12]", "page-numbers"),
        ("12", "page-numbers"),  # between lines of text
        ("Page after page he read of it", None),
        ("Home | About us | Contact", "menus"),
        ("News » Politics » Europe", "menus"),
        ("Skip to main content", "menus"),
        ("Share on Facebook", "menus"),
        ("© 2019 The Society. All rights reserved.", "menus"),
        ("Next", "menus"),
        ("“Next,” said the king.", None),
        ("either | or", None),
    ],
)
def test_lines(line: str, rule: str | None) -> None:
    document = edited(Boilerplate(), f"The king came home.\n{line}\nHe slept.")
    assert [note.rule for note in document.notes] == ([f"boilerplate.{rule}"] if rule else [])
    assert (line in document.text.split("\n")) == (rule is None)


def test_headers_go_and_refrains_chapters_and_speakers_stay() -> None:
    page = "\n".join(f"Line {letter} of the page says what it has to say." for letter in "abcdefghijkl")
    book = "\n".join(f"THE KING OF THE HILLS    {number}\n{page}" for number in range(17, 23))
    document = edited(Boilerplate(), book)
    assert "HILLS" not in document.text and document.notes[0].count == 6
    verses = "\n".join("O the wind and the rain\nHey ho\nthat falls\non me" for _ in range(9))
    chapters = "\n\n".join(f"{number}\n\n{page}" for number in range(9))
    play = "\n".join(f"FIRST CITIZEN:\n{page}" for _ in range(9))
    for text in (verses, chapters, play):
        assert edited(Boilerplate(), text).text == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<p>One <b>bold</b> word.</p><p>Two</p>", "One bold word.\n\nTwo"),
        ("a<!-- hidden -->b <script>var x = 1;</script>c", "ab c"),
        ("R&amp;D &lt;now&gt; caf&#233; &nope;", "R&D <now> café &nope;"),
        ("1 < 2 and 3 > 2, AT&T; x <y> z", "1 < 2 and 3 > 2, AT&T; x <y> z"),
        ("[[File:x.jpg|thumb|A [[hill]]]]The [[king|old king]] of [[Hills]].", "The old king of Hills."),
        ("{{Infobox|a={{b}}}}'''Bold''' [[x]]\n== History ==\nText", "Bold x\n History \nText"),
        ("He said '''no''' and == nothing == {more}", "He said '''no''' and == nothing == {more}"),
    ],
)
def test_markup(text: str, left: str) -> None:
    assert edited(Markup(), text).text == left


HOSTILE = (
    *("<", "<!--", "<script>", "<a <", "&", "&#", "[[", "{{", "[[a|", "|", "==", "''", "'", "=\n", "== a "),
    *(
        "cookies use ",
        "by using ",
        "1",
        "Page 1 ",
        "\n",
        " \n",
        "a\n",
        "[",
        "ookie",
        "{",
        "javascript ",
        "lorem ipsum",
        "…",
    ),
    *("Ã ", "œ", "\x1b[", "\u0301", "é", "a ", "\r", "\t", "> ", "@", "a.", "”“"),
)


def seconds(work: Callable[[str], object], text: str) -> float:
    work(text[:100])
    best = 9.0
    for _ in range(3):
        begin = time.process_time()
        work(text)
        best = min(best, time.process_time() - begin)
    return best


@pytest.mark.parametrize(
    "rules",
    [Boilerplate(), Markup(), C4(), Gopher(), GopherRepetition(), FineWeb(), Characters()],
    ids=lambda r: r.kind,
)
@pytest.mark.slow
def test_twice_the_text_takes_less_than_three_times_as_long(rules: Filter) -> None:
    (look,) = looks([rules], Path())
    assert_linear(lambda text: look(Document(text, "a")))


@pytest.mark.slow
def test_twice_the_text_is_cleaned_in_less_than_three_times_as_long() -> None:
    assert_linear(lambda text: clean(text, CorpusSettings(sources=("x",))))


def assert_linear(work: Callable[[str], object]) -> None:
    for sign in HOSTILE:
        for _ in range(5):  # a clock on a busy machine may err: once is enough
            once, twice = seconds(work, sign * 25_000), seconds(work, sign * 50_000)
            if twice < 3 * once + 0.05:
                break
        else:
            pytest.fail(f"{sign!r}: {once:.3f} s, and twice as much {twice:.3f} s")
