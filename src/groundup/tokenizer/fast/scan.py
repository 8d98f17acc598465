"""Splitting, compiled: where the pre-tokens of UTF-8 text end. The plain twin is `split.pre_tokens`.

Each published pattern is a few runs of characters of one class, so one pass over the bytes finds what the regular
expression finds by trying its alternatives in turn. Comments quote the alternative that a step stands for.
"""

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import regex
from numba.cpython.unsafe.numbers import trailing_zeros

from groundup.compiled.loops import compiled
from groundup.tokenizer import split
from groundup.tokenizer.fast.compiled import byte_at, word_at

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]

OTHER, LOWER, UPPER, CASELESS, MARK, NUMBER, SPACE, NEWLINE = range(8)
_CLASSES = (
    (LOWER, r"\p{Ll}"),
    (UPPER, r"[\p{Lu}\p{Lt}]"),
    (CASELESS, r"[\p{Lm}\p{Lo}]"),
    (MARK, r"\p{M}"),
    (NUMBER, r"\p{N}"),
    (SPACE, r"\p{White_Space}"),
    (NEWLINE, r"[\r\n]"),
)
N_CODE_POINTS = 0x110000
NOTHING = -1


@functools.cache
def character_classes() -> Bytes:
    """(0x110000,) the class of each code point in Unicode 16, as for the plain twin."""
    codes = np.arange(N_CODE_POINTS, dtype="<u4")
    codes[0xD800:0xE000] = 0  # surrogates, which no UTF-8 holds
    characters = codes.tobytes().decode("utf-32-le")
    classes = np.full(N_CODE_POINTS, OTHER, np.uint8)
    for number, pattern in _CLASSES:
        for match in regex.finditer(pattern + "+", characters):
            classes[match.start() : match.end()] = number
    for first, last in split.unassigned():
        classes[first : last + 1] = OTHER
    for changed, same in split.CHANGED.items():
        classes[ord(changed)] = classes[ord(same)]
    return classes


def pre_token_ends(text: Bytes, offsets: Offsets, pattern: str) -> Offsets:
    """The end of each pre-token of some documents, empty ones having none.

    Args:
        text: the documents, valid UTF-8, one after another.
        offsets: (documents + 1,) where each begins, then where the last one ends.
        pattern: a name or a regular expression, as in `split.pre_tokens`.
    """
    if pattern in SCANNERS:
        scanner, variant = SCANNERS[pattern]
        ends: Offsets = np.empty(int(offsets[-1] - offsets[0]), np.int64)
        found = scanner(text, offsets, character_classes(), variant, ends)
        return ends[:found]
    sizes = [
        len(pre_token.encode())
        for first, last in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        for pre_token in split.pre_tokens(bytes(text[first:last]).decode(), pattern)
    ]
    return np.cumsum([int(offsets[0]), *sizes], dtype=np.int64)[1:]


@compiled
def _character(text, at, end, classes):
    """Class and width in bytes of the character at `at`: class + 16 x width."""
    first = byte_at(text, at)
    if first < 0x80:
        return np.int64(classes[first]) + 16
    width = np.int64(2) if first < 0xE0 else (np.int64(3) if first < 0xF0 else np.int64(4))
    if at + width > end:  # not UTF-8: the rest is one character of no class
        return OTHER + 16 * (end - at)
    code = first & (0xFF >> (width + 1))
    for i in range(1, width):
        code = code << 6 | byte_at(text, at + i) & 0x3F
    if code >= N_CODE_POINTS:
        return OTHER + 16 * width
    return np.int64(classes[code]) + 16 * width


@compiled
def _letters_end(text, at, end, classes):
    r"""Where `\p{L}*` that begins at `at` ends."""
    while at < end:
        if at + 8 <= end:  # eight bytes at a time: which of them are not ASCII letters?
            word = word_at(text, at)
            low = (word | np.uint64(0x2020202020202020)) & np.uint64(0x7F7F7F7F7F7F7F7F)
            letter = (low + np.uint64(0x1F1F1F1F1F1F1F1F)) & ~(low + np.uint64(0x0505050505050505)) & ~word
            others = ~letter & np.uint64(0x8080808080808080)
            if others == 0:
                at += 8
                continue
            at += np.int64(trailing_zeros(others)) >> 3
        character = _character(text, at, end, classes)
        if not LOWER <= character & 15 <= CASELESS:
            return at
        at += character >> 4
    return at


