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

from groundup.tokenizer import split
from groundup.tokenizer.fast.compiled import byte_at, compiled, word_at

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]

OTHER, LOWER, UPPER, CASELESS, MARK, NUMBER, BLANK, NEWLINE = range(8)
_CLASSES = (
    (LOWER, r"\p{Ll}"),
    (UPPER, r"[\p{Lu}\p{Lt}]"),
    (CASELESS, r"[\p{Lm}\p{Lo}]"),
    (MARK, r"\p{M}"),
    (NUMBER, r"\p{N}"),
    (BLANK, r"\p{White_Space}"),
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


def pre_token_ends(text: Bytes, offsets: Places, pattern: str) -> Places:
    """The end of each pre-token of some documents, empty ones having none.

    Args:
        text: the documents, valid UTF-8, one after another.
        offsets: (documents + 1,) where each begins, then where the last one ends.
        pattern: a name or a regular expression, as in `split.pre_tokens`.
    """
    if pattern in SCANNERS:
        scanner, variant = SCANNERS[pattern]
        ends: Places = np.empty(int(offsets[-1] - offsets[0]), np.int64)
        found = scanner(text, offsets, character_classes(), variant, ends)
        return ends[:found]
    sizes = [
        len(pre_token.encode())
        for first, last in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        for pre_token in split.pre_tokens(bytes(text[first:last]).decode(), pattern)
    ]
    return np.cumsum([int(offsets[0]), *sizes], dtype=np.int64)[1:]


@compiled
def _character(text, place, end, classes):
    """Class and width in bytes of the character at `place`, as class + 16 x width."""
    first = byte_at(text, place)
    if first < 0x80:
        return np.int64(classes[first]) + 16
    width = np.int64(2) if first < 0xE0 else (np.int64(3) if first < 0xF0 else np.int64(4))
    if place + width > end:  # not UTF-8: the rest is one character of no class
        return OTHER + 16 * (end - place)
    code = first & (0xFF >> (width + 1))
    for i in range(1, width):
        code = code << 6 | byte_at(text, place + i) & 0x3F
    if code >= N_CODE_POINTS:
        return OTHER + 16 * width
    return np.int64(classes[code]) + 16 * width


@compiled
def _letters_end(text, place, end, classes):
    r"""Where `\p{L}*` that begins at `place` ends."""
    while place < end:
        if place + 8 <= end:  # eight bytes at a time: which of them are not ASCII letters?
            word = word_at(text, place)
            low = (word | np.uint64(0x2020202020202020)) & np.uint64(0x7F7F7F7F7F7F7F7F)
            letter = (low + np.uint64(0x1F1F1F1F1F1F1F1F)) & ~(low + np.uint64(0x0505050505050505)) & ~word
            others = ~letter & np.uint64(0x8080808080808080)
            if others == 0:
                place += 8
                continue
            place += np.int64(trailing_zeros(others)) >> 3
        character = _character(text, place, end, classes)
        if not LOWER <= character & 15 <= CASELESS:
            return place
        place += character >> 4
    return place


@compiled
def _others_end(text, place, end, classes):
    r"""Where `[^\s\p{L}\p{N}]*` that begins at `place` ends."""
    while place < end:
        character = _character(text, place, end, classes)
        if character & 15 != OTHER and character & 15 != MARK:
            return place
        place += character >> 4
    return place


@compiled
def _numbers_end(text, place, end, classes, at_most):
    r"""Where `\p{N}{0,at_most}` that begins at `place` ends."""
    while place < end and at_most > 0:
        character = _character(text, place, end, classes)
        if character & 15 != NUMBER:
            return place
        place += character >> 4
        at_most -= 1
    return place


@compiled
def _contraction_end(text, place, end, any_case):
    """Where `'(?:[sdmt]|ll|ve|re)` that begins at `place` ends, `place` itself if there is none."""
    if place + 1 >= end or byte_at(text, place) != 0x27:
        return place
    fold = 0x20 if any_case else 0
    first = byte_at(text, place + 1) | fold
    if first == 0x73 or first == 0x64 or first == 0x6D or first == 0x74:  # s d m t
        return place + 2
    if place + 2 >= end:
        return place
    second = byte_at(text, place + 2)
    if any_case and byte_at(text, place + 1) == 0xC5 and second == 0xBF:  # ſ, whose capital is S
        return place + 3
    second |= fold
    if first == 0x6C and second == 0x6C:  # ll
        return place + 3
    if (first == 0x76 or first == 0x72) and second == 0x65:  # ve re
        return place + 3
    return place


@compiled
def _blanks_end(text, place, end, classes, lines, whole_before):
    r"""Where the pre-token of blanks that begins at `place` ends: `\s+(?!\S)|\s+`.

    Args:
        lines: 1 puts `\s*[\r\n]+|` before it, 2 also `\s+\z|` before that.
        whole_before: a class before which no blank is left over.
    """
    start, last, after_lines, follows = place, place, place, NOTHING
    while place < end:
        character = _character(text, place, end, classes)
        kind = character & 15
        if kind != BLANK and kind != NEWLINE:
            follows = kind
            break
        last = place
        place += character >> 4
        if kind == NEWLINE:
            after_lines = place
    if follows < 0 and lines == 2:
        return place
    if lines > 0 and after_lines > start:
        return after_lines
    if follows < 0 or follows == whole_before or last == start:
        return place
    return last


@compiled
def _scan_gpt2(text, offsets, classes, digits, ends):
    """gpt2; with `digits` 3 digits3, with 1 smollm.

    Returns:
        how many entries of `ends`, (bytes of text,), were filled.
    """
    found = 0
    for document in range(len(offsets) - 1):
        place, end = offsets[document], offsets[document + 1]
        while place < end:
            body = place
            first = byte_at(text, place)
            if first == 0x27:
                place = _contraction_end(text, place, end, False)
            if place == body:
                if first == 0x20 and place + 1 < end:
                    body = place + 1  # ` ?`, if what follows takes a blank before it
                character = _character(text, body, end, classes)
                kind = character & 15
                if LOWER <= kind <= CASELESS:
                    place = _letters_end(text, body + (character >> 4), end, classes)
                elif kind in (OTHER, MARK):
                    place = _others_end(text, body + (character >> 4), end, classes)
                elif kind == NUMBER and (digits == 0 or body == place):
                    place = _numbers_end(text, body, end, classes, digits if digits > 0 else end)
                else:
                    place = _blanks_end(text, place, end, classes, 0, NUMBER if digits == 1 else NOTHING)
            ends[found] = place
            found += 1
    return found


@compiled
def _scan_cl100k(text, offsets, classes, variant, ends):
    """cl100k: variant 0; llama3: 1; qwen2: 2."""
    found = 0
    digits = 1 if variant == 2 else 3
    lines = 2 if variant == 0 else 1
    for document in range(len(offsets) - 1):
        place, end = offsets[document], offsets[document + 1]
        while place < end:
            start = place
            first = byte_at(text, place)
            if first == 0x27:
                place = _contraction_end(text, place, end, True)
            if place == start:
                character = _character(text, place, end, classes)
                kind = character & 15
                after = place + (character >> 4)
                if LOWER <= kind <= CASELESS:
                    place = _letters_end(text, after, end, classes)
                elif kind == NUMBER:
                    place = _numbers_end(text, place, end, classes, digits)
                elif kind == NEWLINE:
                    place = _blanks_end(text, place, end, classes, lines, NOTHING)
                else:
                    follows = _character(text, after, end, classes) if after < end else BLANK
                    if LOWER <= follows & 15 <= CASELESS:  # `[^\r\n\p{L}\p{N}]?\p{L}+`
                        place = _letters_end(text, after + (follows >> 4), end, classes)
                    elif kind == BLANK and not (first == 0x20 and (follows & 15 == OTHER or follows & 15 == MARK)):
                        place = _blanks_end(text, place, end, classes, lines, NOTHING)
                    else:  # ` ?[^\s\p{L}\p{N}]+[\r\n]*`
                        place = _others_end(text, after, end, classes)
                        while place < end and (byte_at(text, place) == 0x0A or byte_at(text, place) == 0x0D):
                            place += 1
            ends[found] = place
            found += 1
    return found


@compiled
def _word_end(text, place, end, classes, upper_alone):
    r"""Where a word of o200k that begins at `place` ends, `place` itself if there is none.

    U is `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`, L is `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`: `U*L+`, with `upper_alone` `U+L*`.
    """
    start, after_both = place, place
    while place < end:  # U*, and where the last of its characters that is also in L ends
        character = _character(text, place, end, classes)
        kind = character & 15
        if kind != UPPER and kind != CASELESS and kind != MARK:
            break
        place += character >> 4
        if kind != UPPER:
            after_both = place
    after_upper = place
    while place < end:  # L+
        character = _character(text, place, end, classes)
        kind = character & 15
        if kind != LOWER and kind != CASELESS and kind != MARK:
            break
        place += character >> 4
    if place > after_upper:
        return place
    if after_both > start:  # `U*` gives back until `L+` has one
        return after_both
    return after_upper if upper_alone else start


@compiled
def _scan_o200k(text, offsets, classes, variant, ends):
    """o200k."""
    found = 0
    for document in range(len(offsets) - 1):
        place, end = offsets[document], offsets[document + 1]
        while place < end:
            start = place
            first = byte_at(text, place)
            character = _character(text, place, end, classes)
            kind = character & 15
            after = place + (character >> 4)
            if kind == NUMBER:
                place = _numbers_end(text, place, end, classes, 3)
            elif kind == NEWLINE:
                place = _blanks_end(text, place, end, classes, 1, NOTHING)
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
                    place = _contraction_end(text, word, end, True)
                else:
                    follows = _character(text, after, end, classes) & 15 if after < end else BLANK
                    if kind == BLANK and not (first == 0x20 and follows in (OTHER, MARK)):
                        place = _blanks_end(text, place, end, classes, 1, NOTHING)
                    else:  # ` ?[^\s\p{L}\p{N}]+[\r\n/]*`
                        place = _others_end(text, after, end, classes)
                        while place < end and (
                            byte_at(text, place) == 0x0A or byte_at(text, place) == 0x0D or byte_at(text, place) == 0x2F
                        ):
                            place += 1
            ends[found] = place
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
