"""Byte-level BPE: what a vocabulary must have, tokens taken whole, and when the compiled loops are loaded."""

import sys
from pathlib import Path

import pytest

from groundup.errors import SettingsError
from groundup.tokenizer import tokenizer as room
from groundup.tokenizer.byte_level import ByteLevel
from groundup.tokenizer.tokenizer import Tokenizer

from .layouts import HARD, both


@pytest.mark.parametrize("pattern", ["characters", "gpt2", "unspaced", r"\w+"])
def test_whole_pre_tokens_are_hugging_faces_ids(pattern: str, tmp_path: Path) -> None:
    ours = Tokenizer.of_pieces(HARD, vocab_size=384, pattern=pattern)
    again, theirs = both(ours.to_hugging_face(), tmp_path)
    for text in (*HARD, "unknown wörds and 字 fall back to bytes"):
        ids = ours.encode(text)
        assert ids == theirs.encode(text).ids == again.encode(text)
        assert ours.decode(ids) == text


def test_special_tokens_are_found_among_bytes_that_are_not_utf8(tokenizer: Tokenizer) -> None:
    raw = b"the \xff<|endoftext|>king\xfe"
    ids = tokenizer.encode(raw, frozenset({"<|endoftext|>"}))
    assert ids.count(tokenizer.opener) == 1
    assert tokenizer.decode_bytes(ids) == raw


def test_a_vocabulary_that_lacks_something_says_what(tokenizer: Tokenizer) -> None:
    with pytest.raises(SettingsError, match=r"b'\\x00' is none of the 1 tokens, though every byte should be one"):
        ByteLevel([b"a"], [], {}, "gpt2")
    with pytest.raises(SettingsError, match=r"b'!\"' is none of the 256 tokens, though a merge makes it"):
        ByteLevel(tokenizer.tokens[:256], [(0, 1)], {}, "gpt2")
    with pytest.raises(SettingsError, match="a merge joins an id that is not below 256"):
        ByteLevel(tokenizer.tokens[:256], [(0, 300)], {}, "gpt2")


def test_where_the_compiler_cannot_be_loaded_the_plain_loops_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, other = (Tokenizer.learn(["low lower lowest"], vocab_size=320) for _ in range(2))
    text = "lower low " * 100
    expected = plain.encode(text), plain.encode("e" * 70_000)
    merges = Tokenizer.learn([text], vocab_size=320).merges
    monkeypatch.setitem(sys.modules, "groundup.tokenizer.fast.encode", None)
    monkeypatch.setitem(sys.modules, "groundup.tokenizer.fast.learn", None)
    with pytest.warns(UserWarning, match="the tokenizer's compiled loops cannot be loaded") as warned:
        assert not other.warm_up()
    assert (other.encode(text), other.encode("e" * 70_000)) == expected
    assert other.encode_batch([text, text]) == [expected[0]] * 2
    assert len(warned) == 1, "said once"
    monkeypatch.setattr(room, "WORTH_LOADING", 0)
    with pytest.warns(UserWarning, match="compiled loops cannot be loaded"):
        assert Tokenizer.learn([text], vocab_size=320).merges == merges


def test_the_compiled_loops_are_loaded_when_asked_and_left_when_declined(tokenizer: Tokenizer) -> None:
    learned = Tokenizer.learn(["low lower lowest"], vocab_size=320)
    assert learned.warm_up()
    assert "_encoder" in vars(learned.rules)
    declined = Tokenizer.learn(["low lower lowest"], vocab_size=320)
    declined.compiled = False
    assert declined.encode("lower low " * 100_000) == learned.encode("lower low " * 100_000)
    assert "_encoder" not in vars(declined.rules)
