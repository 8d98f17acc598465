"""Safety: word lists, a classifier of toxic text, block lists of addresses."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import orjson
import regex

from groundup.corpus.document import Document, Drop, Look, Note
from groundup.corpus.settings import Toxicity, Urls, Words
from groundup.files import locate, reading

if TYPE_CHECKING:
    from groundup.corpus.classifier import Classifier

PACKAGED = Path(str(resources.files("groundup") / "data"))
WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
ALONE = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
"""Signs of scripts without spaces between words: a listed word may begin and end at any of them."""
SHOWN = 80
"""Characters of a line that was taken out, in its note."""
BEGINS, ENDS = rf"(?:(?<![\p{{L}}\p{{M}}\p{{N}}])|(?={ALONE}))", rf"(?:(?![\p{{L}}\p{{M}}\p{{N}}])|(?<={ALONE}))"


def look(settings: Words | Toxicity | Urls, beside: Path) -> Look:
    """A filter with its lists or weights read."""
    match settings:
        case Words():
            return partial(words, settings=settings, lists=Lists(settings, beside))
        case Toxicity():
            from groundup.corpus.classifier import Classifier  # compiled

            own = settings.file and locate(settings.file, beside, "classifier")
            return partial(
                toxicity, settings=settings, classifier=Classifier.load(own or PACKAGED / "toxicity.safetensors")
            )
        case Urls():
            domains, listed = (frozenset(_entries(names, beside)) for names in (settings.domains, settings.words))
            return partial(urls, settings=settings, domains=domains, words=listed)


def read_list(name: str, beside: Path) -> list[str]:
    """The lines of a file, or of a list of the package by its language, in small letters and without those after #."""
    packaged = PACKAGED / "words" / f"{name}.txt"
    with reading(packaged if packaged.is_file() else locate(name, beside, "list")) as stream:
        lines = stream.read().decode("utf-8-sig", "replace").casefold().splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]


class Phrases:
    """Words and phrases by the first word of each; apart, those that begin in an unspaced script or with no word."""

    def __init__(self, phrases: Iterable[str]) -> None:
        by_first = defaultdict[str, set[str]](set)
        for phrase in phrases:
            first = WORD.match(phrase)
            by_first[first[0] if first and not regex.match(ALONE, phrase) else ""].add(phrase)
        self._apart = sorted(by_first.pop("", ()))
        self._firsts = frozenset(by_first)
        self._pattern = cache(lambda first: _alternatives(by_first[first]))

    def find(self, text: str) -> tuple[list[tuple[int, str]], int]:
        """Where phrases begin in a casefolded text and which they are; and its number of words: each sign of an
        unspaced script counts as one.

        >>> Phrases(["ball gag", "ass", "乳"]).find("a class, an ass; a ball\\n gag 牛乳")
        ([(12, 'ass'), (19, 'ball gag'), (30, '乳')], 9)
        """
        words = WORD.findall(text)
        patterns = [self._pattern(first) for first in sorted(self._firsts.intersection(words))]
        if apart := [phrase for phrase in self._apart if phrase.split(" ")[0] in text]:
            patterns.append(_alternatives(apart))
        found = [(match.start(), " ".join(match[0].split())) for each in patterns for match in each.finditer(text)]
        if text.isascii() or not regex.search(ALONE, text):
            return sorted(found), len(words)
        return sorted(found), len(regex.findall(rf"{ALONE}|[[\p{{L}}\p{{M}}\p{{N}}]--{ALONE}]+", text, flags=regex.V1))


def _alternatives(phrases: Collection[str]) -> "regex.Pattern[str]":
    longest_first = sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
    words = "|".join(
        regex.escape(phrase, special_only=True, literal_spaces=True).replace(" ", r"\s++") for phrase in longest_first
    )
    return regex.compile(f"{BEGINS}(?:{words}){ENDS}")


class Lists:
    """The lists of a filter, together and by language."""

    def __init__(self, settings: Words, beside: Path) -> None:
        self._lists = {name: read_list(name, beside) for name in settings.lists}
        self.of = cache(self._of)

    def _of(self, language: str) -> Phrases:
        """Those for documents of a language, and a person's own; all of them, for an unknown one, which is ''."""
        return Phrases(
            phrase
            for name, phrases in self._lists.items()
            if not language or name.split("-")[0] == language or not (PACKAGED / "words" / f"{name}.txt").is_file()
            for phrase in phrases
        )


def words(document: Document, settings: Words, lists: Lists) -> Document | Drop:
    text = document.text.casefold()
    found, n_words = lists.of(document.language if settings.by_language else "").find(text)
    if settings.action == "line":
        return without_lines(document, {text.count("\n", 0, start) for start, _ in found}, "words.line")
    if len(found) > max(settings.count, settings.share * n_words):
        return Drop(
            "words.listed", f"words of a list: {found[0][1]}", len(found), max(settings.count, settings.share * n_words)
        )
    return document


def without_lines(document: Document, lines: Collection[int], rule: str) -> Document | Drop:
    """A document without these lines, by number, and with a note; one that has no other goes."""
    if not lines:
        return document
    each = document.text.split("\n")
    text = "\n".join(line for number, line in enumerate(each) if number not in lines).strip("\n")
    if not text.strip():
        return Drop(rule, "every line is taken out", len(lines))
    return replace(document, text=text, notes=(*document.notes, Note(rule, len(lines), each[min(lines)][:SHOWN])))


def toxicity(document: Document, settings: Toxicity, classifier: "Classifier") -> Document | Drop:
    lines = document.text.split("\n")
    toxic = {
        number for number in (classifier.scores(lines) > settings.threshold).nonzero()[0].tolist() if lines[number]
    }
    if settings.action == "line":
        return without_lines(document, toxic, "toxicity.line")
    share = sum(len(lines[number]) for number in toxic) / len(document.text)
    if share > settings.share:
        return Drop("toxicity.share", f"more than {settings.share:.0%} in toxic lines", share, settings.share)
    return document


def urls(document: Document, settings: Urls, domains: Collection[str], words: frozenset[str]) -> Document | Drop:
    row = orjson.loads(document.metadata)
    for url in (row[name] for name in settings.fields if isinstance(row.get(name), str)):
        host, rest = split_url(url)
        labels = host.split(".")
        above = [".".join(labels[first:]) for first in range(len(labels))]
        if listed := next(filter(domains.__contains__, above), None):
            return Drop("urls.domain", f"domain of a list: {listed}", host)
        if found := words.intersection(re.findall(r"[^\W_]+", f"{host} {rest}")):
            return Drop("urls.word", f"word of a list in the URL: {min(found)}", url)
    return document


def split_url(url: str) -> tuple[str, str]:
    """The host of an address, and the rest, in small letters.

    >>> split_url("HTTPS://user@A.example.com:8080/b?c"), split_url("a.com/b"), split_url("http://[broken/")
    (('a.example.com', '/b?c'), ('a.com', '/b'), ('', 'http://[broken/'))
    """
    try:
        parts = urlsplit(url.lower() if "//" in url else f"//{url.lower()}")
        return (parts.hostname or "").strip("."), f"{parts.path}{'?' * bool(parts.query)}{parts.query}"
    except ValueError:
        return "", url.lower()


def _entries(names: Iterable[str], beside: Path) -> Iterator[str]:
    """Domains or words, and those in .txt files, of which a line may be one of a hosts file (`0.0.0.0 example.com`)."""
    for name in names:
        if not name.endswith(".txt"):
            yield name.lower()
        else:
            yield from (
                line.split("#")[0].split()[-1].removeprefix("*.").strip(".") for line in read_list(name, beside)
            )
