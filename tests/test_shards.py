"""Shards: the stream holds every document, and damage is refused."""

from pathlib import Path

import numpy as np
import pytest

from groundup.corpus.document import Document, DocumentWriter
from groundup.errors import DataError
from groundup.files import making, verify
from groundup.shards import open_split, pack, stream_of
from groundup.tokenizer.tokenizer import Tokenizer

TEXTS = ["the king", "and the little fox", "", "über den hügel"]


@pytest.fixture
def packed(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    for split, texts in {"train": TEXTS, "validation": TEXTS[:1], "test": TEXTS[1:2]}.items():
        writer = DocumentWriter(tmp_path / "corpus" / f"{split}.parquet")
        for text in texts:
            writer.write(Document(text, "here"))
        writer.close()
    with making(tmp_path / "shards", "shards", {}, {}) as draft:
        pack(tmp_path / "corpus", tokenizer, draft)
    return tmp_path / "shards"


def test_each_document_is_opened_by_end_of_text_and_the_stream_is_closed_by_one(
    packed: Path, tokenizer: Tokenizer
) -> None:
    tokens = open_split(packed, "train")
    assert tokens.ids.dtype == np.uint16
    for number, text in enumerate(TEXTS):
        document = tokens.ids[tokens.offsets[number] : tokens.offsets[number + 1]]
        assert document.tolist() == [tokenizer.end_of_text, *tokenizer.encode(text)]
        assert tokens.n_bytes[number] == len(text.encode())
    assert tokens.ids[tokens.offsets[-1] :].tolist() == [tokenizer.end_of_text]


def test_a_stream_in_memory_is_the_packed_one(packed: Path, tokenizer: Tokenizer) -> None:
    packed_stream = open_split(packed, "train")
    stream = stream_of([(text, len(text.encode())) for text in TEXTS], tokenizer)
    assert stream.ids.tolist() == packed_stream.ids.tolist()
    assert stream.offsets.tolist() == packed_stream.offsets.tolist()


def test_statistics_count_what_is_there(packed: Path) -> None:
    statistics = verify(packed, "shards").statistics
    tokens = open_split(packed, "train")
    assert statistics["train"] == {
        "documents": len(TEXTS),
        "tokens": len(tokens.ids),
        "bytes": sum(len(text.encode()) for text in TEXTS),
    }


def test_damaged_foreign_and_pickled_shards_are_refused(packed: Path) -> None:
    ids = np.load(packed / "train.npy")
    np.save(packed / "train.npy", ids[:-2])
    with pytest.raises(DataError, match="do not fit each other"):
        open_split(packed, "train")
    np.save(packed / "train.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="train"):
        open_split(packed, "train")
    (packed / "train.npy").write_bytes(b"")
    with pytest.raises(DataError, match="train"):
        open_split(packed, "train")
    with pytest.raises(DataError, match="damaged"):
        verify(packed, "shards")
