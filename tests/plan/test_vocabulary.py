"""The size of a vocabulary: every smaller one read off the largest, and the rule against what was trained."""

import gzip
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from groundup.errors import DataError, SettingsError
from groundup.model.settings import ModelConfig
from groundup.plan.vocabulary import SEEN, Curve, Size, advise, chart, counts_by_size, measure, rows, table
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tools.advise import reasons
from groundup.tools.survey import survey


def shape(d_model: int, n_layers: int) -> ModelConfig:
    """Llama's blocks, as the recipes have them."""
    return ModelConfig(
        context_length=256,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=max(1, d_model // 64),
        d_ff=-(-8 * d_model // 3 // 64) * 64,
    )


@pytest.fixture(scope="module")
def tales() -> list[str]:
    return survey(("groundup:storybook",), Path()).texts


@pytest.fixture(scope="module")
def tales_curve(tales: list[str]) -> Curve:
    return measure(tales, largest=8192, learn_bytes=1_000_000)


def first_merges(tokenizer: Tokenizer, number: int) -> Tokenizer:
    return Tokenizer.of_merges(tokenizer.rules.pairs[:number], tokenizer.pattern)


def test_the_first_merges_are_those_of_learning_fewer(tales: list[str]) -> None:
    large = Tokenizer.learn(tales[:60], vocab_size=1024)
    small = Tokenizer.learn(tales[:60], vocab_size=512)
    cut = first_merges(large, 512 - 256 - 16)
    assert cut.vocab_size == 512
    assert cut.merges == small.merges
    assert cut.tokens == small.tokens and cut.special == small.special
    assert cut.encode(tales[70]) == small.encode(tales[70])
    assert first_merges(large, 752).tokens == large.tokens
    assert first_merges(large, 0).encode("king") == [large.encode(letter)[0] for letter in "king"]


def test_every_smaller_vocabulary_is_counted_as_if_it_had_been_used(tales: list[str]) -> None:
    tokenizer = Tokenizer.learn(tales[:60], vocab_size=1024)
    messy = bytes(random.Random(0).randrange(256) for _ in range(5000)).decode("latin-1")
    texts = [*tales[60:80], "aaaaaaaaaaaa " * 30, messy]
    counts = np.bincount(np.concatenate(tokenizer.encode_batch(texts)), minlength=tokenizer.vocab_size)
    for size, found in counts_by_size(tokenizer, counts, [320, 512, 832, 1024]):
        smaller = first_merges(tokenizer, size - 256 - 16)
        used = Counter(i for text in texts for i in smaller.encode(text))
        assert found.tolist() == [used[i] for i in range(size - 16)]


def test_the_curve_is_what_learning_at_each_size_would_give(tales: list[str]) -> None:
    texts = tales[:50]
    curve = measure(texts, largest=1024)
    assert [size.vocab_size for size in curve.sizes] == [512, 1024]
    assert curve.learned_bytes + curve.measured_bytes == sum(len(text.encode()) for text in texts)
    assert curve.measured_bytes < 0.2 * sum(len(text.encode()) for text in texts)
    assert measure(texts[::-1], largest=1024).sizes == curve.sizes  # chosen by their text, not by their place
    apart = [text for text in texts if text not in learned_on(texts, curve)]
    tokenizer = Tokenizer.learn([text for text in texts if text not in apart], vocab_size=512)
    tokens = sum(1 + len(tokenizer.encode(text)) for text in apart)
    assert curve.sizes[0].bytes_per_token == pytest.approx(curve.measured_bytes / tokens)


def learned_on(texts: list[str], curve: Curve) -> list[str]:
    """By the lowest sha256, documents are kept apart up to the bytes that the curve says it measured on."""
    import hashlib

    order = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    size = 0
    for number, text in enumerate(order):
        if size == curve.measured_bytes:
            return order[number:]
        size += len(text.encode())
    raise AssertionError("no such part")


def test_measured_on_part_of_the_texts_no_more_is_learned_on_than_was_said(tales: list[str]) -> None:
    curve = measure(tales, largest=512, learn_bytes=200_000)
    assert 100_000 < curve.learned_bytes <= 200_000
    assert 10_000 < curve.measured_bytes <= 50_000


def test_the_rule_weighs_shorter_texts_against_the_larger_head() -> None:
    """Worked by hand: six operations for each weight of the head, one for each id and channel."""

    def curve(*pairs: tuple[int, float, float]) -> Curve:
        return Curve(tuple(Size(n, b, b, seen, 0) for n, b, seen in pairs), 1000, 250, None)

    model = shape(64, 4)
    blocks = model.with_vocabulary(0).training_flops_per_token
    measured = curve((512, 2.0, 100), (1024, 3.0, 50), (2048, 3.2, 20))
    advice = advise(measured, model, 1000)
    assert [row.flops_per_byte for row in advice.rows] == [
        pytest.approx((blocks + 6 * 64 * n) / b) for n, b in ((512, 2.0), (1024, 3.0), (2048, 3.2))
    ]
    assert advice.vocab_size == 1024 == advice.model.vocab_size
    assert advise(measured, shape(1024, 16), 1000).vocab_size == 2048  # the head hardly counts in a large model
    assert (
        advise(measured, shape(1024, 16), 1000 * (SEEN - 1) / 20).vocab_size == 1024
    )  # 2,048 would be seen too seldom
    assert advise(measured, shape(1024, 16), 1).vocab_size == 512  # none is seen enough: the smallest
    assert advice.best.vocabulary_share == 1024 * 64 / model.with_vocabulary(1024).parameters


@pytest.mark.parametrize(
    ("d_model", "n_layers", "trained"), [(192, 6, [4096, 2048]), (256, 6, [4096, 2048])], ids=["192 x 6", "256 x 6"]
)
def test_the_storybook_is_advised_what_was_best_in_training(
    tales_curve: Curve, d_model: int, n_layers: int, trained: list[int]
) -> None:
    """docs/log.md: 2,048 and 4,096 ids were alike there, 1.462 and 1.458 bits per byte."""
    advice = advise(tales_curve, shape(d_model, n_layers), 4_400_000)
    assert [advice.vocab_size, *advice.alike] == trained


def test_two_hundred_stories_rank_sizes_as_training_did(shared: Path) -> None:
    """docs/log.md, 128 wide and 4 layers: 2,048 ids 1.704, 1,024 1.766, 4,096 1.808, 512 1.867 bits per byte."""
    text = gzip.decompress((shared / "data" / "corpora" / "tinystories_sample.txt.gz").read_bytes()).decode()
    stories = re.split(r"(?<!\n)\n(?!\n)", text)[:337]
    size = len("".join(stories).encode())
    assert size == pytest.approx(230_000, rel=0.1)
    advice = advise(measure(stories, largest=4096), shape(128, 4), 0.9 * size)
    by_operations = sorted(advice.rows, key=lambda row: row.flops_per_byte)
    assert [row.size.vocab_size for row in by_operations] == [2048, 1024, 4096, 512]
    assert advice.vocab_size == 2048


def test_advice_in_words_says_what_the_table_says(tales_curve: Curve) -> None:
    advice = advise(tales_curve, shape(192, 6), 4_400_000)
    told = table(advice)
    assert told["vocab_size"] == 4096 and [size["vocab_size"] for size in told["sizes"]] == [
        512,
        1024,
        2048,
        4096,
        8192,
    ]
    assert [row[0] for row in rows(advice)[1:]] == ["512", "1,024", "2,048", "4,096", "8,192"]
    assert [line[0] for line in chart(advice)] == [" ", " ", " ", "→", " "]
    said = " ".join(reasons(advice))
    assert ("4,096 ids: with them a model 192 wide with 6 layers needs") in said
    assert "2,048 would do as well" in said


def test_few_texts_run_out_of_pairs_and_it_says_so() -> None:
    curve = measure(["the king and the queen " * 20, "the fox and the hill " * 20], largest=1024)
    assert [size.vocab_size for size in curve.sizes] == [320]
    assert curve.runs_out_at is not None and curve.runs_out_at < 320
    assert f"With {curve.runs_out_at} ids the texts run out" in " ".join(reasons(advise(curve, shape(64, 4), 800)))


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(DataError, match="no text to learn a vocabulary on"):
        measure(["", ""])
    with pytest.raises(SettingsError, match="the largest vocabulary is 100; sizes from 512 on are measured"):
        measure(["some text", "more text"], largest=100)
