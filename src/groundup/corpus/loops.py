"""The compiled loops over the characters of a text: what it may hold, and its n-grams."""

import numpy as np

from groundup.compiled.loops import compiled

AT, DIGITS, DOTS, COLONS, TOKEN, ACCOUNT = 1, 2, 4, 8, 16, 32
PLAIN, DIGIT, CAPITAL, DOT, COLON = 1, 2, 3, 4, 5
SIGNS = np.zeros(256, np.uint8)  # of a byte; 0 where a token ends
SIGNS[list(b"abcdefghijklmnopqrstuvwxyz-_+/=")] = PLAIN
SIGNS[list(b"0123456789")] = DIGIT
SIGNS[list(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")] = CAPITAL
SIGNS[ord(".")], SIGNS[ord(":")] = DOT, COLON
SHORTEST, LONGEST = 3, 5
"""Characters of the n-grams within a word, its borders among them."""
BUCKET_BITS = 18


@compiled
def hints_of(text):
    """What a text may hold, by its UTF-8 bytes, as the sum of the above.

    AT, an @. DIGITS, seven, at most three bytes between two of them. DOTS, three behind digits, at most three bytes
    between. COLONS, two, at most four bytes between. TOKEN, 16 or more letters, digits and -_+/=, of which two are
    digits, or capital letters inside. ACCOUNT, two capital letters and two digits.
    """
    found = digits = dots = mixed = begin = 0
    last_digit = last_dot = last_colon = -10
    for i in range(len(text)):
        sign = SIGNS[text[i]]
        if sign == PLAIN:
            continue
        if sign == DIGIT:
            digits = digits + 1 if i - last_digit <= 4 else 1
            last_digit = i
            mixed += 1
            if digits >= 7:
                found |= DIGITS
            if i >= 3 and SIGNS[text[i - 1]] == DIGIT and SIGNS[text[i - 2]] == SIGNS[text[i - 3]] == CAPITAL:
                found |= ACCOUNT
        elif sign == CAPITAL:
            mixed += i > begin and text[i - 1] != 45
        else:
            if mixed >= 2 and i - begin >= 16:
                found |= TOKEN
            begin, mixed = i + 1, 0
            if sign == DOT and i - last_digit == 1:
                dots = dots + 1 if i - last_dot <= 4 else 1
                last_dot = i
                if dots >= 3:
                    found |= DOTS
            elif sign == COLON:
                if i - last_colon <= 5:
                    found |= COLONS
                last_colon = i
            elif text[i] == 64:
                found |= AT
    return found | TOKEN if mixed >= 2 and len(text) - begin >= 16 else found


@compiled
def _mixed(hashed, number):
    mixed = (hashed ^ np.uint64(number)) * np.uint64(0x9E3779B97F4A7C15)
    return mixed ^ (mixed >> np.uint64(32))


@compiled
def _in_word(point):
    """Letters, digits, and all of other scripts but spaces and the punctuation that most of them share."""
    if point < 128:
        return 48 <= point <= 57 or 97 <= point | 32 <= 122
    return point >= 0xC0 and not (0x2000 <= point < 0x2070 or 0x3000 <= point < 0x3040 or 0xFF00 <= point < 0xFF10)


@compiled
def features_of(points, last_seen, number):
    """The features of a text, each once: its words, pairs of words, and n-grams of ` word `; one of every text.

    Args:
        points: its code points.
        last_seen: (2^BUCKET_BITS,) the number of the last text that had a feature; changed.
        number: of this text.
    """
    length, start, before, n = len(points), 0, np.uint64(0), 0
    row = np.empty(6 * length + 8, np.int64)
    hashes = np.empty(3 * (length + 2) + 3, np.uint64)
    hashes[0], m = np.uint64(0), 1
    while True:
        for i in range(m):
            bucket = np.int64(hashes[i] >> np.uint64(64 - BUCKET_BITS))
            if last_seen[bucket] != number:
                last_seen[bucket] = number
                row[n] = bucket
                n += 1
        while start < length and not _in_word(points[start]):
            start += 1
        if start == length:
            return row[:n].astype(np.int32)
        end = start
        word = np.uint64(1)
        while end < length and _in_word(points[end]):
            word = _mixed(word, points[end])
            end += 1
        hashes[0], hashes[1], m = _mixed(word, 3), _mixed(_mixed(before, word), 4), 2
        for first in range(start - 1, end - 1):
            gram = np.uint64(2)
            for last in range(first, min(first + LONGEST, end + 1)):
                gram = _mixed(gram, 32 if last < start or last == end else points[last])
                if last - first >= SHORTEST - 1:
                    hashes[m] = _mixed(gram, last - first)
                    m += 1
        start, before = end, word


@compiled
def margins_of(indices, starts, weights):
    """(texts,) the sum of the weights of each text's features, of which each counts 1/√n."""
    sums = np.zeros(len(starts) - 1)
    for i in range(len(sums)):
        for j in range(starts[i], starts[i + 1]):
            sums[i] += weights[indices[j]]
        sums[i] /= np.sqrt(starts[i + 1] - starts[i])
    return sums


@compiled
def add_gradient(indices, starts, errors, gradient):
    """Add the gradient with respect to the weights, by those with respect to the margins."""
    for i in range(len(errors)):
        error = errors[i] / np.sqrt(starts[i + 1] - starts[i])
        for j in range(starts[i], starts[i + 1]):
            gradient[indices[j]] += error
