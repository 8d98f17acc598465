"""Words of a text, and what stands for several words in a row: hashes, which are compared instead of them.

A word is a run of letters, marks and digits; case and punctuation do not count (as in Brown et al. 2020, appendix C).
Where a script writes no spaces, as Han or Thai, each letter is a word.
"""

import functools

import numpy as np
import numpy.typing as npt
import regex

from groundup.compiled.loops import compiled

Bytes = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]

N_CODE_POINTS = 0x110000
ALONE, MARK = np.uint32(1 << 31), np.uint32(1 << 30)
_WITHOUT_SPACES = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]+"
NO_VALUE = np.uint32(0xFFFFFFFF)
BASE, MIXER = np.uint64(0xD6E8FEB86659FD93), np.uint64(0x9E3779B97F4A7C15)


@functools.cache
def folded() -> npt.NDArray[np.uint32]:
    """(0x110000,) for each code point that words are made of its lower case, for others 0. `MARK` is added to marks,
    `ALONE` to letters that are a word each."""
    codes = np.arange(N_CODE_POINTS, dtype="<u4")
    codes[0xD800:0xE000] = 0  # surrogates, which no UTF-8 holds
    characters = codes.tobytes().decode("utf-32-le")
    table = np.zeros(N_CODE_POINTS, np.uint32)
    for pattern, flag in ((r"[\p{L}\p{N}]+", 0), (r"\p{M}+", MARK)):
        for match in regex.finditer(pattern, characters):
            table[slice(*match.span())] = codes[slice(*match.span())] | flag
    for match in regex.finditer(_WITHOUT_SPACES, characters):
        table[slice(*match.span())] |= np.where(table[slice(*match.span())] == codes[slice(*match.span())], ALONE, 0)
    for match in regex.finditer(r"[\p{Lu}\p{Lt}]", characters):
        lower = match[0].lower()
        table[match.start()] = ord(lower) if len(lower) == 1 else codes[match.start()]
    return table


def words_of(text: str) -> tuple[Hashes, Offsets, Offsets]:
    """The words of a text: hash, first byte, and byte behind the last, in UTF-8.

    >>> hashes, begins, ends = words_of("Don’t — DON'T!")
    >>> bool((hashes[:2] == hashes[2:]).all()), begins.tolist(), ends.tolist()
    (True, [0, 6, 12, 16], [3, 7, 15, 17])
    """
    return scan(np.frombuffer(text.encode(), np.uint8), folded())  # type: ignore[no-any-return]


@compiled
def mix(hashed):
    """Spread what is in some bits of a hash over all of them."""
    hashed = (hashed ^ (hashed >> np.uint64(32))) * MIXER
    return hashed ^ (hashed >> np.uint64(29))


@compiled
def scan(text, folded):
    """Hash, begin and end of each word of a UTF-8 text, case and punctuation apart."""
    most = len(text) // 2 + 1  # letters that stand alone have more than two bytes
    hashes, begins, ends = np.empty(most, np.uint64), np.empty(most, np.int64), np.empty(most, np.int64)
    n, at, is_open, is_alone, hashed = 0, 0, False, False, np.uint64(0)
    while at < len(text):
        first = np.uint32(text[at])
        if first < 0x80 and is_open and not is_alone and folded[first] != 0:  # most of a text, short of the rest
            hashed = (hashed ^ np.uint64(folded[first])) * BASE
            at += 1
            continue
        width, code = 1, first
        if first >= 0x80:
            width = 2 if first < 0xE0 else (3 if first < 0xF0 else 4)
            code = first & np.uint32(0xFF >> (width + 1))
            for i in range(at + 1, min(at + width, len(text))):
                code = np.uint32(code << np.uint32(6)) | np.uint32(text[i] & 0x3F)
        character = folded[code] if code < N_CODE_POINTS else np.uint32(0)
        goes_on = character != 0 and ((not is_alone and not character & ALONE) or character & MARK != 0)
        if is_open and not goes_on:
            hashes[n], ends[n] = mix(hashed), at
            n, is_open = n + 1, False
        if character != 0:
            if not is_open:
                begins[n], hashed = at, np.uint64(0)
                is_open, is_alone = True, character & ALONE != 0
            hashed = (hashed ^ np.uint64(character)) * BASE
        at += width
    if is_open:
        hashes[n], ends[n] = mix(hashed), len(text)
        n += 1
    return hashes[:n], begins[:n], ends[:n]


