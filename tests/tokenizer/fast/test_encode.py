"""The compiled encoding gives the ids of the plain one, and of tiktoken; no input makes it slow."""

import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.tokenizer import bpe, byte_level
from groundup.tokenizer.byte_level import ByteLevel
from groundup.tokenizer.columns import column_of
from groundup.tokenizer.declared import Roles
from groundup.tokenizer.fast.encode import LONGEST_SEARCHED, Encoder, slices
from groundup.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def rules(learned: Tokenizer) -> ByteLevel:
    assert isinstance(learned.rules, ByteLevel)
    return learned.rules


@pytest.fixture(scope="module")
def learned() -> Tokenizer:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcde", k=draw.randrange(1, 9))) for _ in range(400)]
    return Tokenizer.learn([" ".join(draw.choices(words, k=4000)), "a" * 3000, "ab" * 2000], vocab_size=1024)


def ids_of(encoder: Encoder, pre_tokens: list[bytes]) -> list[list[int]]:
    """One document a pre-token."""
    text = np.frombuffer(b"".join(pre_tokens), np.uint8)
    offsets = np.cumsum([0, *map(len, pre_tokens)])
    ends = offsets[1:][np.diff(offsets) > 0]
    ids, starts = encoder.encode_pre_tokens(text, ends, offsets)
    return [ids[first:last].tolist() for first, last in zip(starts[:-1], starts[1:], strict=True)]


@given(pre_tokens=st.lists(st.one_of(st.text("abcde ", max_size=80).map(str.encode), st.binary(max_size=40))))
@settings(max_examples=300)
def test_pre_tokens_become_the_ids_of_the_plain_version(rules: ByteLevel, pre_tokens: list[bytes]) -> None:
    encoder = Encoder(rules.byte_ids, rules.merges, "gpt2")
    plain = [bpe.apply_merges([rules.byte_ids[byte] for byte in pre_token], rules.merges) for pre_token in pre_tokens]
    assert ids_of(encoder, pre_tokens) == plain
    assert ids_of(encoder, pre_tokens) == plain, "the second time from memory"


def test_merges_of_one_rank_are_joined_from_the_left() -> None:
    """As in tiktoken, where the rank is that of what is made: a + aa and aa + a are one rank."""
    byte_ids = list(range(256))
    merges = {(97, 97): (0, 256), (97, 256): (1, 257), (256, 97): (1, 257), (257, 257): (2, 258)}
    encoder = Encoder(byte_ids, merges, "gpt2")
    for length in (3, 4, 5, 7, LONGEST_SEARCHED, LONGEST_SEARCHED + 1, 200):
        assert ids_of(encoder, [b"a" * length]) == [bpe.apply_merges([97] * length, merges)]


def test_a_pre_token_that_is_a_token_is_that_token(rules: ByteLevel) -> None:
    odd = {b"zq": 5000, b"zq" * 12: 5001, b"": 5002}
    encoder = Encoder(rules.byte_ids, rules.merges, "gpt2", whole_pre_tokens=odd)
    assert ids_of(encoder, [b"zq", b"zq" * 12]) == [[5000], [5001]]
    assert ids_of(encoder, [b"zqz"]) != [[5000]]


