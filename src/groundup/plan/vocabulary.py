"""The size of a vocabulary: measured on texts at every size at once, and chosen for a model. No torch.

Merges are nested: a smaller vocabulary is a larger one without its last merges. So one is learned at the largest size,
and what it makes of other texts tells what each smaller one would have made of them.
"""

import hashlib
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from groundup.errors import DataError, SettingsError
from groundup.files import Progress, no_progress
from groundup.model.settings import LanguageModel, ModelConfig
from groundup.tokenizer.columns import column_of
from groundup.tokenizer.settings import N_BYTES, N_SPECIAL, SMALLEST
from groundup.tokenizer.tokenizer import Tokenizer

LARGEST = 65_536
"""Ids of the largest vocabulary that is measured, if nothing else is asked for."""
FIRST = 512
"""Sizes are this one doubled again and again: between two of them FLOPs per byte hardly differ."""
HELD_SHARE = 0.2
"""Share of the texts, by bytes, that is kept apart from learning and measured on."""
NEWEST_SHARE = 0.1
"""Share of the merges that are the newest: the last ones, which are the rarest tokens."""
SEEN = 5
"""Times that the middle one of the newest tokens should occur in a reading of the training texts. The best vocabulary
of the smallest corpus that models were trained on has 6 (docs/log.md); nothing was measured below it."""
RARE = 100
"""Ids that occur less often than so in a reading are counted as rare."""
ALIKE = 1.03
"""Sizes whose FLOPs per byte differ by less than this factor were alike in training (docs/log.md)."""

