"""Duplicates: what of a corpus was there before, as whole documents or as parts of them.

In two steps, so that a corpus need not fit in memory. For each part of it, in any process: `fingerprint(texts,
settings)` of the documents that filters kept, in their order, saved with `np.save`. Then, in one process, for each kind
in turn, `decide(files, settings, standing, ...)` with these files in the order of the parts, and `shared_passages` at
the end. Documents are known by their number, counted through all parts. How a corpus is cut into parts changes nothing.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from groundup.compiled.words import Hashes, Offsets, folded, hash_spans, runs_of, scan, winnow, words_of
from groundup.corpus import near
from groundup.corpus.document import Drop
from groundup.corpus.repeats import repeats
from groundup.corpus.settings import Duplicates, Exact, HeldOut, Lines, Near, Substrings

Mask = npt.NDArray[np.bool_]
Spans = npt.NDArray[np.void]
SPAN = np.dtype([("key", "<u8"), ("document", "<u4"), ("begin", "<u4"), ("end", "<u4")])
"""A piece of a text: its hash, the number of the document in its part of the corpus, its bytes from and to."""
Texts = Callable[[int], str]
"""The text of a document by its number."""
BEGIN_BITS = 28
"""A place in a corpus is one number: that of the document among all, then as many bits for the byte in it."""
TRAINING = 1 << 62
"""Is added to places in training documents, which so come after those in documents that are held out."""
WINDOW = 16
"""Passages in a row of which at least one is looked at, where documents are held out: any WINDOW + words - 1 words in a
row that two documents share are noticed."""
MOST_COPIES = 0.2
"""Share of the training documents that may go because held-out documents have passages of them."""
DROPS = (
    None, Drop("exact.copy", "exact duplicate"), Drop("near.copy", "near duplicate"),
    Drop("source.most", "more than its source may have"),
    Drop("passages.held_out", "holds passages of a held-out document"),
)  # fmt: skip
CAPPED = 3
CLUSTERS = pa.schema(
    [("id", pa.string()), ("cluster", pa.int64()), ("kept", pa.string()), ("similarity", pa.float32())]
)


class Standing:
    """What stands of the documents of a corpus, by their numbers.

    Args:
        counts: the documents of each part.
        lengths: (documents,) the bytes of each text; of near duplicates the longest is kept.
    """

    def __init__(self, counts: Sequence[int], lengths: Offsets) -> None:
        self.firsts = np.cumsum([0, *counts])[:-1]
        self.lengths = lengths
        self.kept: Offsets = np.arange(len(lengths))
        """(documents,) its own number if a document is kept, else that of the one which is kept in its place."""
        self.why = np.zeros(len(lengths), np.uint8)
        """(documents,) why each is dropped, as number in `DROPS`."""
        self.cuts: Offsets = np.empty((2, 0), np.int64)
        """(2, cuts) the places from and to which text is taken out: apart, and in order."""

    @property
    def alive(self) -> Mask:
        """(documents,) which are kept."""
        return self.why == 0  # type: ignore[no-any-return]

    def drop(self, numbers: Offsets, why: int, instead: Offsets) -> None:
        """Drop documents, by number in `DROPS`; what was dropped for one of them then points at what is kept `instead`,
        which is the document itself if there is nothing."""
        self.why[numbers], self.kept[numbers] = why, instead
        self.kept = self.kept[self.kept]

    def cut(self, begins: Offsets, ends: Offsets) -> None:
        """Take out what lies between such places; each two are in one document."""
        if len(begins):
            places = np.append(self.cuts, [begins, ends], axis=1)
            begins, ends = places[:, np.argsort(places[0])]
            ends = np.maximum.accumulate(ends)
            is_apart = begins[1:] > ends[:-1]
            self.cuts = np.stack([begins[np.append(True, is_apart)], ends[np.append(is_apart, True)]])

    def cut_between(self, first: int, end: int) -> set[int]:
        """The documents of these numbers from which something is taken out."""
        here = slice(*np.searchsorted(self.cuts[0], [first << BEGIN_BITS, end << BEGIN_BITS]))
        return set((self.cuts[0, here] >> BEGIN_BITS).tolist())

    def cuts_in(self, number: int) -> list[list[int]]:
        """The bytes [from, to] that are taken out of a document."""
        here = slice(*np.searchsorted(self.cuts[0], [number << BEGIN_BITS, number + 1 << BEGIN_BITS]))
        return _byte(self.cuts[:, here]).T.tolist()  # type: ignore[no-any-return]


def _byte(places: Offsets) -> Offsets:
    return places & ((1 << BEGIN_BITS) - 1)


def fingerprint(texts: Sequence[str], settings: Duplicates | HeldOut) -> Hashes | Spans:
    """What is asked for by `decide` or `shared_passages` of the documents of a part; a function of the texts alone."""
    match settings:
        case Exact():
            digests = b"".join(hashlib.sha256(text.encode()).digest()[:8] for text in texts)
            return np.frombuffer(digests, "<u8").reshape(len(texts), 1)
        case Near():
            return near.fingerprint(texts, settings)
        case Lines():
            spans = [_lines(text, settings) for text in texts]
        case Substrings():
            spans = [_windows(text, settings.words) for text in texts]
        case HeldOut():
            spans = [_passages(text, settings.words) for text in texts]
        case _:
            assert_never(settings)
    for number, each in enumerate(spans):
        each["document"] = number
    return np.concatenate([np.empty(0, SPAN), *spans])


def _spans(keys: Hashes, begins: Offsets, ends: Offsets) -> Spans:
    spans = np.zeros(len(keys), SPAN)
    spans["key"], spans["begin"], spans["end"] = keys, begins, ends
    return spans


def _lines(text: str, settings: Lines) -> Spans:
    """The lines of a text that are long enough; each ends behind its line end, which is no part of its key."""
    raw = np.frombuffer(text.encode(), np.uint8)
    is_end = raw == 10
    if settings.unit == "paragraph":
        is_end = is_end & np.append(is_end[1:], False)
    ends = np.append(np.flatnonzero(is_end), len(raw))
    begins = np.append(0, np.minimum(ends[:-1] + (2 if settings.unit == "paragraph" else 1), len(raw)))
    here = ends - begins >= settings.least_bytes
    return _spans(hash_spans(raw, begins[here], ends[here]), begins[here], np.append(begins[1:], len(raw))[here])


def _windows(text: str, words: int) -> Spans:
    """So many words in a row, from each word on: with all the bytes between them."""
    raw = np.frombuffer(text.encode(), np.uint8)
    _, begins, ends = scan(raw, folded())
    begins, ends = begins[: max(0, len(begins) - words + 1)], ends[words - 1 :]
    return _spans(hash_spans(raw, begins, ends), begins, ends)


def _passages(text: str, words: int) -> Spans:
    """Some of the runs of words, chosen by what they say; a shorter text is one."""
    hashes, begins, ends = words_of(text)
    words = max(1, min(words, len(hashes)))
    keys = runs_of(hashes, words)
    places = winnow(keys, WINDOW)
    return _spans(keys[places], begins[places], ends[places + words - 1])


def decide(
    files: Sequence[Path],
    settings: Duplicates,
    standing: Standing,
    memory: int,
    texts: Texts,
    folder: Path | None = None,
) -> None:
    """Drop copies from what stands, or cut them out. What was dropped before counts as if it were not there.

    Args:
        files: of each part its `fingerprint`, as .npy.
        standing: is changed.
        memory: bytes for sorting. Beyond it are 40 bytes a document, and 60 for each repeated line or word.
        texts: by which repeated substrings are compared, byte for byte. No other kind asks for them.
        folder: where goes what memory does not hold.

    Raises:
        ResourceError: no room on the disk.
    """
    match settings:
        case Exact():
            first, later = _gathered(repeats(near.keyed(files, standing.alive), memory, folder))
            same = standing.lengths[first] == standing.lengths[later]  # beside 64 bits of sha256
            standing.drop(later[same], 1, first[same])
        case Near():
            roots = near.cluster(files, memory, standing.alive, folder)
            members = np.flatnonzero(np.bincount(roots, minlength=len(roots))[roots] > 1)
            members = members[np.lexsort((members, -standing.lengths[members], roots[members]))]
            is_best = np.append(True, np.diff(roots[members]) != 0)[: len(members)]
            best = members[is_best][np.cumsum(is_best) - 1]
            standing.drop(members[~is_best], 2, best[~is_best])
        case Lines():
            first, later, ends = _repeated(files, standing, memory, folder)
            elsewhere = first >> BEGIN_BITS != later >> BEGIN_BITS
            standing.cut(later[elsewhere], ends[elsewhere])
        case Substrings():
            first, later, ends = _repeated(files, standing, memory, folder)
            same = _same_bytes(first, later, ends, texts)
            standing.cut(later[same], ends[same])
        case _:
            assert_never(settings)


def _gathered(pairs: Iterable[Sequence[Offsets] | Offsets]) -> Offsets:
    """(2, pairs) the first of each pair, and the second."""
    return np.concatenate([np.empty((2, 0), np.int64), *map(np.array, pairs)], axis=1)


def _placed(files: Sequence[Path], firsts: Offsets, which: Mask) -> Iterator[tuple[Spans, Offsets]]:
    """Spans of the documents `which`, a part at a time, and their places."""
    for file, first in zip(files, firsts.tolist(), strict=True):
        spans = np.load(file)
        numbers = spans["document"].astype(np.int64) + first
        here = which[numbers]
        yield spans[here], numbers[here] << BEGIN_BITS | spans["begin"][here]


def _repeated(
    files: Sequence[Path], standing: Standing, memory: int, folder: Path | None
) -> tuple[Offsets, Offsets, Offsets]:
    """Places where a span begins that was there before: the first such place, the later one, where the later ends."""
    alive = standing.alive
    keyed = ((spans["key"], places) for spans, places in _placed(files, standing.firsts, alive))
    first, later = _gathered(repeats(keyed, memory, folder))
    order = np.argsort(later)
    first, later = first[order], later[order]
    ends = later.copy()
    for spans, places in _placed(files, standing.firsts, alive):
        if len(places):
            here = slice(*np.searchsorted(later, [places[0], places[-1] + 1]))
            ends[here] += (spans["end"] - spans["begin"])[np.searchsorted(places, later[here])]
    return first, later, ends


def _same_bytes(first: Offsets, later: Offsets, ends: Offsets, texts: Texts) -> Mask:
    """Whether spans with the same hash are the same. Those that overlap in both places are compared as one."""
    raw = lru_cache(64)(lambda number: texts(number).encode())

    def is_same(begin: int, end: int) -> bool:
        length = int(ends[end - 1] - later[begin])
        one, other = (raw(int(at) >> BEGIN_BITS)[int(_byte(at)) :][:length] for at in (first[begin], later[begin]))
        return one == other

    same = np.zeros(len(later), bool)
    along = (np.diff(first) == np.diff(later)) & (later[1:] <= ends[:-1])
    along &= np.diff(first >> BEGIN_BITS) == 0
    starts = np.flatnonzero(np.append(True, ~along)[: len(later)])
    for begin, end in zip(starts.tolist(), [*starts[1:].tolist(), len(later)], strict=False):
        same[begin:end] = is_same(begin, end) or [is_same(each, each + 1) for each in range(begin, end)]
    return same


def clusters(standing: Standing, ids: Texts, texts: Texts, words: int) -> Iterator[pa.RecordBatch]:
    """The clusters of near duplicates in the form of `CLUSTERS`: of each its documents, the kept one first.

    Args:
        ids: number of a document → its id.
        words: in a run, of which the similarity is the share that is common with the kept document.
    """
    dropped = np.flatnonzero(standing.why == 2)
    dropped = dropped[np.argsort(standing.kept[dropped], kind="stable")]
    best = -1
    for begin in range(0, len(dropped), 1000):
        rows = list[dict[str, Any]]()
        for number in dropped[begin : begin + 1000].tolist():
            is_new, best = best != standing.kept[number], int(standing.kept[number])
            for each in (best, number) if is_new else (number,):
                similarity = near.similarity(texts(each), texts(best), words)
                rows.append({"id": ids(each), "cluster": best, "kept": ids(best), "similarity": similarity})
        yield pa.RecordBatch.from_pylist(rows, CLUSTERS)


# --- held-out documents ---


@dataclass(frozen=True)
class Shared:
    """Which documents share passages across the splits."""

    share: npt.NDArray[np.float64]
    """(documents,) of a training document the largest share of a held-out document's passages that it holds, or the
    share of its own that held-out documents hold, if that is more; of others 0."""
    copies: Mask
    """(documents,) training documents with at least `HeldOut.share`."""
    copied: Mask
    """(documents,) held-out documents of whose passages one training document holds at least `HeldOut.share`."""
    is_repetitive: bool
    """Whether held-out documents repeat each other half as often as they are repeated in training, or more than
    `MOST_COPIES` of the training documents are copies. Then the texts are alike, nothing leaked, and hardly any would
    be left without the copies."""

    def drops(self, settings: HeldOut) -> Mask:
        """(documents,) the training documents that go, by the last of `DROPS`."""
        return self.copies & (settings.action == "drop" and not self.is_repetitive)

    def statistics(self, settings: HeldOut, splits: Mapping[str, Mask]) -> dict[str, Any]:
        """For the manifest, as `held_out`; which documents are in validation and in test is given."""
        return {
            "words": settings.words,
            "copies": int(self.copies.sum()),
            "dropped": int(self.drops(settings).sum()),
            "repetitive": self.is_repetitive,
            "documents": {name: int(here.sum()) for name, here in splits.items()},
            "copied": {name: int((self.copied & here).sum()) for name, here in splits.items()},
        }


def shared_passages(
    files: Sequence[Path],
    standing: Standing,
    held_out: Mask,
    settings: HeldOut,
    memory: int,
    folder: Path | None = None,
) -> Shared:
    """Find training documents that share passages with held-out ones; one that several held-out documents have is
    counted for the first of them.

    Args:
        files: of each part its `fingerprint`, as .npy.
        held_out: (documents,) which are in validation or test.
        memory: bytes for sorting. Beyond it are 60 bytes a document, and 50 for each passage that is shared.

    Raises:
        ResourceError: no room on the disk.
    """
    alive, totals = standing.alive, np.zeros(len(held_out), np.int64)

    def keyed() -> Iterator[tuple[Hashes, Offsets]]:
        for which, offset in ((alive & held_out, 0), (alive & ~held_out, TRAINING)):
            for spans, places in _placed(files, standing.firsts, which):
                np.add.at(totals, places >> BEGIN_BITS, 1)
                yield spans["key"], places + offset

    pairs = (np.array(pair) for pair in repeats(keyed(), memory, folder))
    first, later = _gathered(pair[:, pair[0] < TRAINING] for pair in pairs)
    totals = np.maximum(1, totals)
    own = np.bincount((later & ~TRAINING) >> BEGIN_BITS, minlength=len(totals)) / totals
    here = later >= TRAINING
    first, later = first[here], (later[here] & ~TRAINING) >> BEGIN_BITS
    order = np.lexsort((first, later, first >> BEGIN_BITS))  # by the two documents
    first, later = first[order], later[order]
    held = first >> BEGIN_BITS
    is_new = np.ones((2, len(first)), bool)  # two documents, and a passage of theirs
    is_new[0, 1:] = (np.diff(held) != 0) | (np.diff(later) != 0)
    is_new[1, 1:] = is_new[0, 1:] | (np.diff(first) != 0)
    starts = np.flatnonzero(is_new[0])
    of = np.bincount(np.cumsum(is_new[0]) - 1, is_new[1]) / totals[held[starts]]
    share, copied = np.where(held_out, 0.0, own), np.zeros(len(totals), bool)
    np.maximum.at(share, later[starts], of)
    copied[held[starts][of >= settings.share]] = True
    repeated, copies = (held_out & (own >= settings.share)).sum(), share >= settings.share
    is_repetitive = copied.any() and repeated >= 0.5 * copied.sum()
    is_repetitive |= copies.sum() > MOST_COPIES * (alive & ~held_out).sum()
    return Shared(share, copies, copied, bool(is_repetitive))
