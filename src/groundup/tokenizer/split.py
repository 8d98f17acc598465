r"""Splitting: text → pre-tokens, which no merge crosses.

`\s` and `\w` are compiled as what they mean elsewhere: Python's `\s` also takes the four separators U+001C to U+001F,
which tiktoken and Hugging Face do not. What is a letter or a number is what Unicode 16 says, as in tiktoken, whatever
the version of the library: a vocabulary cuts a text the same for good.
"""

import functools
import itertools
from importlib import resources

import regex

from groundup.errors import SettingsError
from groundup.words import nearest

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = "\u0e40-\u0e44\u0ec0-\u0ec4"  # Thai and Lao vowels that are written before the consonant, so begin a syllable
_SYLLABIC = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"

PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|" + _SPACES,
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"{_CONTRACTION}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
    "llama3": rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    "qwen2": rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    "smollm": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+",
    "digits3": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "unspaced": rf"{_CONTRACTION}|\p{{Han}}+|\p{{Hiragana}}+|[\p{{Katakana}}ー]+"
    rf"|[{_BEFORE}]+(?:(?![{_BEFORE}])[{_SYLLABIC}])*|(?:(?![{_BEFORE}])(?=[\p{{L}}\p{{M}}])[{_SYLLABIC}])+"
    rf"|[^\r\n\p{{L}}\p{{N}}]?(?:(?![\p{{Han}}\p{{Hiragana}}\p{{Katakana}}ー{_SYLLABIC}])[\p{{L}}\p{{M}}])+"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
    "characters": r"[\s\S]",
}
r"""gpt2, cl100k, o200k: as in tiktoken's openai_public.py, without the possessive `+` that change no match.
llama3, qwen2, smollm: as in the tokenizer.json of these models; smollm's two steps, digits apart and then GPT-2's
pattern, are one here. digits3: GPT-2's, with digits by three. unspaced: for scripts that put no spaces between words:
runs of one script (Han, Hiragana, Katakana, Thai …), Thai and Lao also cut before a vowel that begins a syllable."""

_SPACE = r"\p{White_Space}"
_WORD = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}"
r"""`\w` of Oniguruma, Hugging Face's library for expressions; outside of brackets it also takes `²³¹¼½¾`."""
_PARTS = regex.compile(r"\[\\s\\S\]|\\[pP]\{[^}]*\}|\\.|\[:\^?\w+:\]|\[\^?|\(\?[a-z-]+[:)]|&&|.", regex.DOTALL)
_AMBIGUOUS = {r"\b", r"\B", r"\Z", r"\h", r"\H", r"\R", r"\X", r"\K", r"\G", r"\g", r"\k", "&&"}


@functools.lru_cache(maxsize=64)
def compiled(pattern: str) -> "regex.Pattern[str]":
    """A pattern by its name, or a regular expression of one's own.

    Raises:
        SettingsError: neither a name nor a regular expression, or one that means something else in other libraries.
    """
    if pattern not in PATTERNS and pattern.isidentifier():
        raise SettingsError(f"unknown split pattern {pattern!r}; {nearest(pattern, PATTERNS)}")
    source = _with_one_meaning(PATTERNS.get(pattern, pattern))
    try:
        return regex.compile(source)
    except regex.error as error:
        raise SettingsError(f"the split pattern {pattern!r} is not a regular expression: {error}") from None


def _with_one_meaning(source: str) -> str:
    r"""An expression whose matches here are those in Hugging Face's library.

    Raises:
        SettingsError: naming what the two read differently.

    >>> _with_one_meaning(r"[^\s\p{L}]+\z")
    '[^\\p{White_Space}\\p{L}]+\\Z'
    """
    parts: list[str] = []
    in_class = False
    for part in _PARTS.findall(source):
        opens = part in ("[", "[^")
        anchor = part in ("^", "$") and not in_class
        flags = part.startswith("(?") and part != "(?i:"
        if anchor or flags or part in _AMBIGUOUS or (in_class and (opens or part in (r"\W", r"\S"))):
            raise SettingsError(
                f"the split pattern {source!r} has {part}, which other libraries read differently: say it otherwise, "
                r"such as \z for the end of the text"
            )
        parts.append(_MEANINGS.get((part, in_class), part))
        in_class = opens or (in_class and part != "]")
    return "".join(parts)


_MEANINGS = {
    (r"[\s\S]", False): "(?s:.)",
    (r"\s", True): _SPACE,
    (r"\s", False): _SPACE,
    (r"\S", False): r"\P{White_Space}",
    (r"\w", True): _WORD,
    (r"\w", False): f"[{_WORD}²³¹¼½¾]",
    (r"\W", False): f"[^{_WORD}²³¹¼½¾]",
    (r"\z", False): r"\Z",
}


@functools.cache
def unassigned() -> list[tuple[int, int]]:
    """First and last of each run of code points to which Unicode 16 gives no meaning."""
    lines = (resources.files("groundup.data") / "unicode-16-unassigned.txt").read_text("utf-8").split()
    return [(int(first, 16), int(last, 16)) for first, last in (line.split("-") for line in lines)]


CHANGED = {"\u0295": "b"}
"""A letter that has been given another class since, and one of its class in Unicode 16: Ll."""


@functools.cache
def _unassigned() -> "regex.Pattern[str]":
    return regex.compile("[" + "".join(f"\\U{first:08X}-\\U{last:08X}" for first, last in unassigned()) + "]")


def _as_in_unicode_16(text: str) -> str:
    """As many characters, each of the class that the text's has in Unicode 16."""
    if text.isascii():
        return text
    for changed, same in CHANGED.items():
        text = text.replace(changed, same)
    return str(_unassigned().sub("\uffff", text))


def pre_tokens(text: str, pattern: str) -> list[str]:
    r"""The pre-tokens of a text, in order, nothing left out: what one's own expression does not match is one too.

    >>> pre_tokens("It's 12 o'clock", "gpt2"), pre_tokens("one-two", r"\w+")
    (['It', "'s", ' 12', ' o', "'", 'clock'], ['one', '-', 'two'])
    """
    cut = compiled(pattern)
    if pattern in PATTERNS:  # these match everywhere
        known = _as_in_unicode_16(text)
        found = list(cut.findall(known))
        if known == text:
            return found
        ends = [0, *itertools.accumulate(map(len, found))]
        return [text[first:last] for first, last in itertools.pairwise(ends)]
    found = []
    end = 0
    for match in cut.finditer(text):
        found += [text[end : match.start()], match[0]]
        end = match.end()
    return [pre_token for pre_token in (*found, text[end:]) if pre_token]


def named(source: str) -> str | None:
    """The name of a pattern as it is spelled in a file, or None."""
    return {spelling: name for name, spelling in (*_SPELLINGS, *PATTERNS.items())}.get(source)


_SPELLINGS = (
    ("gpt2", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
    ("gpt2", r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"),
    (
        "cl100k",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
        r"|\s+(?!\S)|\s",
    ),
)
"""Other ways in which files spell the same patterns."""