@compiled
def runs_of(words, n):
    """A hash for the n words from each word on, of the hashes of the words: a polynomial, mixed.

    >>> len(runs_of(words_of("one two three")[0], 2)), len(runs_of(words_of("one")[0], 2))
    (2, 0)
    """
    count = max(0, len(words) - n + 1)
    runs = np.empty(count, np.uint64)
    factor, hashed = np.uint64(1), np.uint64(0)
    for i in range(min(n, len(words))):
        hashed = hashed * BASE + words[i]
        factor *= BASE
    for i in range(count):
        if i:
            hashed = hashed * BASE + words[i + n - 1] - words[i - 1] * factor
        runs[i] = mix(hashed)
    return runs


@compiled
def hash_spans(text, begins, ends):
    """A hash of the bytes of each span of a text; equal bytes have equal hashes."""
    sums, powers = np.empty(len(text) + 1, np.uint64), np.empty(len(text) + 1, np.uint64)
    sums[0], powers[0] = np.uint64(0), np.uint64(1)
    for i in range(len(text)):
        sums[i + 1] = sums[i] * BASE + np.uint64(text[i]) + np.uint64(1)
        powers[i + 1] = powers[i] * BASE
    hashes = np.empty(len(begins), np.uint64)
    for i in range(len(begins)):
        begin, end = begins[i], ends[i]
        hashes[i] = mix(sums[end] - sums[begin] * powers[end - begin])
    return hashes


@compiled
def winnow(hashes, window):
    """The places of the least hash among every `window` in a row (Schleimer et al. 2003, section 3): the same for the
    same hashes, wherever they stand. The last of equal ones."""
    places = np.empty(len(hashes), np.int64)
    n, least = 0, -1
    for last in range(min(window, len(hashes)) - 1, len(hashes)):
        first = max(0, last - window + 1)
        if least < first:
            least = first
            for i in range(first + 1, last + 1):
                if hashes[i] <= hashes[least]:
                    least = i
        elif hashes[last] <= hashes[least]:
            least = last
        if n == 0 or places[n - 1] != least:
            places[n] = least
            n += 1
    return places[:n]


@compiled
def least_values(text, folded, n, factors, terms):
    """The least value, over the runs of n words of a text, of each function `run x factor + term`, in 32 bits: its
    MinHash (Broder 1997). `NO_VALUE` if it has less than two words; one with less than n is one run."""
    words, _, _ = scan(text, folded)
    least = np.full(len(factors), NO_VALUE, np.uint32)
    if len(words) < 2:
        return least
    runs = (runs_of(words, min(n, len(words))) >> np.uint64(32)).astype(np.uint32)
    for i in range(len(factors)):  # the inner loop is over runs, in vectors
        factor, term, lowest = factors[i], terms[i], NO_VALUE
        for j in range(len(runs)):
            lowest = min(lowest, np.uint32(np.uint32(runs[j] * factor) + term))
        least[i] = lowest
    return least


@compiled
def unite(parents, these, those):
    """Join the trees of each two numbers; the root of a tree is its least number."""
    for i in range(len(these)):
        one, other = these[i], those[i]
        while parents[one] != one:
            parents[one] = parents[parents[one]]
            one = parents[one]
        while parents[other] != other:
            parents[other] = parents[parents[other]]
            other = parents[other]
        parents[max(one, other)] = min(one, other)


@compiled
def roots(parents):
    """The root of each number."""
    for number in range(len(parents)):
        parents[number] = parents[parents[number]]  # a parent comes first, and has its root already
    return parents


@compiled
def longest_common(words, query):
    """The first of the longest runs of words that two texts have in common: its first word in `words`, and how many."""
    best, at = 0, 0
    lengths = np.zeros(len(query) + 1, np.int64)  # of the run that ends with this word and with the query's word before
    for i in range(len(words)):
        for j in range(len(query), 0, -1):
            lengths[j] = lengths[j - 1] + 1 if words[i] == query[j - 1] else 0
            if lengths[j] > best:
                best, at = lengths[j], i + 1 - lengths[j]
    return at, best


@compiled
def table_of(hashes):
    """A table to look hashes up in: each stands in the first free place from that of its highest bits on. 0 is none."""
    bits = 4
    while 1 << bits < 2 * len(hashes):
        bits += 1
    table = np.zeros(1 << bits, np.uint64)
    for hashed in hashes:
        at = np.int64(hashed >> np.uint64(64 - bits))
        while table[at] != 0 and table[at] != hashed:
            at = (at + 1) & (len(table) - 1)
        table[at] = hashed
    return table


@compiled
def among(hashes, table):
    """(hashes,) whether each is in such a table."""
    bits = 0
    while 1 << bits < len(table):
        bits += 1
    found = np.zeros(len(hashes), np.bool_)
    for i in range(len(hashes)):
        at = np.int64(hashes[i] >> np.uint64(64 - bits))
        while table[at] != 0 and table[at] != hashes[i]:
            at = (at + 1) & (len(table) - 1)
        found[i] = table[at] != 0
    return found
