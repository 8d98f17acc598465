"""Filters: each looks at one cleaned document and keeps it, as it is or changed, or says why it should go."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, assert_never

import numpy as np

from groundup.corpus.clean import clean
from groundup.corpus.document import Document, Drop, Look
from groundup.corpus.safety import is_packaged
from groundup.corpus.settings import (
    C4,
    Boilerplate,
    ByExample,
    Characters,
    Contamination,
    CorpusSettings,
    Filter,
    FineWeb,
    Gopher,
    GopherRepetition,
    Language,
    Length,
    Markup,
    Perplexity,
    Personal,
    Toxicity,
    Urls,
    Words,
)
from groundup.errors import MissingError
from groundup.files import locate, sha256_of_file

FILTER = "filter: "
"""How the names of their files begin among a corpus' inputs."""


def looks(filters: Sequence[Filter], beside: Path) -> list[Look]:
    """The filters, with what they read loaded once.

    Args:
        beside: the folder of the recipe, in which files that the settings name are looked for first.
    """
    return [_look(settings, beside) for settings in filters]


def prepare(settings: CorpusSettings, beside: Path, directory: Path) -> tuple[CorpusSettings, list[dict[str, Any]]]:
    """Do once what filters need before `looks`: train the classifiers of which examples are given.

    Returns:
        The settings with the weights' file in those filters; and of each its file, precision and recall.
    """
    if not any(isinstance(asked, ByExample) and asked.file is None for asked in settings.filters):
        return settings, []
    from groundup.corpus.classifier import train_all

    return train_all(settings, beside, directory)


def files_of(filters: Sequence[Filter]) -> Iterator[str]:
    """The files and folders that filters read: lists, examples, weights."""
    for asked in filters:
        match asked:
            case Words():
                yield from (name for name in asked.lists if not is_packaged(name))
            case Urls():
                yield from (name for name in (*asked.domains, *asked.words) if name.endswith(".txt"))
            case ByExample():
                yield from (*asked.good, *asked.bad)
            case Language():
                yield from (asked.model,) if asked.model else ()
            case Contamination() if not asked.waived:
                yield from asked.items
        if isinstance(asked, ByExample | Toxicity) and asked.file is not None:
            yield asked.file


def digest_files(filters: Sequence[Filter], beside: Path, recorded: Mapping[str, str]) -> dict[str, str]:
    """What filters read → its sha256; of a folder, that of its files'. What is gone keeps the digest recorded."""
    digests = {}
    for name in files_of(filters):
        key = FILTER + name
        try:
            path = locate(name, beside, "a filter's file")
            files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
            digests[key] = hashlib.sha256("".join(map(sha256_of_file, files)).encode()).hexdigest()
        except MissingError:
            if key not in recorded:
                raise
            digests[key] = recorded[key]
    return digests


def _look(settings: Filter, beside: Path) -> Look:
    match settings:
        case Length():
            return partial(length, settings=settings)
        case Characters():
            return partial(characters, settings=settings)
        case Contamination():
            from groundup.corpus.contamination import contamination, read_items  # numba takes a third of a second

            return partial(contamination, settings=settings, items=read_items(settings, beside))
        case C4() | Gopher() | GopherRepetition() | FineWeb():
            from groundup.corpus import quality  # numba, where it is needed

            return partial(quality.RULES[type(settings)], settings=settings)
        case Language():
            from groundup.corpus import language

            return language.look(settings, beside)
        case Perplexity():
            from groundup.corpus.language import perplexity

            return partial(perplexity, settings=settings)
        case Boilerplate() | Markup():
            from groundup.corpus import boilerplate

            return partial(boilerplate.EDITS[type(settings)], settings=settings)
        case Words() | Toxicity() | Urls():
            from groundup.corpus import safety  # compiled loops: not imported where they do not run

            return safety.look(settings, beside)
        case ByExample():
            from groundup.corpus import classifier

            return classifier.look(settings, beside)
        case Personal():
            from groundup.corpus.personal import personal

            return partial(personal, settings=settings)
    assert_never(settings)


def judge(raw: Document, settings: CorpusSettings, filters: Sequence[Look]) -> tuple[Document, Drop | None]:
    """The cleaned document, and why it should go, if it should; one that could not be read goes as it is."""
    if raw.reason:
        return raw, Drop("read.broken", raw.reason)
    document = replace(raw, text=clean(raw.text, settings))
    if not document.text:
        return raw, Drop("read.empty", "empty")
    for look in filters:
        looked = look(document)
        if isinstance(looked, Drop):
            return document, looked
        document = looked
    return document, None


def length(document: Document, settings: Length) -> Document | Drop:
    n = len(document.text)
    if n < settings.minimum:
        return Drop("length.minimum", f"shorter than {settings.minimum:,} characters", n, settings.minimum)
    if settings.maximum is not None and n > settings.maximum:
        return Drop("length.maximum", f"longer than {settings.maximum:,} characters", n, settings.maximum)
    return document


def characters(document: Document, settings: Characters) -> Document | Drop:
    text = document.text
    from groundup.corpus.scan import character_classes, count_characters  # numba, where it is needed

    letters, not_space, replaced = count_characters(np.frombuffer(text.encode(), np.uint8), character_classes())
    broken = replaced / max(1, not_space)
    if broken > settings.replacement:
        why = f"more than {settings.replacement:.1%} replacement characters"
        return Drop("characters.replacement", why, broken, settings.replacement)
    if letters < settings.letters * not_space:
        why = f"less than {settings.letters:.0%} letters"
        return Drop("characters.letters", why, letters / not_space, settings.letters)
    return document
