"""Published quality rules: each drops a page, or a line, for a reason that its paper gives.

All read the same `scan.Scan` of the text. They were made for English web pages, and most for whitespace between words.
"""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from groundup.corpus import scan as scanning
from groundup.corpus.document import Document, Drop, Note
from groundup.corpus.scan import (
    CHARACTERS,
    END,
    ENDS,
    FIRST,
    IS_CUT,
    LAST,
    LONGEST,
    SENTENCES,
    START,
    WORDS,
    character_classes,
    hashes_of,
    scan,
)
from groundup.corpus.settings import C4, FineWeb, Gopher, GopherRepetition
from groundup.settings import Settings

_CITATION = re.compile(r"\[(?:[0-9]*|edit|citation needed)\]")
_BULLETS = (ord("•"), ord("-"))
LOREM, JAVASCRIPT = "lorem ipsum", "javascript"
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")

Rule = tuple[str, str, float, float | None, bool]
"""Its name, the reason in words, what the document has, the threshold (None: switched off), whether it is the most."""


def gopher(document: Document, settings: Gopher) -> Document | Drop:
    """Rae et al. 2021, appendix A1.1, quality filtering."""
    text, s = document.text, settings
    found = scan(text)
    stops = hashes_of(s.stop_words)
    real, characters, lettered, stopped = scanning.tally(found.words, stops)
    words = max(1, len(found.words))
    lines = found.lines if not text.endswith("\n") else found.lines[:-1]
    bullets = np.isin(lines[:, FIRST], _BULLETS).mean()
    ellipses = text.count("...") + text.count("…")
    return _judged(
        document,
        ("gopher.words", "fewer than {:,} words", real, s.words, False),
        ("gopher.words", "more than {:,} words", real, s.most_words, True),
        ("gopher.word-length", "words shorter than {} characters", characters / max(1, real), s.word_length, False),
        ("gopher.word-length", "words longer than {} characters", characters / max(1, real), s.longest_words, True),
        ("gopher.symbols", "more than {} hashes per word", text.count("#") / words, s.symbols, True),
        ("gopher.symbols", "more than {} ellipses per word", ellipses / words, s.symbols, True),
        ("gopher.bullets", "more than {:.0%} of lines with a bullet point", bullets, s.bullets, True),
        ("gopher.ellipses", "more than {:.0%} of lines cut off", lines[:, IS_CUT].mean(), s.ellipses, True),
        ("gopher.letters", "less than {:.0%} of words with a letter", lettered / words, s.letters, False),
        ("gopher.stop-words", "fewer than {} of the stop words", stopped, s.least_stop_words, False),
    )


def gopher_repetition(document: Document, settings: GopherRepetition) -> Document | Drop:
    """Rae et al. 2021, appendix A1.1, table A1."""
    found, s = scan(document.text), settings
    size = max(1, len(document.text))
    paragraphs, in_paragraphs = copies(re.split(r"\n{2,}", document.text))
    lines, in_lines = copies(re.split(r"\n+", document.text))
    often = "more than {:.0%} of characters in "
    taken = scanning.repeated(found.words, 4, 10) / size
    top, again = enumerate(s.top, start=2), enumerate(s.repeated, start=5)
    name = "gopher-repetition."
    return _judged(
        document,
        (name + "paragraphs", "more than {:.0%} of paragraphs repeated", paragraphs, s.paragraphs, True),
        (name + "in-paragraphs", often + "repeated paragraphs", in_paragraphs / size, s.in_paragraphs, True),
        (name + "lines", "more than {:.0%} of lines repeated", lines, s.lines, True),
        (name + "in-lines", often + "repeated lines", in_lines / size, s.in_lines, True),
        *((f"{name}top-{n}", f"{often}the top {n}-gram", float(taken[n]), most, True) for n, most in top),
        *((f"{name}{n}-grams", f"{often}repeated {n}-grams", float(taken[n]), most, True) for n, most in again),
    )