def test_more_pre_tokens_than_can_be_remembered(rules: ByteLevel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundup.tokenizer.fast.encode.REMEMBERED", 64)
    encoder = Encoder(rules.byte_ids, rules.merges, "gpt2")
    draw = random.Random(1)
    pre_tokens = ["".join(draw.choices("abcde", k=draw.randrange(1, 20))).encode() for _ in range(5000)]
    plain = [bpe.apply_merges([rules.byte_ids[byte] for byte in pre_token], rules.merges) for pre_token in pre_tokens]
    assert ids_of(encoder, pre_tokens) == plain


def test_documents_are_kept_apart_and_opened(learned: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["", "", "abc de", "", "e" * 70, "\ud800 x", ""]
    plain = [learned.encode(text) for text in texts]
    monkeypatch.setattr(byte_level, "WORTH_CALLING", 0)
    learned.compiled = True
    ids, starts = learned.encode_documents(column_of(texts), framed=True)
    assert [ids[first:last].tolist() for first, last in zip(starts[:-1], starts[1:], strict=True)] == [
        [learned.opener, *each] for each in plain
    ]
    learned.roles = Roles(opener=7, closer=9)
    ids, starts = learned.encode_documents(column_of(texts), framed=True)
    assert [ids[first:last].tolist() for first, last in zip(starts[:-1], starts[1:], strict=True)] == [
        [7, *each, 9] for each in plain
    ]
    assert learned.encode_batch(texts) == plain
    assert learned.encode_documents(column_of([]))[1].tolist() == [0]


def test_any_number_of_threads_gives_the_same_ids(rules: ByteLevel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundup.tokenizer.fast.encode.BYTES_AT_ONCE", 1000)
    draw = random.Random(2)
    raw = [" ".join(draw.choices(["abc", "dead", "bee", "cab" * 9], k=60)).encode() for _ in range(300)]
    text, offsets = np.frombuffer(b"".join(raw), np.uint8), np.cumsum([0, *map(len, raw)])
    one, many = (Encoder(rules.byte_ids, rules.merges, "gpt2", n_threads=n)(text, offsets, 9) for n in (1, 4))
    assert (one[0] == many[0]).all()
    assert (one[1] == many[1]).all()


@given(st.lists(st.integers(0, 50)), st.integers(1, 100))
def test_slices_hold_all_documents_once(lengths: list[int], at_least: int) -> None:
    offsets = np.cumsum([0, *lengths])
    runs = list(slices(offsets, at_least))
    assert [place for run in runs for place in run[:-1].tolist()] == offsets[:-1].tolist()
    assert [run[-1] for run in runs[:-1]] == [run[0] for run in runs[1:]]


@pytest.mark.parametrize("unit", ["a", " ", "^", "\n", "👩‍👩‍👧 ".strip(), "é", "0"])
def test_a_megabyte_without_a_break_is_no_attack(learned: Tokenizer, unit: str) -> None:
    assert_work_grows_with_the_text(learned, unit.encode(), as_text=True)


def test_a_megabyte_that_is_not_utf8_is_no_attack(learned: Tokenizer) -> None:
    assert_work_grows_with_the_text(learned, b"a", as_text=False)


def assert_work_grows_with_the_text(learned: Tokenizer, unit: bytes, *, as_text: bool) -> None:
    """Fault B2. Compiled loops count nothing, so their work is the processor's time for this thread, not the clock's:
    16 times the input takes 16 times of it where work is linear, 256 where it is quadratic. Asked is less than 64,
    of the least of four, sizes in turn: a busy machine would have to slow down the longer alone by four."""
    took: dict[int, list[float]] = {80_000: [], 1_280_000: []}
    for _ in range(5):
        for n_bytes, seconds in took.items():
            raw = unit * (n_bytes // len(unit))
            text = raw.decode() if as_text else b"\xff" + raw
            began = time.thread_time()
            ids = learned.encode(text)
            seconds.append(time.thread_time() - began)
            assert learned.decode_bytes(ids) == (raw if as_text else text)
    short, long = (min(seconds[1:]) for seconds in took.values())  # the first loads
    assert long < 64 * short + 0.01


def test_a_prompt_does_not_wait_for_the_compiled_loops() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from groundup import Tokenizer; "
        "tokenizer = Tokenizer.learn(['the fox and the king ' * 50], vocab_size=320); "
        "tokenizer.encode('the fox ' * 1000); tokenizer.encode_batch(['the fox'] * 100); print('numba' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"


def test_the_compiled_loops_are_loaded_once_there_was_enough_text(learned: Tokenizer) -> None:
    fresh = Tokenizer(learned.rules.extended([], []))
    fresh.encode("abc de " * 400_000)
    assert fresh.rules.encoder(1000) is None
    fresh.encode("abc de " * 400_000)
    assert fresh.rules.encoder(1000) is not None
    assert fresh.compiled is None


def test_a_program_can_say_beforehand_that_there_will_be_much(learned: Tokenizer) -> None:
    fresh = Tokenizer(learned.rules.extended([], []))
    fresh.prepare(1000)
    assert fresh.rules.encoder(1000) is None
    fresh.prepare(100_000_000)
    assert fresh.rules.encoder(1000) is not None
