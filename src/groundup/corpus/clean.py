"""Cleaning: the same text, written one way."""

import ftfy
import regex

from groundup.corpus.settings import CleanWhitespace, CorpusSettings, RepairUnicode

_REPAIR = ftfy.TextFixerConfig(
    uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False, unescape_html=False, explain=False
)
"""Only what is broken; ligatures, wide characters and curled quotes are the author's choice."""

_SPACES_AT_LINE_END = regex.compile(r"(?<![ \t])[ \t]+$", regex.MULTILINE)
_EMPTY_LINES = regex.compile(r"\n{3,}")


def clean(text: str, settings: CorpusSettings) -> str:
    """Repair the characters and the whitespace of a text, as far as the settings say.

    >>> clean("donâ€™t \\r\\n", CorpusSettings(sources=("a.txt",)))
    'don’t'
    """
    match settings.unicode:
        case RepairUnicode():
            text = str(ftfy.fix_text(text, _REPAIR))
    match settings.whitespace:
        case CleanWhitespace():
            text = clean_whitespace(text)
    return text


def clean_whitespace(text: str) -> str:
    """One kind of line end, no spaces at line ends, at most one empty line, none at either end.

    >>> clean_whitespace(" one  \\r\\n\\r\\n\\r\\n two ")
    'one\\n\\n two'
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _SPACES_AT_LINE_END.sub("", text)
    return str(_EMPTY_LINES.sub("\n\n", text)).strip()
