"""What a text consists of, found by compiled loops over its UTF-8: characters, words, and what repeats.

The plain twins of these loops are in the tests.
"""

import functools

import numpy as np
import numpy.typing as npt
import regex

from groundup.compiled.loops import compiled

Bytes = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]

LETTER, MARK, DIGIT, SPACE, JOINS, JOINS_DIGITS = (1 << bit for bit in range(6))
_CLASSES = (
    (LETTER, r"\p{L}+"),
    (MARK, r"\p{M}+"),
    (DIGIT, r"[\p{N}_]+"),
    (SPACE, r"\s+"),
    (JOINS, "[.@&]"),  # example.com, AT&T
    (JOINS_DIGITS, "[,:]"),  # 1,000
)
"""Bits of the class of a character. Marks count as parts of words: vowel signs are marks."""
REPLACEMENT = 0xFFFD
APOSTROPHE, CURLED = 0x27, 0x2019

HAS_LETTER, HAS_WORD = 1, 2
"""Whether a word has a letter; anything but signs."""
_PRIME, _SEED = np.uint64(0x100000001B3), np.uint64(0xCBF29CE484222325)
_STEP = np.uint64(0x9E3779B97F4A7C15)


@functools.cache
def character_classes() -> Bytes:
    """(0x110000,) the class of each code point."""
    classes = np.zeros(0x110000, np.uint8)
    for first, last in ((0, 0xD800), (0xE000, 0x40000), (0xE0000, 0xE1000)):  # no surrogates, and what is assigned
        characters = np.arange(first, last, dtype="<u4").tobytes().decode("utf-32-le")
        for bit, pattern in _CLASSES:
            for match in regex.finditer(pattern, characters):
                classes[first + match.start() : first + match.end()] |= bit
    return classes


@functools.lru_cache(maxsize=1)
def words_of(text: str) -> Hashes:
    """(words, 2) of each word its hash, and 4 × its characters + `HAS_LETTER` + `HAS_WORD`; the last are remembered.

    A word is a run of letters, marks and digits, with what stands between them in numbers and addresses; an apostrophe
    begins a new one (don|'t); a dot belongs to a short one without vowels (Mr.); each other sign is a word of its own,
    many of the same in a row being one.

    >>> [int(rest) >> 2 for _, rest in words_of("Don't stop at No. 1,000...")]
    [3, 2, 4, 2, 2, 1, 5, 3]
    """
    raw = text.encode()
    words = np.empty((len(raw), 2), np.uint64)
    return words[: split_words(np.frombuffer(raw, np.uint8), character_classes(), words)]


@functools.lru_cache(maxsize=16)
def hashes_of(words: tuple[str, ...]) -> Hashes:
    """The hashes that these words have there."""
    return np.array([words_of.__wrapped__(word)[0, 0] for word in words], np.uint64)


@compiled
def character(text, at):
    """Code point and width in bytes of the character at `at` of valid UTF-8: code point + 2^32 × width."""
    first = np.int64(text[at])
    if first < 0x80:
        return first | (np.int64(1) << 32)
    second = np.int64(text[at + 1]) & 0x3F
    if first < 0xE0:
        return (first & 0x1F) << 6 | second | (np.int64(2) << 32)
    third = np.int64(text[at + 2]) & 0x3F
    if first < 0xF0:
        return (first & 0x0F) << 12 | second << 6 | third | (np.int64(3) << 32)
    return (first & 0x07) << 18 | second << 12 | third << 6 | np.int64(text[at + 3]) & 0x3F | (np.int64(4) << 32)


@compiled
def mixed(number):
    number = (number ^ (number >> np.uint64(29))) * _STEP
    return number ^ (number >> np.uint64(32))


@compiled
def count_characters(text, classes):
    """Letters and marks, characters that are no space, and replacement characters."""
    at, letters, solid, replaced = 0, 0, 0, 0
    while at < len(text):
        found = character(text, at)
        kind = classes[found & 0xFFFFFFFF]
        letters += (kind & (LETTER | MARK)) != 0
        solid += (kind & SPACE) == 0
        replaced += (found & 0xFFFFFFFF) == REPLACEMENT
        at += found >> 32
    return letters, solid, replaced


