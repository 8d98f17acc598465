"""Words and what stands for several in a row, beside plain Python."""

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.compiled.words import among, hash_spans, runs_of, table_of, winnow, words_of

WORD = regex.compile(
    r"(?V1)[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}&&[\p{L}\p{N}]]\p{M}*"
    r"|[[\p{L}\p{N}\p{M}]--[[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]&&[\p{L}\p{N}]]]+"
)
ALPHABET = "aBé ß漢字かศี\u0301१2,.’-\n ǅIİ𐐀"


def lower(character: str) -> str:
    return character.lower() if len(character.lower()) == 1 and regex.match(r"[\p{Lu}\p{Lt}]", character) else character


def plain_words(text: str) -> list[str]:
    return ["".join(map(lower, match[0])) for match in WORD.finditer(text)]


@settings(max_examples=60)
@given(st.text(st.sampled_from(ALPHABET) | st.characters(exclude_categories=["Cs"]), max_size=60))
def test_words_are_those_of_a_regular_expression(text: str) -> None:
    hashes, begins, ends = words_of(text)
    raw = text.encode()
    found = [raw[begin:end].decode() for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
    assert found == [match[0] for match in WORD.finditer(text)]
    by_word = dict(zip(plain_words(text), hashes.tolist(), strict=True))
    assert hashes.tolist() == [by_word[word] for word in plain_words(text)], "equal words have equal hashes"
    assert len(set(by_word.values())) == len(by_word), "others have others"


@settings(max_examples=50)
@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 6))
def test_runs_are_equal_where_their_words_are(words: list[int], n: int) -> None:
    hashed = np.array(words, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    hashes = runs_of(hashed, n).tolist()
    assert len(hashes) == len(runs)
    assert len(set(zip(runs, hashes, strict=True))) == len(set(runs)) == len(set(hashes))


@settings(max_examples=40)
@given(st.binary(max_size=40), st.data())
def test_spans_are_hashed_by_their_bytes_alone(raw: bytes, data: st.DataObject) -> None:
    ends = st.integers(0, len(raw))
    spans = data.draw(st.lists(st.tuples(ends, ends).map(sorted), max_size=20))
    begins, stops = (np.array([span[side] for span in spans], np.int64) for side in (0, 1))
    hashes = hash_spans(np.frombuffer(raw, np.uint8), begins, stops).tolist()
    texts = [raw[begin:end] for begin, end in spans]
    assert len(set(zip(texts, hashes, strict=True))) == len(set(texts)) == len(set(hashes))


@settings(max_examples=50)
@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 7))
def test_of_every_window_the_last_of_its_least_hashes_is_taken(values: list[int], window: int) -> None:
    places = winnow(np.array(values, np.uint64), window).tolist()
    wanted = set()
    for first in range(max(1, len(values) - window + 1) if values else 0):
        here = values[first : first + window]
        wanted.add(first + max(i for i, value in enumerate(here) if value == min(here)))
    assert places == sorted(wanted)


@pytest.mark.parametrize(("text", "n"), [("", 0), (" .,-\n", 0), ("one", 1), ("漢字", 2), ("snake_case", 2)])
def test_how_many_words_a_text_has(text: str, n: int) -> None:
    assert len(words_of(text)[0]) == n


@pytest.mark.parametrize("n", [0, 1, 5, 2000])
def test_a_hash_is_looked_up_as_in_a_set(n: int) -> None:
    random = np.random.default_rng(n)
    high, low = random.integers(1, 50, 4000), random.integers(1, 99, 4000)
    alike = high.astype(np.uint64) << np.uint64(58) | low.astype(np.uint64)
    hashes = np.append(random.integers(1, 1 << 64, 4000, np.uint64), alike)
    known = random.permutation(hashes)[:n]
    plain = set(known.tolist())
    assert among(hashes, table_of(known)).tolist() == [each in plain for each in hashes.tolist()]
