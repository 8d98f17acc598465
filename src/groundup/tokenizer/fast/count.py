"""Counting the different pre-tokens of a corpus: on all cores, in bounded memory, on disk where that is not enough.

Each thread counts into a table of its own. When the tables outgrow their budget, and every two minutes where a
directory is given to keep them in, they are written to disk in parts by hash, and begun anew; at the end each part is
added up on its own. A count that was interrupted goes on from the last tables written.

What was counted is an Arrow record batch of different pre-tokens, `text`, and how often each occurs, `count`.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from groundup.compiled.loops import compiled
from groundup.files import write_json
from groundup.machine import available_cores
from groundup.tokenizer.columns import text_of
from groundup.tokenizer.fast.compiled import byte_at, mix, mix_bytes, same_bytes, two_words
from groundup.tokenizer.fast.encode import BYTES_AT_ONCE, IN_TWO_WORDS, Words, slices
from groundup.tokenizer.fast.scan import Bytes, Offsets, pre_token_ends

N_PARTS = 64
"""Parts of the tables on disk, by hash."""
SECONDS_BETWEEN_SAVES = 120
JOURNAL = "counted.json"
COUNTED = pa.schema([("text", pa.large_binary()), ("count", pa.int64())])


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
        self._n_threads = n_threads or available_cores()
        self._threads = ThreadPoolExecutor(self._n_threads, "counting")
        self._begin_tables()
        self._counting: list[Future[None]] = []
        self._is_kept = directory is not None
        self._directory = directory or Path(tempfile.mkdtemp(prefix="groundup-counts-"))
        self._of = {"of": of, "split": pattern, "kept_as": "arrow"}
        self._saved = 0  # times that the tables were written
        self._saved_at = time.monotonic()
        self._resume()

    def add(self, text: Bytes, offsets: Offsets) -> None:
        """Count the pre-tokens of documents, valid UTF-8, one after another in `text`.

        Args:
            offsets: (documents + 1,) where each begins, then where the last one ends.
        """
        self._wait()
        self._counting = [self._threads.submit(self._count, text, run) for run in slices(offsets, BYTES_AT_ONCE)]
        self.documents += len(offsets) - 1
        late = self._is_kept and time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES
        if late or sum(table.bytes for table in self._tables) > self._memory_bytes:
            self.save()

    def _begin_tables(self, *begun: "Table") -> None:
        self._tables = [*begun, *(Table() for _ in range(self._n_threads - len(begun)))]
        self._free = [*self._tables]

    def _wait(self) -> None:
        """Until what was added has been counted; meanwhile the caller reads the next documents."""
        for each in self._counting:
            each.result()
        self._counting = []

    def save(self) -> None:
        """Write the tables down, and begin new ones."""
        self._wait()
        self._directory.mkdir(parents=True, exist_ok=True)
        with pa.ipc.new_file(self._file(self._saved), COUNTED) as file:
            for parts in zip(*(table.parts() for table in self._tables), strict=True):
                file.write_batch(pa.concat_batches(parts))
        self._begin_tables()
        self._saved += 1
        write_json(self._directory / JOURNAL, {**self._of, "documents": self.documents, "saved": self._saved})
        self._saved_at = time.monotonic()

    def _file(self, saved: int) -> str:
        return str(self._directory / f"{saved:05d}.arrow")

    def pre_tokens(self, most_bytes: int) -> tuple[pa.RecordBatch, int]:
        """All pre-tokens, and how often a pre-token must occur to be among them.

        That is once, unless the pre-tokens have more than `most_bytes` bytes together: then the rarest are left out.
        """
        self._wait()
        if not self._saved:
            first, *others = self._tables
            for table in others:
                first.add(table.pre_tokens())
            self._begin_tables(first)
            parts = [first.pre_tokens()]
        else:
            self.save()
            parts = [self._part(number) for number in range(N_PARTS)]
        bytes_by_count = np.zeros((1 << 16) + 1, np.int64)
        for part in parts:
            capped = np.minimum(part["count"], 1 << 16)
            bytes_by_count += np.bincount(capped, pc.binary_length(part["text"]), (1 << 16) + 1).astype(np.int64)
        at_least = bytes_by_count[::-1].cumsum()[::-1]  # bytes of the pre-tokens that occur so often or more
        floor = max(1, int(np.searchsorted(-at_least, -most_bytes)))
        if floor > 1:
            parts = [part.filter(pc.greater_equal(part["count"], floor)) for part in parts]
        return pa.concat_batches(parts), floor

    def close(self) -> None:
        """End the threads, and remove what was written where no directory was given."""
        self._threads.shutdown()
        if not self._is_kept:
            shutil.rmtree(self._directory)

    def _count(self, text: Bytes, offsets: Offsets) -> None:
        ends = pre_token_ends(text, offsets, self._pattern)
        table = self._free.pop()
        table.count(text, ends, int(offsets[0]))
        self._free.append(table)

    def _part(self, number: int) -> pa.RecordBatch:
        table = Table()
        for saved in range(self._saved):
            with pa.OSFile(self._file(saved)) as file:
                table.add(pa.ipc.open_file(file).get_batch(number))
        return table.pre_tokens()

    def _resume(self) -> None:
        try:
            journal = json.loads((self._directory / JOURNAL).read_bytes())
        except (OSError, ValueError):
            journal = {}
        if journal.items() >= self._of.items():
            self.documents, self._saved = journal["documents"], journal["saved"]
        elif self._is_kept:
            shutil.rmtree(self._directory, ignore_errors=True)


class Table:
    """Pre-tokens → counts: an open table of rows of four numbers; a row with length 0 is empty.

    A row of a short pre-token holds its first eight bytes, the next eight, its length and its count; that of a longer
    one its hash, where it begins in `text`, its length and its count.
    """

    def __init__(self) -> None:
        self.rows: Words = np.zeros((1 << 12, 4), np.uint64)
        self.text = np.empty(1 << 12, np.uint8)
        self.used = np.zeros(2, np.int64)
        """Rows, and bytes of `text`."""

    @property
    def bytes(self) -> int:
        return int(self.rows.nbytes + self.text.nbytes)

    def count(self, text: Bytes, ends: Offsets, start: int, weights: npt.NDArray[np.int64] | None = None) -> None:
        """Count pre-tokens that follow one another from `start` on, each once or `weights` (pre-tokens,) times."""
        position = np.array([0, start], np.int64)
        once = np.empty(0, np.int64)
        while position[0] < len(ends):
            _count(text, ends, once if weights is None else weights, position, self.rows, self.text, self.used)
            if _is_full(self.used[0] + 1, self.rows):
                self.rows = _copied_into(np.zeros((2 * len(self.rows), 4), np.uint64), self.rows)
            following = int(ends[position[0]] - position[1]) if position[0] < len(ends) else 0
            if self.used[1] + following > len(self.text):
                room = np.empty(len(self.text) + following, np.uint8)
                self.text = np.concatenate([self.text, room])

    def add(self, counted: pa.RecordBatch) -> None:
        """Count each pre-token as often as it was counted."""
        text, offsets = text_of(counted["text"])
        self.count(text, offsets[1:], int(offsets[0]), counted["count"].to_numpy())

    def pre_tokens(self) -> pa.RecordBatch:
        """All pre-tokens of the table."""
        n_rows, n_bytes = (int(n) for n in self.used)
        counts = np.empty(n_rows, np.int64)
        offsets = np.empty(n_rows + 1, np.int64)
        text = np.empty(n_rows * IN_TWO_WORDS + n_bytes, np.uint8)
        size = _list(self.rows, self.text, text, offsets, counts)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text[:size].copy())]
        column = pa.Array.from_buffers(pa.large_binary(), n_rows, buffers)
        return pa.record_batch([column, pa.array(counts)], schema=COUNTED)

    def parts(self) -> Iterator[pa.RecordBatch]:
        """The pre-tokens in `N_PARTS` parts, a matter of their hash alone."""
        whole = self.pre_tokens()
        part_of = np.empty(len(whole), np.int64)
        _hash(*text_of(whole["text"]), part_of)
        return (whole.filter(part_of % N_PARTS == number) for number in range(N_PARTS))


@compiled
def _is_full(used, rows):
    return 3 * used > 2 * len(rows)


@compiled
def _count(text, ends, weights, position, rows, kept, used):
    """Count from pre-token `position[0]`, which begins at `position[1]`, until the end or until the table is full."""
    mask = np.uint64(len(rows) - 1)
    pre_token, start = position[0], position[1]
    while pre_token < len(ends):
        end = ends[pre_token]
        length = end - start
        size = np.uint64(length)
        if length <= IN_TWO_WORDS:
            first, second = two_words(text, start, length)
            row = mix(first, second, length) & mask
            while rows[row, 2] != 0 and (rows[row, 0] != first or rows[row, 1] != second or rows[row, 2] != size):
                row = (row + np.uint64(1)) & mask
        else:
            first, second = mix_bytes(text, start, end), np.uint64(used[1])
            row = first & mask
            while rows[row, 2] != 0 and not (
                rows[row, 0] == first
                and rows[row, 2] == size
                and same_bytes(text, start, kept, np.int64(rows[row, 1]), length)
            ):
                row = (row + np.uint64(1)) & mask
        if rows[row, 2] == 0:
            if _is_full(used[0] + 1, rows) or used[1] + length > len(kept):
                break
            used[0] += 1
            rows[row, 0] = first
            rows[row, 1] = second
            rows[row, 2] = size
            if length > IN_TWO_WORDS:
                for i in range(length):
                    kept[used[1] + i] = byte_at(text, start + i)
                used[1] += length
        rows[row, 3] += np.uint64(weights[pre_token]) if len(weights) > 0 else np.uint64(1)
        start = end
        pre_token += 1
    position[0] = pre_token
    position[1] = start


@compiled
def _copied_into(larger, rows):
    mask = np.uint64(len(larger) - 1)
    for i in range(len(rows)):
        length = rows[i, 2]
        if length != 0:
            row = (mix(rows[i, 0], rows[i, 1], length) if length <= IN_TWO_WORDS else rows[i, 0]) & mask
            while larger[row, 2] != 0:
                row = (row + np.uint64(1)) & mask
            larger[row] = rows[i]
    return larger


@compiled
def _list(rows, kept, text, offsets, counts):
    number, end = 0, 0
    for i in range(len(rows)):
        length = np.int64(rows[i, 2])
        if length != 0:
            offsets[number] = end
            counts[number] = rows[i, 3]
            number += 1
            for j in range(length):
                if length <= IN_TWO_WORDS:
                    text[end + j] = np.uint8((rows[i, j >> 3] >> np.uint64(8 * (j & 7))) & np.uint64(255))
                else:
                    text[end + j] = kept[np.int64(rows[i, 1]) + j]
            end += length
    offsets[number] = end
    return end


@compiled
def _hash(text, offsets, hashes):
    for i in range(len(hashes)):
        hashes[i] = mix_bytes(text, offsets[i], offsets[i + 1]) >> np.uint64(32)