@compiled
def split_words(text, classes, words):
    """Fill (bytes, 2) `words` as `words_of` says.

    Returns:
        how many rows were filled.
    """
    at, found, touching = np.int64(0), 0, np.int64(-1)
    end = np.int64(len(text))
    inside = LETTER | MARK | DIGIT
    while at < end:
        here = character(text, at)
        code, kind = here & 0xFFFFFFFF, classes[here & 0xFFFFFFFF]
        if kind & SPACE:
            at += here >> 32
            continue
        hashed, size, flags = _SEED, 0, 0
        is_contraction, has_vowel = False, False
        if code in (APOSTROPHE, CURLED) and touching == at and at + (here >> 32) < end:
            is_contraction = classes[character(text, at + (here >> 32)) & 0xFFFFFFFF] & LETTER != 0
        if kind & inside or is_contraction:
            while True:
                for i in range(here >> 32):
                    hashed = (hashed ^ np.uint64(text[at + i])) * _PRIME
                size += 1
                flags |= HAS_WORD | (HAS_LETTER if kind & LETTER else 0)
                has_vowel |= here & 0xFFFFFFDF in (0x41, 0x45, 0x49, 0x4F, 0x55, 0x59)
                at += here >> 32
                if at >= end:
                    break
                before, here = kind, character(text, at)
                kind = classes[here & 0xFFFFFFFF]
                if kind & inside:
                    continue
                behind = classes[character(text, at + 1) & 0xFFFFFFFF] & inside if at + 1 < end else 0
                if behind and (kind & JOINS or (kind & JOINS_DIGITS and behind & before & DIGIT)):
                    continue
                if text[at] == 0x2E and before & LETTER and size <= 3 and not has_vowel and not is_contraction:
                    hashed = (hashed ^ np.uint64(0x2E)) * _PRIME
                    size += 1
                    at += 1
                break
            touching = at
        else:
            while at < end and character(text, at) & 0xFFFFFFFF == code:
                hashed = (hashed ^ np.uint64(code)) * _PRIME
                size += 1
                at += here >> 32
        words[found, 0] = mixed(hashed)
        words[found, 1] = np.uint64(size * 4 + flags)
        found += 1
    return found


@compiled
def tally(words, stops):
    """Words that are no signs, and their characters; words with a letter; how many of the hashes `stops` occur."""
    real, characters, lettered = 0, 0, 0
    occurs = np.zeros(len(stops), np.bool_)
    for row in range(len(words)):
        rest = np.int64(words[row, 1])
        if rest & HAS_WORD:
            real += 1
            characters += rest >> 2
        lettered += rest & HAS_LETTER
        for number in range(len(stops)):
            occurs[number] |= words[row, 0] == stops[number]
    return real, characters, lettered, occurs.sum()


@compiled
def repeated(words, top, longest):
    """(longest + 1,) characters that n-grams take, by n: up to `top` words those of the most frequent one, with spaces
    between its words, in all its occurrences; beyond, those of all that were there before, without spaces, each word
    counted once (Rae et al. 2021, A1.1; as datatrove counts them)."""
    n_words = len(words)
    sums, ends = np.zeros(n_words + 1, np.uint64), np.zeros(n_words + 1, np.int64)
    for row in range(n_words):
        sums[row + 1] = sums[row] * _STEP + words[row, 0]
        ends[row + 1] = ends[row] + np.int64(words[row, 1] >> np.uint64(2))
    room = 16
    while room < 2 * n_words:
        room *= 2
    table = np.empty(room, np.uint64)
    counts, firsts = np.empty(room, np.int32), np.empty(room, np.int32)
    taken = np.zeros(longest + 1, np.int64)
    power = _STEP
    for n in range(2, longest + 1):
        power *= _STEP
        table[:] = 0
        best, row = 0, 0
        while row + n <= n_words:
            key = mixed(sums[row + n] - sums[row] * power) | np.uint64(1)
            slot = np.int64(key >> np.uint64(32)) & (room - 1)
            while table[slot] != 0 and table[slot] != key:
                slot = (slot + 1) & (room - 1)
            is_new = table[slot] == 0
            if n > top:
                table[slot] = key
                if not is_new:
                    taken[n] += ends[row + n] - ends[row]
                    row += n - 1
            elif is_new:
                table[slot], counts[slot], firsts[slot] = key, 1, row
                best = max(best, 1)
            else:
                counts[slot] += 1
                best = max(best, counts[slot])
            row += 1
        if n <= top and best > 0:
            first = n_words
            for slot in range(room):
                if table[slot] != 0 and counts[slot] == best and firsts[slot] < first:
                    first = firsts[slot]
            taken[n] = (ends[first + n] - ends[first] + n - 1) * best
        elif n > top and taken[n] == 0:  # no n-gram twice, so no longer one either
            break
    return taken


@compiled
def has_suspect(text, words, pairs):
    """Whether a text has a character that `clean.suspects` marks, or two next to each other.

    Args:
        words: the same bytes, eight at a time.
        pairs: (0x10000,) of each character bit n + 32 if it is the first of pair n, bit n if the second; bit 63 if it
            is suspect alone. None of ASCII is the first of a pair.
    """
    at, end, aligned = np.int64(0), np.int64(len(text)), np.int64(len(words) * 8)
    ones, highs = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
    before = np.uint64(0)
    while at < end:
        if at & 7 == 0 and before == 0:
            while at < aligned:  # all eight are ASCII, no control characters
                word = words[at >> 3]
                if (word | (word - ones * np.uint64(0x20)) | (word + ones)) & highs:
                    break
                at += 8
            if at >= end:
                break
        here = character(text, at)
        at += here >> 32
        code = here & 0xFFFFFFFF
        marks = pairs[code] if code < 0x10000 else np.uint64(0)
        if marks >> np.uint64(63) or before & marks & np.uint64(0x7FFFFFFF):
            return True
        before = marks >> np.uint64(32)
    return False
