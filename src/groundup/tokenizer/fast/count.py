"""Counting the different pre-tokens of a corpus: on all cores, in bounded memory, on disk where that is not enough.

Each thread counts into a table of its own. When the tables outgrow their budget, and every two minutes where a
directory is given to keep them in, they are written down, ordered by hash, and begun anew; at the end the same part of
every table is added up, part by part. A count that was interrupted goes on from the last tables written.
"""

import json
import shutil
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from groundup.files import write_json
from groundup.machine import available_cores
from groundup.tokenizer.fast.compiled import byte_at, compiled, mix, mix_bytes, same_bytes, two_words
from groundup.tokenizer.fast.encode import BYTES_AT_ONCE, Words, slices
from groundup.tokenizer.fast.scan import Bytes, Places, pre_token_ends

INLINE = 16
"""Bytes of the longest pre-token that stands in its row itself."""
N_PARTS = 64
"""Into so many parts tables on disk are ordered by hash; a power of two. Tables are added up part by part."""
SECONDS_BETWEEN_SAVES = 120
JOURNAL = "counted.json"


@dataclass(frozen=True)
class PreTokens:
    """Different pre-tokens and how often each occurs."""

    text: Bytes
    """(N,) one after another."""
    offsets: Places
    """(pre-tokens + 1,) where each begins, then where the last one ends."""
    counts: npt.NDArray[np.int64]
    """(pre-tokens,)"""

    def __len__(self) -> int:
        return len(self.counts)

    def chosen(self, order: npt.NDArray[np.int64]) -> "PreTokens":
        """The pre-tokens of these numbers, in this order."""
        lengths = np.diff(self.offsets)[order]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        text = np.empty(int(offsets[-1]), np.uint8)
        _copy(self.text, self.offsets, order, text, offsets)
        return PreTokens(text, offsets, self.counts[order])


def joined(parts: list[PreTokens]) -> PreTokens:
    """All pre-tokens of several that have none in common."""
    begins = np.cumsum([0, *(len(part.text) for part in parts)])
    offsets = [part.offsets[:-1] + begin for part, begin in zip(parts, begins[:-1], strict=True)]
    return PreTokens(
        np.concatenate([part.text for part in parts]),
        np.concatenate([*offsets, begins[-1:]]).astype(np.int64),
        np.concatenate([part.counts for part in parts]),
    )


class PreTokenCounter:
    """Counts the pre-tokens of documents.

    Args:
        pattern: the split pattern, a name or a regular expression.
        memory_bytes: that the tables may take; beyond, they go to disk.
        directory: where tables are kept from time to time, so that a count that was interrupted goes on from there.
        of: what is counted; tables of something else in `directory` are removed.
        n_threads: the cores that this process may use, if not given; the counts are the same.
    """

    def __init__(
        self,
        pattern: str,
        memory_bytes: int,
        directory: Path | None = None,
        of: str = "",
        n_threads: int | None = None,
    ) -> None:
        self.documents = 0
        """How many have been counted."""
        self._pattern = pattern
        self._memory_bytes = memory_bytes
        n_threads = n_threads or available_cores()
        self._threads = ThreadPoolExecutor(n_threads, "counting")
        self._tables = [Table() for _ in range(n_threads)]
        self._free = list(self._tables)
        self._counting: list[Future[None]] = []
        self._lock = threading.Lock()
        self._temporary = None if directory else tempfile.TemporaryDirectory(prefix="groundup-counts-")
        self._directory = directory or Path(self._temporary.name if self._temporary else "")
        self._of = {"of": of, "split": pattern}
        self._saved: list[str] = []
        self._saved_at = time.monotonic()
        self._resume()

    def add(self, text: Bytes, offsets: Places) -> None:
        """Count the pre-tokens of documents, valid UTF-8, one after another in `text`.

        Args:
            offsets: (documents + 1,) where each begins, then where the last one ends.
        """
        self._wait()
        self._counting = [self._threads.submit(self._count, text, run) for run in slices(offsets, BYTES_AT_ONCE)]
        self.documents += len(offsets) - 1
        late = self._temporary is None and time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES
        if late or sum(table.bytes for table in self._tables) > self._memory_bytes:
            self.save()

    def _wait(self) -> None:
        """Until what was added has been counted; meanwhile the caller reads the next documents."""
        for each in self._counting:
            each.result()
        self._counting = []

    def save(self) -> None:
        """Write the tables down, and begin new ones."""
        self._wait()
        self._directory.mkdir(parents=True, exist_ok=True)
        for table in self._tables:
            name = f"table-{len(self._saved):05d}"
            _write(self._directory / name, table.pre_tokens())
            self._saved.append(name)
        self._tables[:] = [Table() for _ in self._tables]
        self._free[:] = self._tables
        write_json(self._directory / JOURNAL, {**self._of, "documents": self.documents, "tables": self._saved})
        self._saved_at = time.monotonic()

    def pre_tokens(self, most_bytes: int) -> tuple[PreTokens, int]:
        """All pre-tokens, and how often a pre-token must occur to be among them.

        That is once, unless the pre-tokens have more than `most_bytes` bytes together: then the rarest are left out.
        """
        self._wait()
        if not self._saved:
            first, *others = self._tables
            for table in others:
                pre_tokens = table.pre_tokens()
                first.count(pre_tokens.text, pre_tokens.offsets[1:], 0, pre_tokens.counts)
            self._tables[1:] = [Table() for _ in others]
            self._free[:] = self._tables
            parts = [first.pre_tokens()]
        else:
            self.save()
            parts = [self._part(number) for number in range(N_PARTS)]
        bytes_by_count = np.zeros(1, np.int64)
        for part in parts:
            lengths = np.diff(part.offsets)
            by_count = np.bincount(np.minimum(part.counts, 1 << 16), lengths).astype(np.int64)
            bytes_by_count = _sum(bytes_by_count, by_count)
        at_least = bytes_by_count[::-1].cumsum()[::-1]  # bytes of the pre-tokens that occur so often or more
        floor = max(1, int(np.searchsorted(-at_least, -most_bytes)))
        if floor > 1:
            parts = [part.chosen(np.flatnonzero(part.counts >= floor)) for part in parts]
        return joined(parts), floor

    def close(self) -> None:
        """End the threads, and remove what was written where no directory was given."""
        self._threads.shutdown()
        if self._temporary:
            self._temporary.cleanup()

    def _count(self, text: Bytes, offsets: Places) -> None:
        ends = pre_token_ends(text, offsets, self._pattern)
        with self._lock:
            table = self._free.pop()
        table.count(text, ends, int(offsets[0]))
        with self._lock:
            self._free.append(table)

    def _part(self, number: int) -> PreTokens:
        table = Table()
        for name in self._saved:
            pre_tokens = _read(self._directory / name, number)
            table.count(pre_tokens.text, pre_tokens.offsets[1:], int(pre_tokens.offsets[0]), pre_tokens.counts)
        return table.pre_tokens()

    def _resume(self) -> None:
        try:
            journal = json.loads((self._directory / JOURNAL).read_bytes())
        except (OSError, ValueError):
            journal = {}
        if {key: journal.get(key) for key in self._of} == self._of:
            self.documents, self._saved = journal["documents"], journal["tables"]
        elif self._temporary is None:
            shutil.rmtree(self._directory, ignore_errors=True)


