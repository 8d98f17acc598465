"""Filters: each looks at one cleaned document and says why it should go, or None."""

import regex

from groundup.corpus.settings import Characters, Filter, Length

_WORDS = regex.compile(r"[\p{L}\p{M}]+")
_NOT_SPACE = regex.compile(r"\S+")


def refuse(text: str, filters: tuple[Filter, ...]) -> str | None:
    """The first filter's reason against this text, or None."""
    for settings in filters:
        match settings:
            case Length():
                reason = _length(text, settings)
            case Characters():
                reason = _characters(text, settings)
        if reason:
            return reason
    return None


def _length(text: str, settings: Length) -> str | None:
    if len(text) < settings.minimum:
        return f"shorter than {settings.minimum:,} characters"
    if settings.maximum is not None and len(text) > settings.maximum:
        return f"longer than {settings.maximum:,} characters"
    return None


def _characters(text: str, settings: Characters) -> str | None:
    not_space = sum(map(len, _NOT_SPACE.findall(text)))
    if text.count("\ufffd") > settings.replacement * not_space:
        return f"more than {settings.replacement:.1%} replacement characters"
    if sum(map(len, _WORDS.findall(text))) < settings.letters * not_space:
        return f"less than {settings.letters:.0%} letters"
    return None
