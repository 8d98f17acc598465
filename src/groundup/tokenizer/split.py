r"""Splitting: text → pieces that no merge crosses.

The patterns are the published ones. `\s` is written as the Unicode property it means elsewhere: Python's `\s` also
takes the four separators U+001C to U+001F, which tiktoken and Hugging Face do not.
"""

import regex

_BLANK = r"\p{White_Space}"
_NOT_BLANK = r"\P{White_Space}"

PUBLISHED = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""As written in GPT-2's encoder.py and tiktoken's openai_public.py (cl100k_base)."""

SPELLINGS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "cl100k",
}
"""Other ways in which files spell the same patterns."""


def compiled(name: str) -> "regex.Pattern[str]":
    """The pattern of that name, ready for `findall`."""
    source = PUBLISHED[name].replace(r"[^\s", rf"[^{_BLANK}").replace(r"\s", _BLANK).replace(r"\S", _NOT_BLANK)
    return regex.compile(source)


def named(source: str) -> str | None:
    """The name of a pattern as it is spelled in a file, or None."""
    known = {pattern: name for name, pattern in PUBLISHED.items()} | SPELLINGS
    return known.get(source)