def _sum(one: Places, other: Places) -> Places:
    longer, shorter = (one, other) if len(one) > len(other) else (other, one)
    summed = longer.copy()
    summed[: len(shorter)] += shorter
    return summed


def _write(directory: Path, pre_tokens: PreTokens) -> None:
    """Write pre-tokens ordered by part, which is a matter of their hash alone."""
    part = np.empty(len(pre_tokens), np.int64)
    _parts(pre_tokens.text, pre_tokens.offsets, part)
    ordered = pre_tokens.chosen(np.argsort(part, kind="stable"))
    begins = np.searchsorted(np.sort(part), np.arange(N_PARTS + 1))
    directory.mkdir(exist_ok=True)
    for name, numbers in (
        ("text", ordered.text),
        ("offsets", ordered.offsets),
        ("counts", ordered.counts),
        ("parts", begins.astype(np.int64)),
    ):
        with open(directory / name, "wb") as stream:
            stream.write(numbers.tobytes())


def _read(directory: Path, part: int) -> PreTokens:
    begins = np.fromfile(directory / "parts", np.int64)
    first, last = int(begins[part]), int(begins[part + 1])
    offsets = np.fromfile(directory / "offsets", np.int64, last - first + 1, offset=8 * first)
    counts = np.fromfile(directory / "counts", np.int64, last - first, offset=8 * first)
    text = np.fromfile(directory / "text", np.uint8, int(offsets[-1] - offsets[0]), offset=int(offsets[0]))
    return PreTokens(text, offsets - offsets[0], counts)


class Table:
    """Pre-tokens → counts. Two open tables of rows of four numbers; a row with length 0 is empty.

    Short pre-tokens: first eight bytes, next eight, length, count. Longer ones: hash, place in `text`, length, count.
    """

    def __init__(self) -> None:
        self.short = _empty_rows(1 << 12)
        self.long = _empty_rows(1 << 8)
        self.text = np.empty(1 << 12, np.uint8)
        self.used = np.zeros(3, np.int64)
        """Rows of `short`, rows of `long`, bytes of `text`."""

    @property
    def bytes(self) -> int:
        return int(self.short.nbytes + self.long.nbytes + self.text.nbytes)

    def count(self, text: Bytes, ends: Places, start: int, weights: npt.NDArray[np.int64] | None = None) -> None:
        """Count pre-tokens that follow one another from `start` on, each once or `weights` (pre-tokens,) times."""
        place = np.array([0, start], np.int64)
        once = np.empty(0, np.int64)
        while place[0] < len(ends):
            _count(text, ends, once if weights is None else weights, place, self.short, self.long, self.text, self.used)
            self._grow(int(ends[place[0]] - place[1]) if place[0] < len(ends) else 0)

    def pre_tokens(self) -> PreTokens:
        """All pre-tokens of the table."""
        n_short, n_long, n_bytes = (int(n) for n in self.used)
        counts = np.empty(n_short + n_long, np.int64)
        offsets = np.empty(n_short + n_long + 1, np.int64)
        text = np.empty(n_short * INLINE + n_bytes, np.uint8)
        size = _list(self.short, self.long, self.text, text, offsets, counts)
        return PreTokens(text[:size].copy(), offsets, counts)

    def _grow(self, next_bytes: int) -> None:
        """Make room for at least one more pre-token of each kind, of `next_bytes`."""
        if _full(self.used[0] + 1, self.short):
            self.short = _again(self.short, _empty_rows(2 * len(self.short)))
        if _full(self.used[1] + 1, self.long):
            self.long = _again(self.long, _empty_rows(2 * len(self.long)))
        if self.used[2] + next_bytes > len(self.text):
            text = np.empty(2 * len(self.text) + next_bytes, np.uint8)
            text[: self.used[2]] = self.text[: self.used[2]]
            self.text = text


