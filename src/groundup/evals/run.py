"""The evaluation stage: the test documents are read once, and the model is asked to write."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from groundup.artifacts import Draft, is_made, read_manifest
from groundup.corpus.clean import clean
from groundup.corpus.settings import CorpusSettings
from groundup.corpus.sources import find, read
from groundup.errors import DataError
from groundup.evals.baselines import texts, unigram, xz
from groundup.evals.score import Score, refuse_not_finite, score, table_of
from groundup.evals.settings import EvalSettings
from groundup.files import Progress, no_progress, write_json, write_text
from groundup.generation.text import generate
from groundup.model.transformer import Transformer
from groundup.shards import open_split, refuse_another_tokenizer, stream_of
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.load import load

ID_DIGITS = 16
"""Hex digits of the sha256 of its text that name a test document; two of a billion agree with probability 0.03."""


def evaluate(
    model_directory: Path, shards: Path, settings: EvalSettings, device: str | None, draft: Draft, progress: Progress
) -> None:
    """Write `test.json`, `documents.jsonl` and `samples.json`, and leave the score in `draft.statistics`."""
    model, tokenizer = load(model_directory, device=device)
    assert tokenizer is not None, "a model of a run has its tokenizer"
    if is_made(model_directory):
        refuse_another_tokenizer(shards, read_manifest(model_directory).inputs.get("tokenizer"), str(model_directory))
    vocab_size = tokenizer.vocab_size
    train, test = open_split(shards, "train", vocab_size), open_split(shards, "test", vocab_size)
    result = score(model, test, batch_rows=settings.batch_rows, progress=progress)
    refuse_not_finite(result, str(model_directory))
    progress(0, 1, "baselines")
    baselines = {"xz": xz(texts(test, tokenizer)), "unigram": unigram(train, test, vocab_size)}
    table = {**table_of(result), "baselines": baselines}
    write_json(draft.path / "test.json", table)
    documents = [
        {"id": hashlib.sha256(text).hexdigest()[:ID_DIGITS], "bytes": len(text), "bits": round(float(bits), 3)}
        for text, bits in zip(texts(test, tokenizer), result.document_bits, strict=True)
    ]
    write_text(draft.path / "documents.jsonl", "".join(json.dumps(document) + "\n" for document in documents))
    progress(0, 1, "samples")
    texts_written = generate(model, tokenizer, settings.prompts, **settings.sampling.model_dump())
    samples = [
        {"prompt": prompt, "seed": settings.sampling.seed + number, "text": text}
        for number, (prompt, text) in enumerate(zip(settings.prompts, texts_written, strict=True))
    ]
    write_json(draft.path / "samples.json", samples)
    draft.statistics |= {"test": table}


def score_files(
    model: Transformer,
    tokenizer: Tokenizer,
    sources: tuple[str, ...],
    corpus: CorpusSettings,
    progress: Progress = no_progress,
) -> Score:
    """Bits per byte on any files or folders, read and cleaned as `corpus` says, neither filtered nor cut.

    Args:
        model: is in `eval()` meanwhile.
        tokenizer: the model's own.
        sources: the files and folders; those of `corpus` do not count.
        progress: gets the number of tokens.

    Raises:
        DataError: when a document cannot be read, or there is none.
        SettingsError: a text with a token for which the model has no row.
        DivergedError: scores that are not finite numbers.

    >>> import tempfile
    >>> from groundup.model.settings import ModelConfig
    >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
    >>> model = Transformer(ModelConfig(vocab_size=320, d_model=16, n_layers=1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.txt").write_text("low lower\\n")
    ...     result = score_files(model, tokenizer, (folder,), CorpusSettings(sources=(folder,)))
    >>> result.documents, result.tokens, result.bytes
    (1, 3, 9)
    """
    settings = corpus.model_copy(update={"sources": sources, "max_document_bytes": sys.maxsize})
    texts = []
    for name, path in find(settings, Path()).files:
        for document in read(name, path, settings):
            if document.reason:
                raise DataError(f"{document.source}: {document.reason}")
            text = clean(document.text, settings)
            if text:
                texts.append((text, len(text.encode())))
    if not texts:
        raise DataError(f"nothing to score: {', '.join(sources)} holds no text")
    stream = stream_of(texts, tokenizer)
    tokenizer.refuse_without_row(np.unique(stream.ids).tolist(), model.config.vocab_size or 0)
    result = score(model, stream, progress=progress)
    refuse_not_finite(result, "this model")
    return result
