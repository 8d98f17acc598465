"""Bits per byte and perplexity of documents, with the standard error over documents."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from groundup.batch import Batch, to
from groundup.errors import DivergedError
from groundup.evals.statistics import ratio
from groundup.files import Progress, no_progress
from groundup.model.transformer import Transformer, evaluating
from groundup.shards import Tokens
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train.loader import cut
from groundup.train.losses import CHUNK, Attending, by_document, token_logprobs
from groundup.words import plural


@dataclass(frozen=True)
class Score:
    """How well a model predicts some documents, as `score` measures it."""

    bits_per_byte: float
    """−Σ log2 p over all tokens, the one that closes a document included, divided by the UTF-8 bytes of the text."""
    standard_error: float
    """The standard error of bits per byte over documents."""
    perplexity: float
    """exp of the mean negative log-probability of a token."""
    documents: int
    tokens: int
    bytes: int
    document_bits: npt.NDArray[np.float64] = field(repr=False, compare=False)
    """(documents,) −Σ log2 p of each document, in the order of the stream."""


@dataclass(frozen=True)
class Window:
    """Rows that begin where a document does or where its last row ended."""

    batch: Batch
    owner: npt.NDArray[np.int64]
    """(B,) the document that each row belongs to."""
    own: Bool[Tensor, "B T"]
    """The positions that are of that document and have a target: a short document's row runs on into the next."""


@dataclass(frozen=True)
class HeldOut:
    """A model and the documents on which it is measured."""

    model: Transformer
    tokenizer: Tokenizer
    shards: Tokens
    """One split."""
    max_tokens: int | None = None
    """Read up to the document that reaches this many tokens; all documents if not given."""
    batch_rows: int = 16
    """Windows that go through the model at once."""
    progress: Progress = no_progress

    def score(self) -> Score:
        """Bits per byte and perplexity, by `score`."""
        return score(
            self.model,
            self.shards,
            max_tokens=self.max_tokens,
            batch_rows=self.batch_rows,
            progress=self.progress,
        )

    def logprobs(self) -> Iterator[tuple[Window, Float[Tensor, "B T"]]]:
        """The log-probability of the token that came at each position of a window, in float64."""
        for window, batch in self._windows():
            yield window, token_logprobs(self.model, batch, by_document).cpu().double()

    def predictions(self) -> Iterator[tuple[Float[Tensor, "N V"], Int[Tensor, "N"]]]:
        """Logits and the token that came, for every position of the documents, some at a time."""
        for window, batch in self._windows():
            own = window.own.to(batch.tokens.device)
            hidden = self.model.hidden(batch.tokens, batch.position, by_document(batch))[own]
            for rows, targets in zip(hidden.split(CHUNK), batch.targets[own].split(CHUNK), strict=True):
                yield self.model.logits(rows), targets

    def _windows(self) -> Iterator[tuple[Window, Batch]]:
        """Each window, and its batch on the model's device."""
        device, context = next(self.model.parameters()).device, self.model.config.context_length
        n_documents = documents_within(self.shards, self.max_tokens)
        for window in windows(self.shards, context, n_documents, self.batch_rows, self.progress):
            yield window, to(window.batch, device)


def documents_within(shards: Tokens, max_tokens: int | None) -> int:
    """The number of documents up to the one that reaches this many tokens."""
    if max_tokens is None:
        return shards.n_documents
    return min(shards.n_documents, int(np.searchsorted(np.cumsum(np.diff(shards.offsets)), max_tokens)) + 1)


def windows(
    shards: Tokens, context: int, n_documents: int, batch_rows: int, progress: Progress = no_progress
) -> Iterator[Window]:
    """The first documents in rows of the context length that do not overlap, `batch_rows` rows at a time."""
    starts = np.concatenate([np.arange(shards.offsets[d], shards.offsets[d + 1], context) for d in range(n_documents)])
    owner = np.searchsorted(shards.offsets, starts, side="right") - 1
    for first in range(0, len(starts), batch_rows):
        progress(first, len(starts), "windows")
        rows = slice(first, first + batch_rows)
        batch = cut(shards, starts[rows], context)
        own = (batch.document == torch.from_numpy(owner[rows])[:, None]) & (batch.weight > 0)
        yield Window(batch, owner[rows], own)


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
        model: is in `eval()` meanwhile.
        shards: one split.
        max_tokens: stop after the document that reaches this many tokens; all documents if not given.
        batch_rows: windows that go through the model at once.
        attending: batch → the `Attend` that the model reads with.
        progress: gets the number of tokens.

    >>> from groundup.model.settings import ModelConfig
    >>> from groundup.shards import stream_of
    >>> from groundup.tokenizer.tokenizer import Tokenizer
    >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
    >>> model = Transformer(ModelConfig(vocab_size=320, d_model=16, n_layers=1))
    >>> _ = model.embed.weight.data.zero_()  # every token is as likely as any other
    >>> result = score(model, stream_of([("low lower", 9), ("lowest", 6)], tokenizer))
    >>> result.tokens, result.bytes, round(result.perplexity), round(result.bits_per_byte, 3)
    (7, 15, 320, 3.884)
    """
    n_documents = documents_within(shards, max_tokens)
    nats = np.zeros(n_documents)
    device = next(model.parameters()).device
    done, total = 0, shards.targets(n_documents)
    with evaluating(model):
        for window in windows(shards, model.config.context_length, n_documents, batch_rows):
            progress(done, total, "tokens")
            logprobs = token_logprobs(model, to(window.batch, device), attending).cpu().double()
            np.add.at(nats, window.owner, -(logprobs * window.own).sum(dim=1).numpy())
            done += int(window.own.sum())
    progress(total, total, "")
    bits, n_bytes = nats / math.log(2), shards.n_bytes[:n_documents]
    bits_per_byte, standard_error = ratio(bits, n_bytes)
    return Score(
        bits_per_byte=bits_per_byte,
        standard_error=standard_error,
        perplexity=2**mean if (mean := float(bits.sum()) / total) < 1024 else math.inf,
        documents=n_documents,
        tokens=total,
        bytes=int(n_bytes.sum()),
        document_bits=bits,
    )


def refuse_not_finite(result: Score, whose: str) -> None:
    """Refuse a score of which NaN or Inf is a part.

    Raises:
        DivergedError: naming the first document.
    """
    wrong = np.flatnonzero(~np.isfinite(result.document_bits))
    if len(wrong):
        raise DivergedError(
            f"{whose} gives scores that are not finite numbers (NaN or Inf) to {len(wrong):,} of "
            f"{plural(result.documents, 'document')}, document {int(wrong[0]) + 1:,} first: it cannot be measured"
        )


def table_of(result: Score) -> dict[str, float | int | None]:
    """The numbers of all documents together as JSON values.

    None stands for what is not a finite number: the error of one document, the perplexity of a diverged model.
    """
    table = {part.name: getattr(result, part.name) for part in fields(result) if part.name != "document_bits"}
    return {name: value if math.isfinite(value) else None for name, value in table.items()}
