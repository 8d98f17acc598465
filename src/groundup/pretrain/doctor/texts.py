"""The doctor's checks of text: tokenizer, shards, held-out documents, and the order of rows."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from groundup.batch import Batch
from groundup.corpus.refine import describe_marks
from groundup.errors import DataError, SettingsError
from groundup.pretrain.doctor.verdict import Verdict, error, judge, ok, warning
from groundup.shards import Tokens
from groundup.tokenizer.settings import N_BYTES
from groundup.tokenizer.tokenizer import Tokenizer

DrawRows = Callable[[int, int], Batch]
"""`rows(first, count)`: that many rows of the shuffled sequence, as training draws them."""
Hashes = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
WINDOW = 16
"""Tokens at its beginning by which a row is known."""
MOST_COPIED = 0.05
"""Share of held-out documents with copies in training, above which scores say nothing."""


def check_round_trip(tokenizer: Tokenizer, texts: Sequence[str]) -> Verdict:
    """Whether decode(encode(text)) is the text."""
    encoded = [tokenizer.encode(text) for text in texts]
    lost = [text for text, ids in zip(texts, encoded, strict=True) if tokenizer.decode(ids) != text]
    n_bytes, n_ids = sum(len(text.encode()) for text in texts), sum(map(len, encoded))
    finding = f"{len(texts) - len(lost)} of {len(texts)} texts come back, {n_bytes / max(1, n_ids):.2f} bytes per token"
    if not lost:
        return ok("tokenizer", finding)
    advice = "the model cannot write what it reads: use another tokenizer"
    return error("tokenizer", f"{finding}; not {lost[0][:40]!r}", advice, SettingsError)


def check_separators(marks: Mapping[str, Any]) -> Verdict:
    """Whether texts hold marks that tools put between documents, as the corpus counted them (`corpus.refine.Marks`)."""
    findings = list(describe_marks(marks))
    if not findings:
        return ok("separators", "no text holds a mark such as <|endoftext|>")
    return warning("separators", "; ".join(finding for finding, _ in findings), findings[0][1])


def token_frequencies_loss(counts: Counts) -> float:
    """The loss, in nats, of a model that knows only how often each token occurs: the entropy of these shares.

    >>> round(token_frequencies_loss(np.array([2, 2, 0, 4])) / math.log(2), 6)
    1.5
    """
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def check_vocabulary(counts: Counts, tokenizer: Tokenizer, may_learn: bool) -> Verdict:
    """Whether the texts use the vocabulary. Special ids, which no text should hold, are not counted.

    Args:
        counts: how often each id occurs.
        may_learn: whether another tokenizer could be learned: this one was not, and no trained model needs it.
    """
    special = set(tokenizer.special.values())
    unused = [i for i in np.flatnonzero(counts == 0).tolist() if i not in special]
    tokens = tokenizer.tokens
    n_bytes = sum(len(tokens[i]) == 1 for i in unused)
    n_merged, merged = len(unused) - n_bytes, len(tokens) - N_BYTES - len(special)
    finding = f"of {len(tokens):,} ids {len(unused):,} never occur"
    if n_bytes:
        finding += f": {f'{n_bytes:,} are ' * (n_merged > 0)}bytes that these texts do not have"
    advice = 'set tokenizer.kind = "learned" instead of "existing": the rows of unused ids cost memory'
    return judge("vocabulary", finding, (may_learn and n_merged > merged / 2, warning, advice))


def check_shards(shards: Path, train: Tokens, tokenizer: Tokenizer, texts: Iterable[str]) -> Verdict:
    """Whether the ids are this tokenizer's ids of `texts`, the first training documents in order."""
    number = 0
    for number, text in enumerate(texts, start=1):
        ids = np.asarray(train.ids[train.offsets[number - 1] : train.offsets[number]]).tolist()
        if ids != tokenizer.framed(tokenizer.encode(text)):
            finding = f"document {number} was packed with other ids than this tokenizer gives"
            return error("shards", finding, f"remove {shards}: the next build packs again", SettingsError)
    return ok("shards", f"{number} documents are packed with the ids of this tokenizer")


# --- held-out text ---


