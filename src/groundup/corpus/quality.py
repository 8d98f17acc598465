"""Published quality rules: each drops a page, or a line, for a reason that its paper gives.

All but C4 count words as `scan.words_of` splits them. They were made for English web pages.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import regex

from groundup.corpus.document import Document, Drop, Note
from groundup.corpus.scan import hashes_of, repeated, tally, words_of
from groundup.corpus.settings import C4, FineWeb, Gopher, GopherRepetition
from groundup.settings import Settings

_CITATION = re.compile(r"\[(?:[0-9]*|edit|citation needed)\]")
_SENTENCE_ENDS = re.compile(r"[.!?](?<!\b[A-Z].)(?<!\b[DMS][rst].)(?<!\bMrs.)[\"'”’)\]]*\s+[^.!?\s]")
_ENDED = regex.compile(r"\p{Sentence_Terminal}")
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
PAGE_RULES = {"lorem-ipsum": "says lorem ipsum", "curly-bracket": "has a curly bracket"}

Rule = tuple[str, str, float, float | Literal["off"], bool]
"""Its name, the reason in words, what the document has, the threshold, and whether that is the most."""


def gopher(document: Document, settings: Gopher) -> Document | Drop:
    """Rae et al. 2021, appendix A1.1, quality filtering."""
    text, s, found = document.text, settings, words_of(document.text)
    real, characters, lettered, stopped = tally(found, hashes_of(s.stop_words))
    lines, words = text.splitlines(), max(1, len(found))
    bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines) / max(1, len(lines))
    cut = sum(line.rstrip().endswith(("...", "…")) for line in lines) / max(1, len(lines))
    hashes, ellipses = text.count("#") / words, (text.count("...") + text.count("…")) / words
    length = characters / max(1, real)
    return _judged(
        document,
        ("gopher.words", "fewer than {:,} words", real, s.words, False),
        ("gopher.words", "more than {:,} words", real, s.most_words, True),
        ("gopher.word-length", "words shorter than {} characters", length, s.word_length, False),
        ("gopher.word-length", "words longer than {} characters", length, s.longest_words, True),
        ("gopher.symbols", "more than {} hashes per word", hashes, s.symbols, True),
        ("gopher.symbols", "more than {} ellipses per word", ellipses, s.symbols, True),
        ("gopher.bullets", "more than {:.0%} of lines with a bullet point", bullets, s.bullets, True),
        ("gopher.ellipses", "more than {:.0%} of lines cut off", cut, s.ellipses, True),
        ("gopher.letters", "less than {:.0%} of words with a letter", lettered / words, s.letters, False),
        ("gopher.stop-words", "fewer than {} of the stop words", stopped, s.least_stop_words, False),
    )


def gopher_repetition(document: Document, settings: GopherRepetition) -> Document | Drop:
    """Rae et al. 2021, appendix A1.1, table A1."""
    text, s, name = document.text, settings, "gopher-repetition."
    size, often = max(1, len(text)), "more than {:.0%} of characters in "
    paragraphs, in_paragraphs = copies([part.strip("\n") for part in text.split("\n\n") if part.strip("\n")])
    lines, in_lines = copies([line for line in text.split("\n") if line])
    taken = (repeated(words_of(text), 4, 10) / size).tolist()
    top, again = enumerate(s.top, start=2), enumerate(s.repeated, start=5)
    return _judged(
        document,
        (name + "paragraphs", "more than {:.0%} of paragraphs repeated", paragraphs, s.paragraphs, True),
        (name + "in-paragraphs", often + "repeated paragraphs", in_paragraphs / size, s.in_paragraphs, True),
        (name + "lines", "more than {:.0%} of lines repeated", lines, s.lines, True),
        (name + "in-lines", often + "repeated lines", in_lines / size, s.in_lines, True),
        *((f"{name}top-{n}", f"{often}the top {n}-gram", taken[n], most, True) for n, most in top),
        *((f"{name}{n}-grams", f"{often}repeated {n}-grams", taken[n], most, True) for n, most in again),
    )


def fineweb(document: Document, settings: FineWeb) -> Document | Drop:
    """Penedo et al. 2024, section 3.6; the last rule stands in its code alone."""
    text, s = document.text, settings
    lines, breaks = [line for line in text.split("\n") if line.strip()], text.count("\n")
    ended = sum(_ENDED.match(line[-1]) is not None for line in lines) / max(1, len(lines))
    short = sum(len(line) <= s.short_line for line in lines) / max(1, len(lines))
    copied = copies(lines)[1] / max(1, len(text) - breaks)
    return _judged(
        document,
        ("fineweb.ended", "less than {:.0%} of lines end a sentence", ended, s.ended, False),
        ("fineweb.short", "more than {:.0%} of lines short", short, s.short, True),
        ("fineweb.copied", "more than {:.0%} of characters in repeated lines", copied, s.copied, True),
        ("fineweb.breaks", "more than {} line ends per word", breaks / max(1, len(words_of(text))), s.breaks, True),
    )


def c4(document: Document, settings: C4) -> Document | Drop:
    """Raffel et al. 2020, section 2.2, in the order of its code: lines go; then the page, if too little is left."""
    s, text = settings, document.text
    if s.citations and "[" in text:
        text = _CITATION.sub("", text)
    lower = text.lower()
    is_plain = not any(phrase in lower for phrase in ("lorem ipsum", "javascript", "{", *POLICIES))
    kept: list[str] = []
    gone: dict[str, list[str]] = {}
    sentences = 0
    for line in map(str.strip, text.split("\n")):
        rule = _c4_line(line, s, is_plain) if line else ""
        if rule in PAGE_RULES:
            return Drop(f"c4.{rule}", PAGE_RULES[rule])
        if rule:
            gone.setdefault(rule, []).append(line)
        elif line or (kept and kept[-1]):
            kept.append(line)
            if line and s.sentences != "off" and sentences < s.sentences:
                sentences += len(_SENTENCE_ENDS.findall(line)) + 1
    if s.sentences != "off" and sentences < s.sentences:
        return Drop("c4.sentences", f"fewer than {s.sentences} sentences", sentences, s.sentences)
    if not gone and text == document.text:
        return document
    notes = (Note(f"c4.{rule}", len(lines), lines[0][:100]) for rule, lines in gone.items())
    return replace(document, text="\n".join(kept).strip(), notes=(*document.notes, *notes))


def _c4_line(line: str, s: C4, is_plain: bool) -> str:
    """The rule by which a line, or its page, goes; nothing, if it stays. `is_plain`: no phrase need be looked for."""
    words = line.split()
    if s.word_length != "off" and len(line) > s.word_length < max(map(len, words)):
        return "long-word"
    if s.ends and (line[-1] not in s.ends or line.endswith("...")):
        return "end"
    if s.line_words != "off" and len(words) < s.line_words:
        return "words"
    lower = "" if is_plain else line.lower()
    if s.lorem_ipsum and "lorem ipsum" in lower:
        return "lorem-ipsum"
    if s.javascript and "javascript" in lower:
        return "javascript"
    if s.curly_brackets and "{" in lower:
        return "curly-bracket"
    return "policy" if lower and s.policies and any(phrase in lower for phrase in POLICIES) else ""


def copies(parts: list[str]) -> tuple[float, int]:
    """The share of some texts that were there before, and the sum of their characters."""
    seen: set[str] = set()
    copied = [part for part in parts if part in seen or seen.add(part)]  # type: ignore[func-returns-value]
    return len(copied) / max(1, len(parts)), sum(map(len, copied))


def _judged(document: Document, *rules: Rule) -> Document | Drop:
    """The first rule that refuses the document; at the threshold it passes."""
    for name, reason, value, threshold, is_most in rules:
        if threshold != "off" and (value > threshold if is_most else value < threshold):
            return Drop(name, reason.format(threshold), round(float(value), 6), threshold)
    return document


RULES: dict[type[Settings], Callable[..., Document | Drop]] = {
    C4: c4,
    Gopher: gopher,
    GopherRepetition: gopher_repetition,
    FineWeb: fineweb,
}