BATCH = 256
"""Texts encoded at once."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Size:
    """How short a vocabulary of this size makes the texts. The opening token of each document is counted."""

    vocab_size: int
    bytes_per_token: float
    """Bytes per token of documents that it was not learned on."""
    bytes_per_token_learned: float
    """Bytes per token of the documents that it was learned on."""
    newest_seen: float
    """How often the middle one of the newest tokens occurs in the documents learned on; 0 without merges."""
    rare: int
    """Merged tokens that occur fewer than `RARE` times there."""


@dataclass(frozen=True)
class Curve:
    """Vocabularies of growing size on the same texts."""

    sizes: tuple[Size, ...]
    learned_bytes: int
    measured_bytes: int
    """Bytes of the documents kept apart."""
    runs_out_at: int | None
    """Ids after which the texts had no pair left to join, if that was before the largest size asked for."""

    def of(self, vocab_size: int) -> Size:
        """The largest size measured that is not above this one."""
        return max((size for size in self.sizes if size.vocab_size <= vocab_size), key=lambda size: size.vocab_size)


def measure(
    texts: Sequence[str],
    *,
    largest: int = LARGEST,
    pattern: str = "gpt2",
    learn_bytes: int | None = None,
    progress: Progress = no_progress,
) -> Curve:
    """Learn on four fifths of the documents, chosen by the sha256 of their text, and measure on the others.

    Args:
        learn_bytes: learn on no more than about so many, and measure on a quarter of that; on all, if not given.

    Raises:
        SettingsError: for a largest size that cannot be.
        DataError: no text at all.
    """
    if largest < FIRST:
        raise SettingsError(f"the largest vocabulary is {largest:,}; sizes from {FIRST} on are measured")
    learned_on, apart = _parts(texts, learn_bytes)
    sizes = [FIRST << power for power in range((largest // FIRST).bit_length())]
    tokenizer = Tokenizer.learn(learned_on, vocab_size=sizes[-1], pattern=pattern, progress=progress)
    progress(0, 0, "encoding")
    learned_bytes, measured_bytes = (sum(len(text.encode()) for text in part) for part in (learned_on, apart))
    n_ids = len(tokenizer.merges) + N_BYTES + N_SPECIAL
    reached = [size for size in sizes if size <= n_ids] or [SMALLEST]
    inside, outside = (counts_by_size(tokenizer, _count(tokenizer, part), reached) for part in (learned_on, apart))
    measured = []
    for (size, learned), (_, others) in zip(inside, outside, strict=True):
        merged = learned[N_BYTES:]
        newest = merged[-max(1, round(len(merged) * NEWEST_SHARE)) :].tolist()
        measured.append(
            Size(
                size,
                measured_bytes / (int(others.sum()) + len(apart)),
                learned_bytes / (int(learned.sum()) + len(learned_on)),
                statistics.median(newest) if newest else 0.0,
                int((merged < RARE).sum()),
            )
        )
    runs_out_at = None if reached[-1] == sizes[-1] else n_ids
    return Curve(tuple(reversed(measured)), learned_bytes, measured_bytes, runs_out_at)


def _parts(texts: Sequence[str], learn_bytes: int | None) -> tuple[list[str], list[str]]:
    """Texts to learn from, and others to measure on; of a single text its two halves."""
    texts = [text for text in texts if text]
    if len(texts) == 1:
        middle = (len(texts[0]) + 1) // 2
        texts = [part for part in (texts[0][:middle], texts[0][middle:]) if part]
    if len(texts) < 2:
        raise DataError("there is no text to learn a vocabulary on")
    mixed = sorted(texts, key=lambda text: hashlib.sha256(text.encode("utf-8", "replace")).digest())
    totals = list(itertools.accumulate(len(text.encode("utf-8", "replace")) for text in mixed))
    held = totals[-1] * HELD_SHARE
    if learn_bytes is not None:
        held = min(held, learn_bytes * HELD_SHARE / (1 - HELD_SHARE))
    cut = min(max(1, sum(total <= held for total in totals)), len(mixed) - 1)
    last = math.inf if learn_bytes is None else totals[cut - 1] + learn_bytes
    end = max(cut + 1, sum(total <= last for total in totals))
    return mixed[cut:end], mixed[:cut]


def _count(tokenizer: Tokenizer, texts: Sequence[str]) -> Counts:
    """How often each id occurs, a batch of texts at a time."""
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    tokenizer.prepare(sum(map(len, texts)))
    for start in range(0, len(texts), BATCH):
        ids, _ = tokenizer.encode_documents(column_of(texts[start : start + BATCH]))
        counts += np.bincount(ids, minlength=len(counts))
    return counts


def counts_by_size(tokenizer: Tokenizer, counts: Counts, sizes: Sequence[int]) -> Iterator[tuple[int, Counts]]:
    """Each size, largest first, and how often each id of that vocabulary would occur, were there no later merges.

    A merged token is never part of one that was learned before it. So taking back the merges from the last on, each
    occurrence of a token becomes one of its left and one of its right side, until only the first are left.

    Args:
        tokenizer: a learned one, whose merge r makes id 256 + r.
        counts: (vocab_size,) of some text encoded with it.
        sizes: of vocabularies, 256 bytes and 16 special tokens included; none above the tokenizer's.
    """
    ids = {token: i for i, token in enumerate(tokenizer.tokens[: N_BYTES + len(tokenizer.merges)])}
    pairs = [(ids[left], ids[right]) for left, right in tokenizer.merges]
    left_over = counts.copy()
    kept = len(pairs)
    for size in sorted(sizes, reverse=True):
        wanted = size - N_BYTES - N_SPECIAL
        while kept > wanted:
            kept -= 1
            number = left_over[N_BYTES + kept]
            for side in pairs[kept]:
                left_over[side] += number
        yield size, left_over[: N_BYTES + kept].copy()


# The rule


@dataclass(frozen=True)
class Candidate:
    """A size of vocabulary for a model."""

    size: Size
    newest_seen: float
    """How often the middle one of the newest tokens occurs in one reading of all training texts."""
    parameters: int
    """Parameters of the whole model."""
    vocabulary_share: float
    """Share of the parameters in the embedding, and in the head if it is not tied."""
    flops_per_byte: float
    """FLOPs of training for each byte of text that was not learned on."""

    @property
    def is_seen(self) -> bool:
        """Whether its tokens occur often enough to be learned."""
        return self.newest_seen >= SEEN


@dataclass(frozen=True)
class Advice:
    """Vocabularies for a model, and the one to take."""

    model: ModelConfig
    """With the advised vocabulary."""
    rows: tuple[Candidate, ...]
    best: Candidate
    curve: Curve
    """What was measured."""
    text_bytes: float
    """Bytes of text to train on."""

    @property
    def vocab_size(self) -> int:
        return self.best.size.vocab_size

    @property
    def bytes_per_token(self) -> float:
        return self.best.size.bytes_per_token

    @property
    def alike(self) -> list[int]:
        """Other sizes that would do as well."""
        return [
            row.size.vocab_size
            for row in self.rows
            if row != self.best and row.is_seen and row.flops_per_byte < ALIKE * self.best.flops_per_byte
        ]


def advise(curve: Curve, model: ModelConfig, text_bytes: float) -> Advice:
    """The size at which a byte of new text costs the model the fewest FLOPs of training, among those whose newest
    tokens occur `SEEN` times in a reading of the texts; the smallest, if none do.

    Args:
        model: its shape; its own vocabulary size is ignored.
        text_bytes: to train on.
    """
    rows = tuple(_candidate(size, model, text_bytes / curve.learned_bytes) for size in curve.sizes)
    best = min((row for row in rows if row.is_seen), key=lambda row: row.flops_per_byte, default=rows[0])
    return Advice(model.with_vocabulary(best.size.vocab_size), rows, best, curve, text_bytes)


def _candidate(size: Size, shape: ModelConfig, scale: float) -> Candidate:
    model = shape.with_vocabulary(size.vocab_size)
    matrix = size.vocab_size * (model.d_embedding or model.d_model)
    own_head = isinstance(model.head, LanguageModel) and not model.head.tied
    return Candidate(
        size,
        size.newest_seen * scale,
        model.parameters,
        matrix * (1 + own_head) / model.parameters,
        model.training_flops_per_token / size.bytes_per_token,
    )


def table(advice: Advice) -> dict[str, Any]:
    """The advice and its measurements as JSON values."""
    return {
        "vocab_size": advice.vocab_size,
        "alike": advice.alike,
        "text_bytes": round(advice.text_bytes),
        "learned_bytes": advice.curve.learned_bytes,
        "measured_bytes": advice.curve.measured_bytes,
        "runs_out_at": advice.curve.runs_out_at,
        "model": {name: getattr(advice.model, name) for name in ("d_model", "n_layers", "context_length")},
        "sizes": [
            asdict(row.size) | {name: value for name, value in vars(row).items() if name != "size"}
            for row in advice.rows
        ],
    }


# In words


def rows(advice: Advice) -> list[list[str]]:
    """A table with a head and a row for each size."""
    head = ["ids", "bytes a token", "on texts learned", "newest seen", f"ids seen < {RARE}", "parameters",
            "of the vocabulary", "FLOPs a byte"]  # fmt: skip
    return [head] + [
        [
            f"{row.size.vocab_size:,}",
            f"{row.size.bytes_per_token:.2f}",
            f"{row.size.bytes_per_token_learned:.2f}",
            f"{row.newest_seen:,.0f}" + ("" if row.is_seen else " (too few)"),
            f"{row.size.rare:,}",
            f"{row.parameters / 1e6:,.1f} M",
            f"{row.vocabulary_share:.0%}",
            f"{row.flops_per_byte / 1e6:,.3g} M",
        ]
        for row in advice.rows
    ]


def chart(advice: Advice, width: int = 40) -> list[str]:
    """Bytes of text per TFLOP of training, a bar for each size; the advised one is marked."""
    bytes_for = [1e12 / row.flops_per_byte for row in advice.rows]
    return [
        f"{'→' if row == advice.best else ' '} {row.size.vocab_size:>7,}  "
        f"{'█' * round(width * each / max(bytes_for)):<{width}}  {each:,.0f}"
        for row, each in zip(advice.rows, bytes_for, strict=True)
    ]
