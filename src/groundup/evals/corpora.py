"""A corpus whose documents carry what a model makes of them: `perplexity` and `bits_per_byte` in their metadata."""

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from groundup.artifacts import Manifest, is_made, making, read_manifest, verify
from groundup.corpus.document import SPLITS, DocumentWriter, read_batches
from groundup.evals.score import refuse_not_finite, score
from groundup.files import Progress, canonical_json, explaining_write_errors, no_progress, write_text
from groundup.model.transformer import Transformer
from groundup.shards import stream_of
from groundup.tokenizer.tokenizer import Tokenizer

SCORES = ("perplexity", "bits_per_byte")


def score_corpus(
    model: Transformer,
    tokenizer: Tokenizer,
    digest: str,
    corpus: Path,
    out: Path,
    batch_rows: int = 16,
    progress: Progress = no_progress,
) -> Manifest:
    """Write a corpus directory with the documents of another, each scored in windows as `evals.score.score` does.

    What was scored before an interruption is kept beside `out`, and not scored again.

    Args:
        digest: of the model, by which what was scored before is known to be its own.
        batch_rows: windows that go through the model at once.
        progress: gets the number of documents.

    Raises:
        DataError: no corpus, or a damaged one.
        SettingsError: a text with a token for which the model has no row.
        DivergedError: scores that are not finite numbers.
    """
    origin = verify(corpus, "corpus")
    inputs = {"corpus": origin.digest, "model": digest}
    if is_made(out) and dict((made := read_manifest(out, "corpus")).inputs) == inputs:
        return made
    done, total = 0, sum(origin.statistics[split]["documents"] for split in SPLITS)
    work = _begin(out.with_name(f".{out.name}.scores"), inputs)
    with making(out, "corpus", origin.settings, inputs) as draft:
        for split in SPLITS:
            with closing(DocumentWriter(draft.path / f"{split}.parquet")) as writer:
                for number, batch in enumerate(read_batches(corpus / f"{split}.parquet")):
                    progress(done, total, split)
                    kept = work / f"{split}-{number}.json"
                    if not kept.is_file():
                        texts = batch.column("text").to_pylist()
                        write_text(kept, json.dumps(_scores(model, tokenizer, texts, batch_rows)))
                    writer.write_table(_with_scores(pa.Table.from_batches([batch]), json.loads(kept.read_bytes())))
                    done += len(batch)
        if (corpus / "dropped").is_dir():
            shutil.copytree(corpus / "dropped", draft.path / "dropped")
        draft.statistics |= origin.statistics
    shutil.rmtree(work)
    progress(total, total, "")
    return read_manifest(out, "corpus")


def _begin(work: Path, inputs: dict[str, str]) -> Path:
    """The folder of what was scored, without what is of another corpus or model."""
    head, path = canonical_json(inputs).decode(), work / "inputs.json"
    if not path.is_file() or path.read_text("utf-8") != head:
        shutil.rmtree(work, ignore_errors=True)
        with explaining_write_errors(work):
            work.mkdir(parents=True)
        write_text(path, head)
    return work


def _scores(model: Transformer, tokenizer: Tokenizer, texts: list[str], batch_rows: int) -> list[list[float]]:
    """Perplexity of a token, and bits per byte, of each text, to six digits."""
    stream = stream_of([(text, len(text.encode())) for text in texts], tokenizer)
    tokenizer.refuse_without_row(np.unique(stream.ids).tolist(), model.config.vocab_size or 0)
    result = score(model, stream, batch_rows=batch_rows)
    refuse_not_finite(result, "this model")
    tokens = [stream.targets(number + 1) - stream.targets(number) for number in range(len(texts))]
    each = zip(result.document_bits.tolist(), tokens, stream.n_bytes.tolist(), strict=True)
    return [[_six(2 ** min(1000.0, bits / n)), _six(bits / n_bytes)] for bits, n, n_bytes in each]


def _six(value: float) -> float:
    """
    >>> _six(1234.56789), _six(0.12345678)
    (1234.57, 0.123457)
    """
    return float(f"{value:.6g}")


def _with_scores(table: pa.Table, scores: list[list[float]]) -> pa.Table:
    def add(metadata: str, values: list[float]) -> str:
        row: dict[str, Any] = orjson.loads(metadata) | dict(zip(SCORES, values, strict=True))
        return orjson.dumps(row).decode()

    metadata = map(add, table.column("metadata").to_pylist(), scores)
    return table.set_column(table.schema.get_field_index("metadata"), "metadata", pa.array(metadata, pa.string()))