def fineweb(document: Document, settings: FineWeb) -> Document | Drop:
    """Penedo et al. 2024, section 3.6; the last rule stands in its code alone."""
    text, s = document.text, settings
    found = scan(text)
    lines = found.lines[found.lines[:, WORDS] > 0]
    n = max(1, len(lines))
    ended = (character_classes()[lines[:, LAST]] & ENDS > 0).sum()
    short = (lines[:, CHARACTERS] <= s.short_line).sum()
    _, copied = copies([line for line in text.split("\n") if line.strip()])
    breaks = text.count("\n")
    copied_share = copied / max(1, len(text) - breaks)
    return _judged(
        document,
        ("fineweb.ended", "less than {:.0%} of lines end a sentence", ended / n, s.ended, False),
        ("fineweb.short", "more than {:.0%} of lines short", short / n, s.short, True),
        ("fineweb.copied", "more than {:.0%} of characters in repeated lines", copied_share, s.copied, True),
        ("fineweb.breaks", "more than {} line ends per word", breaks / max(1, len(found.words)), s.breaks, True),
    )


def c4(document: Document, settings: C4) -> Document | Drop:
    """Raffel et al. 2020, section 2.2, in the order of its code: lines go; then the page, if too little is left."""
    s, text = settings, document.text
    if s.citations and "[" in text:
        text = _CITATION.sub("", text)
    raw, lines = text.encode(), scan(text).lines
    is_full = lines[:, WORDS] > 0
    last = lines[:, LAST]
    verdicts = {
        "c4.long-word": lines[:, LONGEST] > (s.word_length or len(text)),
        "c4.end": ~np.isin(last, [ord(mark) for mark in s.ends]) | (lines[:, IS_CUT] > 0) if s.ends else ~is_full,
        "c4.words": lines[:, WORDS] < (s.line_words or 0),
    }
    dropped: dict[str, list[int]] = {}
    kept = is_full
    for rule, is_wrong in verdicts.items():
        dropped[rule] = np.flatnonzero(kept & is_wrong).tolist()
        kept = kept & ~is_wrong
    numbers = np.flatnonzero(kept).tolist()
    lower = text.lower()
    if any(phrase in lower for phrase in (LOREM, "{", JAVASCRIPT, *POLICIES)):
        for number in numbers.copy():
            line = raw[lines[number, START] : lines[number, END]].decode().lower()
            if s.lorem_ipsum and LOREM in line:
                return Drop("c4.lorem-ipsum", "says lorem ipsum")
            if s.curly_brackets and "{" in line and not (s.javascript and JAVASCRIPT in line):
                return Drop("c4.curly-bracket", "has a curly bracket")
            for rule, is_on, phrases in (
                ("c4.javascript", s.javascript, (JAVASCRIPT,)),
                ("c4.policy", s.policies, POLICIES),
            ):
                if is_on and any(phrase in line for phrase in phrases):
                    dropped.setdefault(rule, []).append(number)
                    numbers.remove(number)
                    break
    sentences = int(lines[numbers, SENTENCES].sum())
    if s.sentences is not None and sentences < s.sentences:
        return Drop("c4.sentences", f"fewer than {s.sentences} sentences", sentences, s.sentences)
    notes = [
        Note(rule, len(which), raw[lines[which[0], START] : lines[which[0], END]].decode()[:100])
        for rule, which in dropped.items()
        if which
    ]
    if notes:
        text = _joined(raw, lines, numbers)
    return document if text == document.text else replace(document, text=text, notes=(*document.notes, *notes))


def _joined(raw: bytes, lines: scanning.Numbers, numbers: list[int]) -> str:
    """The lines of these numbers, with an empty line between two of them where one stood."""
    empty = np.cumsum(lines[:, WORDS] == 0)[numbers]
    parts: list[bytes] = []
    for number, here, before in zip(numbers, empty, np.roll(empty, 1), strict=True):
        parts += [b"\n\n" if here > before else b"\n", raw[lines[number, START] : lines[number, END]]]
    return b"".join(parts[1:]).decode().strip()


def copies(parts: list[str]) -> tuple[float, int]:
    """The share of some texts that were there before, and the sum of their characters."""
    seen: set[str] = set()
    copied = [part for part in parts if part in seen or seen.add(part)]  # type: ignore[func-returns-value]
    return len(copied) / max(1, len(parts)), sum(map(len, copied))


def _judged(document: Document, *rules: Rule) -> Document | Drop:
    """The first rule that refuses the document; at the threshold it passes."""
    for name, reason, value, threshold, is_most in rules:
        if threshold is not None and (value > threshold if is_most else value < threshold):
            return Drop(name, reason.format(threshold), round(float(value), 6), threshold)
    return document


RULES: dict[type[Settings], Callable[..., Document | Drop]] = {
    C4: c4,
    Gopher: gopher,
    GopherRepetition: gopher_repetition,
    FineWeb: fineweb,
}