def _empty_rows(n_rows: int) -> Words:
    rows: Words = np.empty((n_rows, 4), np.uint64)
    rows.fill(0)
    return rows


@compiled
def _full(used, rows):
    return 3 * used > 2 * len(rows)


@compiled
def _count(text, ends, weights, place, short, long, kept, used):
    """Count from pre-token `place[0]`, which begins at `place[1]`, until the end or until a table is full."""
    short_mask = np.uint64(len(short) - 1)
    long_mask = np.uint64(len(long) - 1)
    pre_token, start = place[0], place[1]
    while pre_token < len(ends):
        end = ends[pre_token]
        length = end - start
        weight = np.uint64(weights[pre_token]) if len(weights) > 0 else np.uint64(1)
        if length <= INLINE:
            low, high = two_words(text, start, length)
            row = mix(low, high, length) & short_mask
            while short[row, 2] != 0 and (
                short[row, 0] != low or short[row, 1] != high or short[row, 2] != np.uint64(length)
            ):
                row = (row + np.uint64(1)) & short_mask
            if short[row, 2] == 0:
                if _full(used[0] + 1, short):
                    break
                used[0] += 1
                short[row, 0] = low
                short[row, 1] = high
                short[row, 2] = length
            short[row, 3] += weight
        else:
            mixed = mix_bytes(text, start, end)
            row = mixed & long_mask
            while long[row, 2] != 0 and not (
                long[row, 0] == mixed
                and long[row, 2] == np.uint64(length)
                and same_bytes(text, start, kept, np.int64(long[row, 1]), length)
            ):
                row = (row + np.uint64(1)) & long_mask
            if long[row, 2] == 0:
                if _full(used[1] + 1, long) or used[2] + length > len(kept):
                    break
                used[1] += 1
                long[row, 0] = mixed
                long[row, 1] = used[2]
                long[row, 2] = length
                for i in range(length):
                    kept[used[2] + i] = byte_at(text, start + i)
                used[2] += length
            long[row, 3] += weight
        start = end
        pre_token += 1
    place[0] = pre_token
    place[1] = start


@compiled
def _again(rows, larger):
    """The same rows in a larger table."""
    mask = np.uint64(len(larger) - 1)
    for i in range(len(rows)):
        length = rows[i, 2]
        if length != 0:
            row = (mix(rows[i, 0], rows[i, 1], length) if length <= INLINE else rows[i, 0]) & mask
            while larger[row, 2] != 0:
                row = (row + np.uint64(1)) & mask
            for part in range(4):
                larger[row, part] = rows[i, part]
    return larger


@compiled
def _list(short, long, kept, text, offsets, counts):
    pre_token, place = 0, 0
    for i in range(len(short)):
        length = np.int64(short[i, 2])
        if length != 0:
            for j in range(length):
                word = short[i, 0] if j < 8 else short[i, 1]
                text[place + j] = np.uint8((word >> np.uint64(8 * (j & 7))) & np.uint64(255))
            offsets[pre_token] = place
            counts[pre_token] = short[i, 3]
            place += length
            pre_token += 1
    for i in range(len(long)):
        length = np.int64(long[i, 2])
        if length != 0:
            start = np.int64(long[i, 1])
            for j in range(length):
                text[place + j] = kept[start + j]
            offsets[pre_token] = place
            counts[pre_token] = long[i, 3]
            place += length
            pre_token += 1
    offsets[pre_token] = place
    return place


@compiled
def _copy(text, offsets, order, target, places):
    for i in range(len(order)):
        start = offsets[order[i]]
        for j in range(places[i + 1] - places[i]):
            target[places[i] + j] = text[start + j]


@compiled
def _parts(text, offsets, part):
    for pre_token in range(len(part)):
        mixed = mix_bytes(text, offsets[pre_token], offsets[pre_token + 1])
        part[pre_token] = np.int64((mixed >> np.uint64(32)) & np.uint64(N_PARTS - 1))
