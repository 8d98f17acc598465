"""The compiled learning gives the merges of the plain one, whatever the threads, the memory and the interruptions."""

import random
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.tokenizer import bpe, split
from groundup.tokenizer.columns import column_of, columns_of, text_of
from groundup.tokenizer.fast import count
from groundup.tokenizer.fast.count import PreTokenCounter, Table
from groundup.tokenizer.fast.learn import learn_from, learn_merges
from groundup.tokenizer.vocabulary import byte_ids


def pre_tokens_of(counts: Counter[bytes]) -> pa.RecordBatch:
    return pa.record_batch([[*counts], [*counts.values()]], schema=count.COUNTED)


def counted(pre_tokens: pa.RecordBatch) -> dict[bytes, int]:
    assert len({*pre_tokens["text"].to_pylist()}) == len(pre_tokens), "each stands there once"
    return dict(zip(pre_tokens["text"].to_pylist(), pre_tokens["count"].to_pylist(), strict=True))


def documents(n: int, seed: int = 0) -> list[str]:
    """Words of a language with few letters, so that pairs overlap and tie."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("aab ·é", k=draw.randrange(1, 30))) for _ in range(300)]
    return [" ".join(draw.choices(words, k=draw.randrange(60))) for _ in range(n)]


@given(st.dictionaries(st.text("abé", min_size=1, max_size=24).map(str.encode), st.integers(1, 5), max_size=12))
@settings(max_examples=300)
def test_merges_are_those_of_the_plain_version(counts: dict[bytes, int]) -> None:
    plain = bpe.learn_merges(Counter(counts), byte_ids(), 60)
    assert learn_merges(pre_tokens_of(Counter(counts)), byte_ids(), 60) == plain


@pytest.mark.parametrize("pattern", ["gpt2", "o200k", "unspaced"])
def test_merges_are_those_of_the_plain_version_on_real_text(pattern: str, story_texts: list[str]) -> None:
    texts = [*story_texts[:60], *documents(40), "a" * 5000, "日本語のテキスト" * 300]
    plain = bpe.learn_merges(bpe.count_pre_tokens(texts, pattern), byte_ids(), 3000)
    assert learn_from(columns_of(texts), pattern, byte_ids(), 3000, 2_000_000_000) == (plain, 1)


@given(st.lists(st.one_of(st.text("ab", min_size=1, max_size=40).map(str.encode), st.binary(min_size=1)), max_size=60))
def test_a_table_counts_as_a_counter_does(pre_tokens: list[bytes]) -> None:
    table = Table()
    table.count(np.frombuffer(b"".join(pre_tokens), np.uint8), np.cumsum([*map(len, pre_tokens)], dtype=np.int64), 0)
    assert counted(table.pre_tokens()) == Counter(pre_tokens)


def add(counter: PreTokenCounter, texts: list[str]) -> None:
    for start in range(0, len(texts), 20):
        counter.add(*text_of(column_of(texts[start : start + 20])))


def test_counts_are_the_same_for_any_threads_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count, "BYTES_AT_ONCE", 500)
    texts = documents(200)
    plain = Counter(pre_token.encode() for text in texts for pre_token in split.pre_tokens(text, "gpt2"))
    for threads, memory in ((1, 1 << 30), (4, 1 << 30), (1, 1), (3, 1)):
        with closing(PreTokenCounter("gpt2", memory, n_threads=threads)) as counter:
            add(counter, texts)
            pre_tokens, least = counter.pre_tokens(1 << 30)
        assert counted(pre_tokens) == plain
        assert least == 1


def test_an_interrupted_count_goes_on(tmp_path: Path) -> None:
    texts = documents(200)
    with closing(PreTokenCounter("gpt2", 1, tmp_path / "counts", "these")) as first:
        add(first, texts[:120])
    with closing(PreTokenCounter("gpt2", 1 << 30, tmp_path / "counts", "these")) as again:
        assert again.documents == 120
        add(again, texts[120:])
        pre_tokens, _ = again.pre_tokens(1 << 30)
    assert counted(pre_tokens) == Counter(
        pre_token.encode() for text in texts for pre_token in split.pre_tokens(text, "gpt2")
    )


@pytest.mark.parametrize(("pattern", "of"), [("cl100k", "these"), ("gpt2", "others")])
def test_what_was_counted_of_others_is_not_used(tmp_path: Path, pattern: str, of: str) -> None:
    with closing(PreTokenCounter("gpt2", 1, tmp_path / "counts", "these")) as first:
        add(first, documents(20))
    with closing(PreTokenCounter(pattern, 1, tmp_path / "counts", of)) as other:
        assert other.documents == 0
    assert not (tmp_path / "counts").exists()


def test_what_another_version_counted_is_not_used(tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    counts.mkdir()
    (counts / "00000-00.npz").write_bytes(b"")
    (counts / "counted.json").write_text('{"of": "these", "split": "gpt2", "documents": 20, "saved": 1}')
    with closing(PreTokenCounter("gpt2", 1, counts, "these")) as anew:
        assert anew.documents == 0
        add(anew, documents(20))
        assert counted(anew.pre_tokens(1 << 30)[0])


def test_what_does_not_fit_the_memory_is_the_rarest(tmp_path: Path) -> None:
    texts = documents(200)
    with closing(PreTokenCounter("gpt2", 1 << 30)) as counter:
        add(counter, texts)
        everything = counted(counter.pre_tokens(1 << 30)[0])
        pre_tokens, least = counter.pre_tokens(2000)
    assert least > 1
    assert sum(map(len, pre_tokens["text"].to_pylist())) <= 2000
    assert counted(pre_tokens) == {pre_token: number for pre_token, number in everything.items() if number >= least}
    more = sum(len(pre_token) for pre_token, number in everything.items() if number >= least - 1)
    assert more > 2000, "no more was left out than had to be"


def test_learning_goes_on_from_what_was_counted(tmp_path: Path) -> None:
    texts = documents(300, seed=3)
    plain, _ = learn_from(columns_of(texts), "gpt2", byte_ids(), 400, 2_000_000_000)

    def broken() -> Iterable[pa.Array]:
        yield column_of(texts[:100])
        raise KeyboardInterrupt

    counts = tmp_path / "counts"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(count, "SECONDS_BETWEEN_SAVES", 0)
        learn_from(broken(), "gpt2", byte_ids(), 400, 2_000_000_000, directory=counts, of="x")
    assert counts.is_dir()
    told: list[int] = []
    columns = (column_of(texts[start : start + 70]) for start in range(0, 300, 70))
    again, _ = learn_from(
        columns,
        "gpt2",
        byte_ids(),
        400,
        2_000_000_000,
        lambda done, total, what: told.append(done) if what == "documents counted" else None,
        directory=counts,
        of="x",
    )
    assert again == plain
    assert told[0] == 140, "the hundred that were counted were not counted again"
    assert not counts.exists()
