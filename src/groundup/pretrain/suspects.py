"""What may be wrong with a bad batch: its rows with the highest loss, and the documents that they are of."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from groundup.batch import Batch, split, to
from groundup.corpus.document import sources_of
from groundup.errors import DataError
from groundup.model.transformer import Transformer, evaluating
from groundup.train.losses import by_document, token_logprobs

WORST_ROWS = 4
"""Rows of a bad batch that are named with their documents, those with the highest loss."""
MOST_DOCUMENTS = 256
"""Documents of a bad batch that are listed by number."""


def suspects(
    model: Transformer, batch: Batch, first_row: int, rows_at_once: int, corpus: Path
) -> tuple[dict[str, Any], str]:
    """Fields for the event about a bad batch, and the rest of a sentence about it.

    Args:
        first_row: number of its first row.
        rows_at_once: most rows that go through the model at once.
        corpus: `train.parquet` of the documents, which knows where each came from; it need not exist.
    """
    losses = _row_losses(model, batch, rows_at_once)
    order = sorted(range(len(losses)), key=lambda row: -losses[row] if math.isfinite(losses[row]) else -math.inf)
    rows = {row: _document_numbers(batch.document[row]) for row in order[:WORST_ROWS]}
    sources = _sources(corpus, (number for numbers in rows.values() for number in numbers))
    worst = [
        {
            "row": first_row + row,
            "loss": losses[row],
            "documents": [{"number": n, "source": sources.get(n, "source unknown")} for n in numbers],
        }
        for row, numbers in rows.items()
    ]
    documents = _document_numbers(batch.document)
    fields = {"worst": worst, "documents": documents[:MOST_DOCUMENTS], "n_documents": len(documents)}
    numbers = rows[order[0]]
    named = ", ".join(f"{number:,} ({sources.get(number, 'source unknown')})" for number in numbers[:3])
    more = f" and {len(numbers) - 3} more" if len(numbers) > 3 else ""
    highest = f"row {first_row + order[0]:,}, loss {losses[order[0]]:.4g}, of document {named}{more}"
    return fields, f"; the worst is {highest}"


def _row_losses(model: Transformer, batch: Batch, rows_at_once: int) -> list[float]:
    """Loss of each row as the model is now, in nats a token."""
    device = next(model.parameters()).device
    losses: list[float] = []
    with evaluating(model):
        for rows in split(batch, -(-len(batch.tokens) // rows_at_once)):
            here = to(rows, device)
            nats = -(token_logprobs(model, here, by_document) * here.weight).sum(dim=1)
            losses += (nats / here.weight.sum(dim=1).clamp(min=1)).tolist()
    return losses


def _document_numbers(documents: Tensor) -> list[int]:
    """Numbers of the documents, padding left out."""
    return [number for number in documents.unique().tolist() if number >= 0]


def _sources(corpus: Path, numbers: Iterable[int]) -> dict[int, str]:
    try:
        return sources_of(corpus, numbers)
    except DataError:
        return {}  # the corpus may have been removed; the numbers are still true
