"""Filters: each looks at one cleaned document and keeps it, as it is or changed, or says why it should go."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import assert_never

import numpy as np

from groundup.corpus.clean import clean
from groundup.corpus.document import Document, Drop, Look
from groundup.corpus.settings import C4, Characters, CorpusSettings, Filter, FineWeb, Gopher, GopherRepetition, Length


def looks(filters: Sequence[Filter], beside: Path) -> list[Look]:
    """The filters, with what they read loaded once.

    Args:
        beside: the folder of the recipe, in which files that the settings name are looked for first.
    """
    return [_look(settings, beside) for settings in filters]


def _look(settings: Filter, beside: Path) -> Look:
    match settings:
        case Length():
            return partial(length, settings=settings)
        case Characters():
            return partial(characters, settings=settings)
        case C4() | Gopher() | GopherRepetition() | FineWeb():
            from groundup.corpus import quality  # numba, where it is needed

            return quality.look(settings)
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
