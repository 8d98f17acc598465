"""The compiled splitting ends its pre-tokens where the regular expressions do."""

import random

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from groundup.tokenizer import split
from groundup.tokenizer.columns import column_of, text_of
from groundup.tokenizer.fast.scan import (
    CASELESS,
    LOWER,
    MARK,
    NEWLINE,
    NUMBER,
    SCANNERS,
    SPACE,
    UPPER,
    character_classes,
    pre_token_ends,
)

TELLING = [
    *"aZé漢Ⅷ9½ٱ' ’sStTdmLlvVeErRſ\n\r\t\u00a0\u0301ǅʰ!/.-👩\u200d\u2028\x1c\x85ßАяมาเ็日\0",
    *("'s", "'S", "'ll", "'VE", "  ", "\n\n", "'ſ", " 1", "ABc", "   ", "\r\n ", "12345"),
]
"""Characters of every class, and those that the patterns name."""


def assert_the_same_pre_tokens(texts: list[str], pattern: str) -> None:
    text, offsets = text_of(column_of(texts))
    ends = pre_token_ends(text, offsets, pattern)
    begins = np.concatenate([[0], ends])[: len(ends)]
    found = [bytes(text[begin:end]).decode() for begin, end in zip(begins, ends, strict=True)]
    assert found == [pre_token for one in texts for pre_token in split.pre_tokens(one, pattern)]


@pytest.mark.parametrize("pattern", SCANNERS)
@given(texts=st.lists(st.one_of(st.lists(st.sampled_from(TELLING)).map("".join), st.text(max_size=20)), min_size=1))
def test_pre_tokens_are_those_of_the_expression(pattern: str, texts: list[str]) -> None:
    assert_the_same_pre_tokens(texts, pattern)


@pytest.mark.parametrize("pattern", SCANNERS)
def test_pre_tokens_are_those_of_the_expression_on_many_random_texts(pattern: str) -> None:
    draw = random.Random(0)
    assert_the_same_pre_tokens(["".join(draw.choices(TELLING, k=draw.randrange(14))) for _ in range(30_000)], pattern)


@pytest.mark.parametrize("pattern", SCANNERS)
def test_pre_tokens_are_those_of_the_expression_in_many_languages(pattern: str, universal: list[str]) -> None:
    assert_the_same_pre_tokens(universal, pattern)


@pytest.mark.parametrize(
    "kind", [r"\p{L}", r"\p{N}", r"\p{Lu}", r"\p{Lt}", r"\p{Lm}", r"\p{Lo}", r"\p{Ll}", r"\p{M}", r"\s"]
)
def test_every_character_is_of_the_class_that_tiktoken_has_it_in(kind: str) -> None:
    """Whatever the version of Unicode that a later `regex` brings."""
    text = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    bytes_alone = {bytes([byte]): byte for byte in range(256)}
    theirs = tiktoken.Encoding("one class", pat_str=kind, mergeable_ranks=bytes_alone, special_tokens={})
    numbers = {
        r"\p{L}": (LOWER, UPPER, CASELESS), r"\p{N}": (NUMBER,), r"\p{Lu}": (UPPER,), r"\p{Lt}": (UPPER,),
        r"\p{Lm}": (CASELESS,), r"\p{Lo}": (CASELESS,), r"\p{Ll}": (LOWER,), r"\p{M}": (MARK,), r"\s": (SPACE, NEWLINE),
    }  # fmt: skip
    classes = character_classes()
    of_the_kind = theirs.decode(theirs.encode_ordinary(text))
    found = np.isin(classes[[ord(character) for character in of_the_kind]], numbers[kind])
    assert found.all()
    if kind in (r"\p{L}", r"\p{N}", r"\p{Ll}", r"\p{M}", r"\s"):
        assert np.isin(classes, numbers[kind]).sum() == len(of_the_kind)


def test_characters_younger_than_unicode_16_are_not_letters() -> None:
    young = "\u0c5c\u0cdc"  # Telugu and Kannada letters of Unicode 17
    assert split.pre_tokens(f"a{young}b", "gpt2") == ["a", young, "b"]
    assert_the_same_pre_tokens([f"a{young}b", f" {young} {young}1", "ʕA Aʕ"], "gpt2")
    assert_the_same_pre_tokens([f"a{young}b", f" {young} {young}1", "ʕA Aʕ"], "o200k")


@pytest.mark.parametrize("pattern", ["unspaced", "characters", r"\w+|\s", "(a)(b)?"])
def test_other_patterns_are_cut_by_the_expression_itself(pattern: str) -> None:
    assert_the_same_pre_tokens(["", "one two, 日本語のテスト", "", "abaab ab", "เป็นภาษาไทย"], pattern)


@given(st.binary(max_size=60), st.sampled_from(sorted(SCANNERS)))
def test_bytes_that_are_not_utf8_are_never_left(raw: bytes, pattern: str) -> None:
    """Nobody should pass them, but a damaged file might."""
    text = np.frombuffer(raw, np.uint8)
    ends = pre_token_ends(text, np.array([0, len(raw)]), pattern)
    assert (np.diff(ends) > 0).all()
    assert ends[-1:].tolist() == ([len(raw)] if raw else [])