def check_held_out(found: Mapping[str, Any] | None) -> Verdict:
    """Whether passages of validation and test documents are in training, as the corpus counted them.

    Args:
        found: `corpus.duplicates.Shared.statistics`; none, if the corpus has none.
    """
    if found is None:
        return ok("held-out text", "not compared with training when the corpus was made")
    documents, copied = sum(found["documents"].values()), sum(found["copied"].values())
    each = ", ".join(f"{n:,} of {found['documents'][name]:,} {name}" for name, n in found["copied"].items())
    finding = f"{each} documents have copies among the training documents"
    if found["dropped"] or not copied:
        return ok("held-out text", f"{finding}; {found['dropped']:,} were dropped there" if copied else finding)
    if found["repetitive"]:
        finding += "; but they repeat each other too"
        return warning("held-out text", finding, "the texts are repetitive: scores will say little")
    advice = 'set corpus.held_out.action = "drop", or remove one of the two copies: scores would be too good'
    verdict = error("held-out text", finding, advice, DataError)
    return verdict if copied > MOST_COPIED * documents else warning("held-out text", finding, advice)


# --- the order of rows ---


def check_order(rows: DrawRows, train: Tokens, context_length: int, most: int = 256) -> Verdict:
    """Whether rows come in shuffled order, each once per epoch, and in another order in the next epoch."""
    n = train.n_rows(context_length)
    if n < 16 or context_length < WINDOW:
        return ok("order of rows", f"only {n} rows of {context_length} tokens: too few to tell")
    find = _row_finder(train, context_length)
    m = min(most, n)
    spread = [find(rows(int(number), 1)) for number in np.linspace(0, n - 1, m).astype(int)]
    fault = _order_fault(find(rows(0, m)), find(rows(n, m)), np.concatenate(spread), n)
    finding = f"{m} rows of {n:,}: {fault or 'shuffled, and in another order in the second epoch'}"
    advice = "draw rows in the order of a seeded permutation, a new one each epoch (loader.rows)"
    return judge("order of rows", finding, (fault, error, advice))


def _order_fault(
    first: npt.NDArray[np.int64], second: npt.NDArray[np.int64], spread: npt.NDArray[np.int64], n: int
) -> str | None:
    """The fault in an order, if there is one.

    Args:
        first, second: numbers in the text of the first rows of two epochs; −1 where a row's number is not known.
        spread: those of rows at equal distances in the first epoch.
        n: rows of an epoch.
    """
    known = (first[1:] >= 0) & (first[:-1] >= 0)
    near = np.abs(np.diff(first))[known] <= 2
    if known.sum() >= 8 and near.mean() > max(0.3, 16 / n):
        return f"{near.mean():.0%} are next to the one before: not shuffled"
    spread = spread[spread >= 0]
    if len(spread) >= 8:
        order = np.corrcoef(spread.argsort().argsort(), np.arange(len(spread)))[0, 1]
        if abs(order) > min(0.9, 5 / math.sqrt(len(spread)) + 0.1):
            return f"nearly the order of the text (correlation {order:.2f}): not shuffled, or only in a small buffer"
    both = (first >= 0) & (second >= 0)
    if both.sum() >= 8 and (first == second)[both].mean() > 0.3:
        return "the second epoch has the order of the first: not shuffled again"
    first = first[first >= 0]
    if len(first) - len(np.unique(first)) > 0.05 * len(first):
        return "some come twice within an epoch"
    return None


def _row_finder(train: Tokens, context_length: int) -> Callable[[Batch], npt.NDArray[np.int64]]:
    """A function from a batch to each row's number in the text; −1 for a row whose beginning occurs more than once."""
    starts = np.arange(train.n_rows(context_length)) * context_length
    positions = np.minimum(starts[:, None] + np.arange(WINDOW), len(train.ids) - 1)

    def hash_rows(ids: npt.NDArray[Any], documents: npt.NDArray[Any]) -> Hashes:
        return _passage_hashes(ids)[:, 0] + documents.astype(np.uint64) * np.uint64(0xBF58476D1CE4E5B9)

    hashes = hash_rows(train.ids[positions], np.searchsorted(train.offsets, starts, side="right") - 1)
    distinct, index, times = np.unique(hashes, return_index=True, return_counts=True)

    def find(batch: Batch) -> npt.NDArray[np.int64]:
        wanted = hash_rows(batch.tokens[:, :WINDOW].numpy(), batch.document[:, 0].numpy())
        where = np.minimum(np.searchsorted(distinct, wanted), len(distinct) - 1)
        return np.where((distinct[where] == wanted) & (times[where] == 1), index[where], -1)

    return find


def _passage_hashes(ids: npt.NDArray[Any]) -> Hashes:
    """A hash for the passage of `WINDOW` ids that begins at each id of a row, made of two hashes of half its length."""
    hashes = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    hashes ^= hashes >> np.uint64(32)
    length, factor = 1, 0xD6E8FEB86659FD93
    while length < WINDOW:
        n = max(0, hashes.shape[-1] - length)
        hashes = hashes[..., :n] * np.uint64(factor) + hashes[..., length : length + n]
        length, factor = 2 * length, factor * factor % (1 << 64)
    return hashes
