"""The corpus: held out by hash, no duplicates, nothing dropped without its reason."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from groundup.corpus.document import read_texts
from groundup.corpus.refine import refine, split_of
from groundup.corpus.settings import CorpusSettings
from groundup.corpus.sources import find
from groundup.errors import DataError
from groundup.files import making, read_manifest


def refined(tmp_path: Path, **more: object) -> Path:
    settings = CorpusSettings.from_table({"sources": ["in"], **more})
    with making(tmp_path / "corpus", "corpus", settings.table(), {}) as draft:
        refine(find(settings, tmp_path), settings, draft)
    return tmp_path / "corpus"


def lines(tmp_path: Path, texts: list[str]) -> None:
    (tmp_path / "in").mkdir(exist_ok=True)
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def test_splits_are_decided_by_the_sha256_of_the_text_alone(tmp_path: Path) -> None:
    texts = [f"Tale number {number} of the long winter by the fire. " * 3 for number in range(2000)]
    lines(tmp_path, texts)
    corpus = refined(tmp_path)
    for split in ("train", "validation", "test"):
        for text in read_texts(corpus / f"{split}.parquet"):
            assert split_of(hashlib.sha256(text.encode()).hexdigest(), 0.05, 0.05) == split
    sizes = read_manifest(corpus).statistics
    assert 70 < sizes["validation"]["documents"] < 130  # 5 % of 2,000 within three standard deviations
    assert 70 < sizes["test"]["documents"] < 130
    before = (corpus / "test.parquet").read_bytes()
    lines(tmp_path, texts[::-1][:1500])  # other order, fewer documents: who is held out stays held out
    after = refined(tmp_path)
    assert set(read_texts(after / "test.parquet")) <= set(pq.read_table(corpus / "test.parquet")["text"].to_pylist())
    assert before != b""


def test_no_exact_duplicate_is_kept_anywhere(tmp_path: Path) -> None:
    texts = [f"The tale of the {number % 50} geese that went to market on a Sunday. " * 3 for number in range(500)]
    lines(tmp_path, [text + "  \r\n" * (number % 3) for number, text in enumerate(texts)])  # alike once cleaned
    corpus = refined(tmp_path)
    kept = [text for split in ("train", "validation", "test") for text in read_texts(corpus / f"{split}.parquet")]
    assert len(kept) == len(set(kept)) == 50
    assert read_manifest(corpus).statistics["dropped"] == {"exact duplicate": 450}


def test_everything_dropped_is_kept_with_its_reason(tmp_path: Path) -> None:
    good = [f"A good long tale about a king and his {number} daughters. " * 4 for number in range(20)]
    lines(tmp_path, [*good, "short", "1234567890 " * 30, good[0], ""])
    (tmp_path / "in" / "latin.txt").write_bytes("Grüße aus der Stadt".encode("latin-1"))
    corpus = refined(tmp_path)
    dropped = pq.read_table(corpus / "dropped" / "documents.parquet").to_pylist()
    assert Counter(row["reason"] for row in dropped) == {
        "shorter than 100 characters": 1,
        "less than 60% letters": 1,
        "exact duplicate": 1,
        "empty": 1,
        "not utf-8: invalid start byte at byte 2": 1,
    }
    assert [row["source"] for row in dropped] == [*(f"in/a.jsonl:{n}" for n in range(21, 25)), "in/latin.txt"]
    statistics = read_manifest(corpus).statistics
    kept = sum(statistics[split]["documents"] for split in ("train", "validation", "test"))
    assert kept + sum(statistics["dropped"].values()) == statistics["read"]["documents"] == 25


@pytest.mark.parametrize("number", [3, 4, 7])
def test_even_a_few_documents_give_three_splits(tmp_path: Path, number: int) -> None:
    lines(tmp_path, [f"Tale {n} of a hen that laid one golden egg every day until spring. " * 3 for n in range(number)])
    statistics = read_manifest(refined(tmp_path)).statistics
    sizes = [statistics[split]["documents"] for split in ("train", "validation", "test")]
    assert min(sizes) >= 1
    assert sum(sizes) == number


def test_too_little_left_is_an_error_with_the_counts(tmp_path: Path) -> None:
    lines(tmp_path, ["short", "also short", "12345 " * 100])
    with pytest.raises(DataError, match="0 documents left of 3 read.*2 × shorter than 100.*1 × less than 60%"):
        refined(tmp_path)
    assert not (tmp_path / "corpus").exists()


def test_a_100_mb_line_is_cut_into_documents_and_kept_whole(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    unit = "the king said to the fox that the road was long and the night was dark and cold; "
    text = "".join(f"{number} {unit}" for number in range(1_150_000))
    assert len(text) > 100_000_000
    (tmp_path / "in" / "one-line.txt").write_text(text)
    corpus = refined(tmp_path, unicode={"kind": "none"}, whitespace={"kind": "none"})
    statistics = read_manifest(corpus).statistics
    assert statistics["dropped"] == {}
    assert sum(statistics[split]["bytes"] for split in ("train", "validation", "test")) == len(text)
