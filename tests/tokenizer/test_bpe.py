"""Merging and learning agree with versions that are too plain to be wrong."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.tokenizer import split
from groundup.tokenizer.bpe import Pair, apply_merges, count_pre_tokens, join, learn_merges, merge
from groundup.tokenizer.byte_level import ByteLevel
from groundup.tokenizer.tokenizer import Tokenizer

BYTES = st.text(alphabet="abcé ", max_size=40)


def encode_plainly(ids: list[int], merges: dict[Pair, tuple[int, int]]) -> list[int]:
    """Look over the whole pre-token for the pair that was learned first, join it, begin again."""
    while pairs := [(merges[pair][0], i) for i, pair in enumerate(zip(ids, ids[1:], strict=False)) if pair in merges]:
        _, i = min(pairs)
        ids = [*ids[:i], merges[(ids[i], ids[i + 1])][1], *ids[i + 2 :]]
    return ids


def learn_plainly(texts: list[str], pattern: str, byte_ids: list[int], n_merges: int) -> list[Pair]:
    """Count every pair of every pre-token anew for every merge."""
    words = [
        [byte_ids[byte] for byte in pre_token.encode()]
        for text in texts
        for pre_token in split.compiled(pattern).findall(text)
    ]
    merges: list[Pair] = []
    while len(merges) < n_merges:
        counts = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        words = [merge(word, best, 256 + len(merges)) for word in words]
        merges.append(best)
    return merges


@given(st.lists(BYTES, min_size=1, max_size=8), st.integers(0, 40))
@settings(max_examples=150)
def test_learning_gives_the_merges_of_the_plain_version(texts: list[str], n_merges: int) -> None:
    byte_ids = [(byte * 7) % 256 for byte in range(256)]
    fast = learn_merges(count_pre_tokens(texts, "gpt2"), byte_ids, n_merges)
    assert fast == learn_plainly(texts, "gpt2", byte_ids, n_merges)


def test_learning_on_real_text_gives_the_merges_of_the_plain_version(story_texts: list[str]) -> None:
    byte_ids = list(range(256))
    fast = learn_merges(count_pre_tokens(story_texts[:3], "cl100k"), byte_ids, 120)
    assert fast == learn_plainly(story_texts[:3], "cl100k", byte_ids, 120)


@given(st.text(alphabet="abcdé  '", max_size=60))
def test_the_heap_joins_what_the_plain_version_joins(text: str) -> None:
    tokenizer = Tokenizer.learn(["abc abcd bcd cab dab é éa aaa aaaa bbb 'abc"], vocab_size=320).rules
    assert isinstance(tokenizer, ByteLevel)
    ids = [tokenizer.byte_ids[byte] for byte in text.encode()]
    assert apply_merges(ids, tokenizer.merges) == encode_plainly(ids, tokenizer.merges)


@pytest.mark.parametrize("letter", ["a", " ", "^", "\n", "👩‍👩‍👧"])
def test_twice_as_many_of_one_letter_cost_about_twice_as_much(letter: str) -> None:
    """Counted in heap operations, so that a busy machine cannot fail it."""
    tokenizer = Tokenizer.learn(["a" * 64, " " * 64, "^" * 64, "\n" * 64, letter * 16], vocab_size=384).rules

    assert isinstance(tokenizer, ByteLevel)

    class Counting(dict):  # type: ignore[type-arg]
        looked_up = 0

        def __contains__(self, key: object) -> bool:
            self.looked_up += 1
            return super().__contains__(key)

    def work(size: int) -> int:
        merges = Counting(tokenizer.merges)
        raw = (letter * size).encode()[:size]
        apply_merges([tokenizer.byte_ids[byte] for byte in raw], merges)
        return merges.looked_up

    assert work(1 << 16) < 2.2 * work(1 << 15)


@given(st.lists(st.integers(0, 3), max_size=40), st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_joining_in_place_moves_the_pairs_that_merging_anew_would(word: list[int], pair: tuple[int, int]) -> None:
    after, gone, come = join(word, pair, 9)
    assert after == merge(word, pair, 9)
    moved = Counter(itertools.pairwise(word))
    moved.subtract(gone)
    moved.update(come)
    assert +moved == Counter(itertools.pairwise(after))
