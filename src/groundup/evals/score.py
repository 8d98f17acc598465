"""Bits per byte and perplexity of documents, with the standard error over documents."""

import math
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt
import torch

from groundup.batch import to
from groundup.evals.statistics import ratio
from groundup.files import Progress, no_progress
from groundup.loader import cut
from groundup.losses import Attending, by_document, token_logprobs
from groundup.model.transformer import Transformer
from groundup.shards import Tokens


@dataclass(frozen=True)
class Score:
    """What a model makes of some documents."""

    bits_per_byte: float
    """−Σ log2 p over all tokens, closing `<|endoftext|>` included, divided by the UTF-8 bytes of the text."""
    standard_error: float
    """Of bits per byte, over documents."""
    perplexity: float
    """exp of the mean negative log-probability of a token."""
    documents: int
    tokens: int
    bytes: int
    document_bits: npt.NDArray[np.float64] = field(repr=False, compare=False)
    """(documents,) −Σ log2 p of each document, in the order of the stream."""


def score(
    model: Transformer,
    shards: Tokens,
    *,
    max_tokens: int | None = None,
    batch_rows: int = 16,
    attending: Attending = by_document,
    progress: Progress = no_progress,
) -> Score:
    """Score documents, each in windows of the context length that do not overlap and begin with the document.

    Args:
        max_tokens: stop after the document that reaches this many tokens; all documents if not given.
    """
    context = model.config.context_length
    lengths = np.diff(shards.offsets)
    n_documents = len(lengths)
    if max_tokens is not None:
        n_documents = min(n_documents, int(np.searchsorted(np.cumsum(lengths), max_tokens)) + 1)
    starts = np.concatenate([np.arange(shards.offsets[d], shards.offsets[d + 1], context) for d in range(n_documents)])
    owner = np.searchsorted(shards.offsets, starts, side="right") - 1
    nats = np.zeros(n_documents)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        for first in range(0, len(starts), batch_rows):
            progress(first, len(starts), "windows")
            window = slice(first, first + batch_rows)
            batch = to(cut(shards, starts[window], context), device)
            documents = torch.from_numpy(owner[window])
            with torch.no_grad():
                logprobs = token_logprobs(model, batch, attending).cpu().double()
            own = batch.document.cpu() == documents[:, None]  # a short document's window runs on into the next
            np.add.at(nats, owner[window], -(logprobs * own).sum(dim=1).numpy())
    finally:
        model.train(was_training)
    progress(len(starts), len(starts), "")
    return _summary(nats / math.log(2), shards.n_bytes[:n_documents], int(shards.offsets[n_documents]))


def _summary(bits: npt.NDArray[np.float64], n_bytes: npt.NDArray[np.int64], tokens: int) -> Score:
    bits_per_byte, standard_error = ratio(bits, n_bytes)
    return Score(
        bits_per_byte=bits_per_byte,
        standard_error=standard_error,
        perplexity=2**mean if (mean := float(bits.sum()) / tokens) < 1024 else math.inf,
        documents=len(bits),
        tokens=tokens,
        bytes=int(n_bytes.sum()),
        document_bits=bits,
    )


def table_of(result: Score) -> dict[str, float | int | None]:
    """The numbers of all documents together as JSON values.

    None for what is no number: the error of one document, the perplexity of a diverged model.
    """
    table = {part.name: getattr(result, part.name) for part in fields(result) if part.name != "document_bits"}
    return {name: value if math.isfinite(value) else None for name, value in table.items()}
