"""A scored corpus has the documents of its origin, each with the score it has alone; an interruption loses little."""

import json
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from groundup.artifacts import making, verify
from groundup.corpus.document import SPLITS, Document, DocumentWriter
from groundup.evals import corpora
from groundup.evals.corpora import score_corpus
from groundup.evals.score import score
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.shards import stream_of
from groundup.tokenizer.tokenizer import Tokenizer

TEXTS = {"train": ["low lower lowest", "newer new"], "validation": ["low " * 40], "test": ["slow"]}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    with making(tmp_path / "corpus", "corpus", {"sources": ["x"]}, {"x": "0"}) as draft:
        for split in SPLITS:
            with closing(DocumentWriter(draft.path / f"{split}.parquet")) as writer:
                writer.write(*(Document(text, "x", '{"year":1812}') for text in TEXTS[split]))
            draft.statistics[split] = {"documents": len(TEXTS[split])}
    return tmp_path / "corpus"


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(vocab_size=320, d_model=16, n_layers=1, context_length=16)).eval()


TOKENIZER = Tokenizer.learn(["low lower lowest newer new slow"], vocab_size=320)


def test_each_document_has_the_score_that_it_has_alone(corpus: Path, model: Transformer, tmp_path: Path) -> None:
    score_corpus(model, TOKENIZER, "m", corpus, tmp_path / "scored")
    manifest = verify(tmp_path / "scored", "corpus")
    assert manifest.inputs["model"] == "m" and manifest.settings == {"sources": ["x"]}
    for split in SPLITS:
        rows = pq.read_table(tmp_path / "scored" / f"{split}.parquet").to_pylist()
        assert [row["text"] for row in rows] == TEXTS[split]
        for row in rows:
            alone = score(model, stream_of([(row["text"], len(row["text"]))], TOKENIZER))
            told = json.loads(row["metadata"])
            assert told["year"] == 1812
            assert told["perplexity"] == pytest.approx(alone.perplexity, rel=1e-4)  # float32, sums in another order
            assert told["bits_per_byte"] == pytest.approx(alone.bits_per_byte, rel=1e-4)


def test_what_was_scored_is_not_scored_again(
    corpus: Path, model: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score_corpus(model, TOKENIZER, "m", corpus, tmp_path / "whole")
    asked: list[int] = []
    scores = corpora._scores

    def failing(model: Transformer, tokenizer: Tokenizer, texts: list[str], rows: int) -> list[list[float]]:
        asked.append(len(texts))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return scores(model, tokenizer, texts, rows)

    monkeypatch.setattr(corpora, "_scores", failing)
    with pytest.raises(KeyboardInterrupt):
        score_corpus(model, TOKENIZER, "m", corpus, tmp_path / "scored")
    assert score_corpus(model, TOKENIZER, "m", corpus, tmp_path / "scored").digest == whole.digest
    assert asked == [2, 1, 1, 1]  # the first batch once
    score_corpus(model, TOKENIZER, "m", corpus, tmp_path / "scored")
    assert len(asked) == 4 and not list(tmp_path.glob(".*"))
