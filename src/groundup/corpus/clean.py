"""Cleaning: the same text, written one way.

Most texts need no repair, and ftfy takes a quarter of a second for a megabyte to find that out. So `is_sound` looks
first for what ftfy could change: a superset of it, found in a few milliseconds.
"""

import functools
import re
import unicodedata

import ftfy
import numpy as np
from ftfy.badness import MOJIBAKE_CATEGORIES

from groundup.corpus.settings import CleanWhitespace, CorpusSettings, RepairUnicode

_REPAIR = ftfy.TextFixerConfig(
    uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False, unescape_html=False, explain=False
)
"""Only what is broken; ligatures, wide characters and curled quotes are the author's choice."""

_ALONE = "\0-\x08\x0b\r\x0e-\x1f\x7f-\x9f\u2028\u2029\u206a-\u206f\ufeff\ufff9-\ufffc"
"""What ftfy removes, or replaces, wherever it stands: control characters and other line ends."""
_PAIRS = (
    ("{bad}{lower_accented}{upper_accented}{box}{start}{end}{currency}{numeric}{law}{lower}{upper}", "{bad}"),
    ("{bad}", "{lower_accented}{upper_accented}{box}{start}{end}{currency}{numeric}{law}"),
    ("{lower_accented}{lower}{box}{end}{currency}{numeric}", "{upper_accented}"),
    ("{box}{end}{currency}{numeric}", "{lower_accented}"),
    ("{lower_accented}{upper_accented}{box}{end}", "{currency}"),
    ("{upper_accented}{box}", "{numeric}{law}"),
    ("{start}", "{numeric}"),
    ("{end}{currency}{numeric}{box}", "{start}"),
    ("{box}", "{kaomoji}{end}"),
    ("{lower_accented}{upper_accented}{currency}{numeric}{start}{end}{law}", "{box}"),
    ("{lower_accented}{upper_accented}", "{start}{end}"),
    ("Œœ", r"\0-@\[-`{{-\U0010ffff"),
    ("{upper_accented}", "°"),
    ("ÂÃÎÐ", r"€œŠš¢£Ÿž\xa0\xad®©°·»¡–—´ {start}{end}"),
    ("×à√≈", "²³µ¹¼½¾±∂†≠®™´≤≥¥ø°¢"),
    ("ØÙ", "{common}{currency}{bad}{numeric}{start}ŸŠ®°µ»"),
    ("‚", "Äâó"),
    ("вβā", "Ђ€"),
    ("ВГРСΒΓΞΟ", "{bad}{start}{end}{currency}°µў"),
)
"""Two characters in a row: each alternative of `ftfy.badness.BADNESS_RE` has one of these pairs, so ftfy leaves a line
without them as it is; tests/corpus/test_clean.py compares the two."""


def clean(text: str, settings: CorpusSettings) -> str:
    """Repair the characters and the whitespace of a text, as far as the settings say.

    >>> clean("donâ€™t \\r\\n", CorpusSettings(sources=("a.txt",)))
    'don’t'
    """
    match settings.unicode:
        case RepairUnicode():
            text = repair(text)
    match settings.whitespace:
        case CleanWhitespace():
            text = clean_whitespace(text)
    return text


def repair(text: str) -> str:
    """What ftfy makes of a text; it is asked for those lines alone that it could change."""
    if "\r" in text and "\r" not in (unix := text.replace("\r\n", "\n")):
        text = unix  # as ftfy does at each line end
    if is_sound(text):
        return text
    lines = re.findall(r".*\n|.+", text)
    return "".join(line if is_sound(line) else str(ftfy.fix_text(line, _REPAIR)) for line in lines)


def is_sound(text: str) -> bool:
    """Whether ftfy with these settings would surely leave a text as it is.

    >>> is_sound("“Größe”, he said…"), is_sound("GrÃ¶ÃŸe"), is_sound("e\\u0301")
    (True, False, False)
    """
    from groundup.corpus.scan import has_suspect  # numba, where it is needed

    raw = text.encode()
    words = np.frombuffer(raw, np.uint64, len(raw) // 8)
    suspect = has_suspect(np.frombuffer(raw, np.uint8), words, suspects())
    return not suspect and unicodedata.is_normalized("NFC", text)


@functools.cache
def suspects() -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    """(0x10000,) the bits of each character that `scan.has_suspect` looks at."""
    named = {name.replace("_punctuation", "").replace("_common", ""): of for name, of in MOJIBAKE_CATEGORIES.items()}
    characters = "".join(map(chr, range(0x10000)))
    bits = np.zeros(0x10000, np.uint64)
    for number, sides in enumerate(_PAIRS):
        for side, bit in zip(sides, (number + 32, number), strict=True):
            for match in re.finditer(f"[{side.format(**named)}]+", characters):
                bits[match.start() : match.end()] |= np.uint64(1 << bit)
    for match in re.finditer(f"[{_ALONE}]+", characters):
        bits[match.start() : match.end()] |= np.uint64(1 << 63)
    return bits


def clean_whitespace(text: str) -> str:
    """One kind of line end, no spaces at line ends, at most one empty line, none at either end.

    >>> clean_whitespace(" one  \\r\\n\\r\\n\\r\\n two ")
    'one\\n\\n two'
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if " \n" in text or "\t\n" in text:
        text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.strip()
