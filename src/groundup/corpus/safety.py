"""Safety: word lists, a classifier of toxic text, block lists of addresses."""

import re
from bisect import bisect
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
WORD = re.compile(r"[^\W_]+")
"""Faster than `regex`, and cuts at vowel signs of Indic scripts: enough to see what a text may hold."""
ALONE = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
"""Signs of scripts without spaces between words: a listed word may begin and end at any, and each counts as one."""
SHOWN = 80
"""Characters of a line that was taken out, in its note."""
IN_WORD = r"[\p{L}\p{M}\p{N}]"


def look(settings: Words | Toxicity | Urls, beside: Path) -> Look:
    """A filter with its lists or weights read."""
    match settings:
        case Words():
            return partial(words, settings=settings, lists=Lists(settings, beside))
        case Toxicity():
            from groundup.corpus.classifier import Classifier  # compiled

            own = settings.file and locate(settings.file, beside, "classifier")
            classifier = Classifier.load(own or PACKAGED / "toxicity.safetensors")
            return partial(toxicity, settings=settings, classifier=classifier)
        case Urls():
            domains, listed = (frozenset(_entries(names, beside)) for names in (settings.domains, settings.words))
            return partial(urls, settings=settings, domains=domains, words=listed)


def is_packaged(name: str) -> bool:
    """Whether a word list of this name is in the package."""
    return _packaged(name).is_file()


def _packaged(name: str) -> Path:
    return PACKAGED / "words" / f"{name}.txt"


def read_list(name: str, beside: Path) -> list[str]:
    """The lines of a file, or of a list of the package by its language, in small letters and without those after #."""
    path = _packaged(name) if is_packaged(name) else locate(name, beside, "list")
    with reading(path) as stream:
        lines = stream.read().decode("utf-8-sig", "replace").casefold().splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]


class Phrases:
    """Words and phrases by the first word of each; those in unspaced scripts, or that begin with no word, by ''."""

    def __init__(self, phrases: Iterable[str]) -> None:
        self._by_first = defaultdict[str, dict[str, set[str]]](dict)
        for phrase in phrases:
            words = [] if regex.search(ALONE, phrase) or not WORD.match(phrase) else WORD.findall(phrase)
            self._by_first[words[0] if words else ""][phrase] = set(words)

    def find(self, text: str) -> list[tuple[int, str]]:
        """Where phrases begin in a casefolded text, and which they are; none within another.

        >>> Phrases(["ball gag", "ass", "乳"]).find("a class, an ass; a ball\\n gag 牛乳")
        [(12, 'ass'), (19, 'ball gag'), (30, '乳')]
        """
        here, found = {*WORD.findall(text), ""}, list[tuple[int, int, str]]()
        for first in here & self._by_first.keys():
            for phrase, words in self._by_first[first].items():
                if words <= here and phrase.split(" ")[0] in text:
                    found += ((match.start(), -match.end(), phrase) for match in _pattern(phrase).finditer(text))
        kept = list[tuple[int, str]]()
        end = 0
        for start, minus_end, phrase in sorted(found):
            if start >= end:
                end = -minus_end
                kept.append((start, phrase))
        return kept


@cache
def _pattern(phrase: str) -> "regex.Pattern[str]":
    words = r"\s++".join(map(regex.escape, phrase.split()))
    begins, ends = (f"(?:(?{no}{IN_WORD})|(?{yes}{ALONE}))" for no, yes in (("<!", "="), ("!", "<=")))
    return regex.compile(f"{begins}{words}{ends}")


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
            if not language or name.split("-")[0] == language or not is_packaged(name)
            for phrase in phrases
        )


def words(document: Document, settings: Words, lists: Lists) -> Document | Drop:
    text = document.text.casefold()
    found = lists.of(document.language if settings.by_language else "").find(text)
    if settings.action == "line":
        ends = [match.start() for match in re.finditer("\n", text)]
        return without_lines(document, {bisect(ends, start) for start, _ in found}, "words.line")
    if len(found) > settings.count:
        most = max(settings.count, settings.share * count_words(text))
        if len(found) > most:
            return Drop("words.listed", f"words of a list: {found[0][1]}", len(found), most)
    return document


def count_words(text: str) -> int:
    """
    >>> count_words("It's स्तन 牛乳")
    5
    """
    return len(regex.findall(rf"{ALONE}|[[\p{{L}}\p{{M}}\p{{N}}]--{ALONE}]+", text, flags=regex.V1))


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
