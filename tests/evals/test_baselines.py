"""The baselines, against the compressor itself and against counting in plain Python."""

import lzma
import math
from collections import Counter

import pytest

from groundup.evals import baselines
from groundup.shards import Tokens, stream_of
from groundup.tokenizer.tokenizer import Tokenizer

TRAIN = ["the king and the queen", "the little fox went over the hill " * 3, "ü"]
TEST = ["the old queen sat by the well", "zzz", "the king " * 40]


def packed(texts: list[str], tokenizer: Tokenizer) -> Tokens:
    return stream_of([(text, len(text.encode())) for text in texts], tokenizer)


def test_texts_come_back_byte_for_byte(tokenizer: Tokenizer) -> None:
    assert list(baselines.texts(packed(TRAIN, tokenizer), tokenizer)) == [text.encode() for text in TRAIN]


def test_xz_is_xz_over_all_documents_together() -> None:
    documents = [text.encode() for text in TEST]
    whole = b"".join(documents)
    assert baselines.xz(documents) == 8 * len(lzma.compress(whole, preset=9)) / len(whole)


@pytest.mark.parametrize("tokens_at_once", [1 << 24, 7])
def test_unigram_is_counting_plus_one(
    tokenizer: Tokenizer, tokens_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundup.shards.IDS_AT_ONCE", tokens_at_once)
    targets = [[*tokenizer.encode(text), tokenizer.opener] for text in TRAIN]
    seen = Counter(i for ids in targets for i in ids)
    total = sum(seen.values()) + tokenizer.vocab_size
    bits = sum(-math.log2((seen[i] + 1) / total) for text in TEST for i in [*tokenizer.encode(text), tokenizer.opener])
    plain = bits / sum(len(text.encode()) for text in TEST)
    found = baselines.unigram(packed(TRAIN, tokenizer), packed(TEST, tokenizer), tokenizer.vocab_size)
    assert found == pytest.approx(plain, rel=1e-12)


def test_without_training_text_every_token_is_as_likely(tokenizer: Tokenizer) -> None:
    test = packed(TEST, tokenizer)
    nothing = packed([], tokenizer)
    found = baselines.unigram(nothing, test, tokenizer.vocab_size)
    assert found == pytest.approx(math.log2(tokenizer.vocab_size) * test.offsets[-1] / test.n_bytes.sum())