@compiled
def _others_end(text, at, end, classes):
    r"""Where `[^\s\p{L}\p{N}]*` that begins at `at` ends."""
    while at < end:
        character = _character(text, at, end, classes)
        if character & 15 != OTHER and character & 15 != MARK:
            return at
        at += character >> 4
    return at


@compiled
def _numbers_end(text, at, end, classes, at_most):
    r"""Where `\p{N}{0,at_most}` that begins at `at` ends."""
    while at < end and at_most > 0:
        character = _character(text, at, end, classes)
        if character & 15 != NUMBER:
            return at
        at += character >> 4
        at_most -= 1
    return at


@compiled
def _contraction_end(text, at, end, any_case):
    """Where `'(?:[sdmt]|ll|ve|re)` that begins at `at` ends, `at` itself if there is none."""
    if at + 1 >= end or byte_at(text, at) != 0x27:
        return at
    fold = 0x20 if any_case else 0
    first = byte_at(text, at + 1) | fold
    if first == 0x73 or first == 0x64 or first == 0x6D or first == 0x74:  # s d m t
        return at + 2
    if at + 2 >= end:
        return at
    second = byte_at(text, at + 2)
    if any_case and byte_at(text, at + 1) == 0xC5 and second == 0xBF:  # ſ, whose capital is S
        return at + 3
    second |= fold
    if first == 0x6C and second == 0x6C:  # ll
        return at + 3
    if (first == 0x76 or first == 0x72) and second == 0x65:  # ve re
        return at + 3
    return at


@compiled
def _spaces_end(text, at, end, classes, lines, whole_before):
    r"""Where the pre-token of whitespace that begins at `at` ends: `\s+(?!\S)|\s+`.

    Args:
        lines: 1 puts `\s*[\r\n]+|` before it, 2 also `\s+\z|` before that.
        whole_before: a class before which no space is left over.
    """
    start, last, after_lines, follows = at, at, at, NOTHING
    while at < end:
        character = _character(text, at, end, classes)
        kind = character & 15
        if kind != SPACE and kind != NEWLINE:
            follows = kind
            break
        last = at
        at += character >> 4
        if kind == NEWLINE:
            after_lines = at
    if follows < 0 and lines == 2:
        return at
    if lines > 0 and after_lines > start:
        return after_lines
    if follows < 0 or follows == whole_before or last == start:
        return at
    return last


@compiled
def _scan_gpt2(text, offsets, classes, digits, ends):
    """gpt2; with `digits` 3 digits3, with 1 smollm.

    Returns:
        how many entries of `ends`, (bytes of text,), were filled.
    """
    found = 0
    for document in range(len(offsets) - 1):
        at, end = offsets[document], offsets[document + 1]
        while at < end:
            body = at
            first = byte_at(text, at)
            if first == 0x27:
                at = _contraction_end(text, at, end, False)
            if at == body:
                if first == 0x20 and at + 1 < end:
                    body = at + 1  # ` ?`, if what follows takes a space before it
                character = _character(text, body, end, classes)
                kind = character & 15
                if LOWER <= kind <= CASELESS:
                    at = _letters_end(text, body + (character >> 4), end, classes)
                elif kind in (OTHER, MARK):
                    at = _others_end(text, body + (character >> 4), end, classes)
                elif kind == NUMBER and (digits == 0 or body == at):
                    at = _numbers_end(text, body, end, classes, digits if digits > 0 else end)
                else:
                    at = _spaces_end(text, at, end, classes, 0, NUMBER if digits == 1 else NOTHING)
            ends[found] = at
            found += 1
    return found


@compiled
def _scan_cl100k(text, offsets, classes, variant, ends):
    """cl100k: variant 0; llama3: 1; qwen2: 2."""
    found = 0
    digits = 1 if variant == 2 else 3
    lines = 2 if variant == 0 else 1
    for document in range(len(offsets) - 1):
        at, end = offsets[document], offsets[document + 1]
        while at < end:
            start = at
            first = byte_at(text, at)
            if first == 0x27:
                at = _contraction_end(text, at, end, True)
            if at == start:
                character = _character(text, at, end, classes)
                kind = character & 15
                after = at + (character >> 4)
                if LOWER <= kind <= CASELESS:
                    at = _letters_end(text, after, end, classes)
                elif kind == NUMBER:
                    at = _numbers_end(text, at, end, classes, digits)
                elif kind == NEWLINE:
                    at = _spaces_end(text, at, end, classes, lines, NOTHING)
                else:
                    follows = _character(text, after, end, classes) if after < end else SPACE
                    if LOWER <= follows & 15 <= CASELESS:  # `[^\r\n\p{L}\p{N}]?\p{L}+`
                        at = _letters_end(text, after + (follows >> 4), end, classes)
                    elif kind == SPACE and not (first == 0x20 and (follows & 15 == OTHER or follows & 15 == MARK)):
                        at = _spaces_end(text, at, end, classes, lines, NOTHING)
                    else:  # ` ?[^\s\p{L}\p{N}]+[\r\n]*`
                        at = _others_end(text, after, end, classes)
                        while at < end and (byte_at(text, at) == 0x0A or byte_at(text, at) == 0x0D):
                            at += 1
            ends[found] = at
            found += 1
    return found


@compiled
def _word_end(text, at, end, classes, upper_alone):
    r"""Where a word of o200k that begins at `at` ends, `at` itself if there is none.

    U is `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`, L is `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`: `U*L+`, with `upper_alone` `U+L*`.
    """
    start, after_both = at, at
    while at < end:  # U*, and where the last of its characters that is also in L ends
        character = _character(text, at, end, classes)
        kind = character & 15
        if kind != UPPER and kind != CASELESS and kind != MARK:
            break
        at += character >> 4
        if kind != UPPER:
            after_both = at
    after_upper = at
    while at < end:  # L+
        character = _character(text, at, end, classes)
        kind = character & 15
        if kind != LOWER and kind != CASELESS and kind != MARK:
            break
        at += character >> 4
    if at > after_upper:
        return at
    if after_both > start:  # `U*` gives back until `L+` has one
        return after_both
    return after_upper if upper_alone else start


@compiled
def _scan_o200k(text, offsets, classes, variant, ends):
    """o200k."""
    found = 0
    for document in range(len(offsets) - 1):
        at, end = offsets[document], offsets[document + 1]
        while at < end:
            start = at
            first = byte_at(text, at)
            character = _character(text, at, end, classes)
            kind = character & 15
            after = at + (character >> 4)
            if kind == NUMBER:
                at = _numbers_end(text, at, end, classes, 3)
            elif kind == NEWLINE:
                at = _spaces_end(text, at, end, classes, 1, NOTHING)
            else:
                word = start
                body = start if LOWER <= kind <= CASELESS else after
                for upper_alone in range(2):  # the two alternatives, each with `[^\r\n\p{L}\p{N}]?` and without
                    word = _word_end(text, body, end, classes, upper_alone == 1)
                    if word > body:
                        break
                    word = _word_end(text, start, end, classes, upper_alone == 1) if kind == MARK else start
                    if word > start:
                        break
                if word > start:
                    at = _contraction_end(text, word, end, True)
                else:
                    follows = _character(text, after, end, classes) & 15 if after < end else SPACE
                    if kind == SPACE and not (first == 0x20 and follows in (OTHER, MARK)):
                        at = _spaces_end(text, at, end, classes, 1, NOTHING)
                    else:  # ` ?[^\s\p{L}\p{N}]+[\r\n/]*`
                        at = _others_end(text, after, end, classes)
                        while at < end and (
                            byte_at(text, at) == 0x0A or byte_at(text, at) == 0x0D or byte_at(text, at) == 0x2F
                        ):
                            at += 1
            ends[found] = at
            found += 1
    return found


SCANNERS: dict[str, tuple[Callable[..., int], int]] = {
    "gpt2": (_scan_gpt2, 0),
    "digits3": (_scan_gpt2, 3),
    "smollm": (_scan_gpt2, 1),
    "cl100k": (_scan_cl100k, 0),
    "llama3": (_scan_cl100k, 1),
    "qwen2": (_scan_cl100k, 2),
    "o200k": (_scan_o200k, 0),
}
