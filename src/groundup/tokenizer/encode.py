"""Encoding, compiled: pieces of bytes → ids. The plain twin is `bpe.encode_piece`.

Most pieces of a text have been met before, so what they become is remembered: pieces of at most 16 bytes in a table
whose rows hold the piece itself as two numbers and up to four ids, so that a look-up is one comparison in one cache
line. The other pieces are merged: short ones by looking for the best pair again and again, long ones with a heap.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from groundup.tokenizer.bpe import Pair
from groundup.tokenizer.compiled import byte_at, compiled, mix, mix_bytes, same_bytes, two_words
from groundup.tokenizer.scan import Bytes, Places, piece_ends

Words = npt.NDArray[np.uint64]

REMEMBERED = 1 << 18
"""Rows of the table of pieces: 8 MiB, which a core's share of the last cache still holds."""
LONGEST_REMEMBERED = 16
LONGEST_SEARCHED = 48
"""Bytes of a piece up to which looking over all its pairs is faster than a heap."""
NO_RANK = (1 << 32) - 1
BYTES_AT_ONCE = 1 << 20
"""Of text that a thread encodes at a time; the places where its pieces end still fit the last cache."""


class Vocabulary:
    """A vocabulary as the compiled loops read it. Nothing here changes, so all threads share it."""

    def __init__(
        self,
        byte_ids: Sequence[int],
        merges: Mapping[Pair, tuple[int, int]],
        whole_pieces: Mapping[bytes, int] | None = None,
    ) -> None:
        """
        Args:
            byte_ids: (256,) the id of each byte.
            merges: pair of ids → (rank, id of the joined token).
            whole_pieces: pieces that are a token whatever the merges say → id.
        """
        self.byte_ids = np.array(byte_ids, np.int32)
        pairs = np.array([*merges], np.uint64).reshape(-1, 2)
        values = np.array([*merges.values()], np.uint64).reshape(-1, 2)
        self.pairs: Words = np.zeros((_power_of_two(2 * len(pairs) + 2), 2), np.uint64)
        _fill_pairs(self.pairs, pairs[:, 0] << 32 | pairs[:, 1], values[:, 0] << 32 | values[:, 1])
        tokens = whole_pieces or {}
        self.token_bytes = np.frombuffer(b"".join(tokens), np.uint8)
        lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
        self.token_places = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.token_ids = np.fromiter(tokens.values(), np.int32, len(tokens))
        self.token_rows = np.full(_power_of_two(2 * len(tokens)) if tokens else 0, -1, np.int32)
        _fill_tokens(self.token_rows, self.token_bytes, self.token_places)

    def empty_memory(self) -> Words:
        """A table for what pieces become; each thread has its own."""
        room = np.empty(REMEMBERED * 4 + 8, np.uint64)  # unlike zeros, on huge pages: fewer misses of the page table
        first = -(room.ctypes.data // 8) % 8
        rows: Words = room[first : first + REMEMBERED * 4].reshape(REMEMBERED, 4)
        rows.fill(0)
        return rows

    def encode(self, text: Bytes, ends: Places, offsets: Places, opener: int, memory: Words) -> tuple[Any, Places]:
        """
        Args:
            text: documents one after another.
            ends: (pieces,) where each piece ends.
            offsets: (documents + 1,) where each document begins, then where the last ends.
            opener: an id to put before each document, or -1.
            memory: of this thread, from `empty_memory`.

        Returns:
            (ids,) int32, and (documents + 1,) where the ids of each document begin, then where the last one's end.
        """
        n_documents = len(offsets) - 1
        ids = np.empty(int(offsets[-1] - offsets[0]) + n_documents + 4, np.int32)
        starts = np.empty(n_documents + 1, np.int64)
        count = _encode(
            text,
            ends,
            offsets,
            opener,
            self.byte_ids,
            self.pairs,
            self.token_rows,
            self.token_bytes,
            self.token_places,
            self.token_ids,
            memory,
            ids,
            starts,
        )
        return ids[:count], starts


class Encoder:
    """Encodes many documents on all cores, each thread with a memory of its own that is kept from call to call."""

    def __init__(self, vocabulary: Vocabulary, pattern: str, n_threads: int | None = None) -> None:
        self._vocabulary = vocabulary
        self._pattern = pattern
        self._n_threads = n_threads or available_cores()
        self._memories: list[Words] = []
        self._threads: ThreadPoolExecutor | None = None

    def __call__(self, text: Bytes, offsets: Places, opener: int = -1) -> tuple[npt.NDArray[np.int32], Places]:
        """Encode documents, valid UTF-8, one after another in `text`; takes and gives what `Vocabulary.encode` does."""
        runs = list(slices(offsets, BYTES_AT_ONCE))
        if len(runs) == 1 or self._n_threads == 1:
            parts = [self._slice(text, part, opener) for part in runs]
        else:
            self._threads = self._threads or ThreadPoolExecutor(self._n_threads, "encoding")
            parts = list(self._threads.map(lambda part: self._slice(text, part, opener), runs))
        if len(parts) == 1:
            return parts[0]
        lengths = [len(ids) for ids, _ in parts]
        begins = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        starts = [starts[:-1] + begin for (_, starts), begin in zip(parts, begins[:-1], strict=True)]
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([*starts, begins[-1:]])

    def _slice(self, text: Bytes, offsets: Places, opener: int) -> tuple[npt.NDArray[np.int32], Places]:
        ends = piece_ends(text, offsets, self._pattern)
        return self.pieces(text, ends, offsets, opener)

    def pieces(self, text: Bytes, ends: Places, offsets: Places, opener: int = -1) -> tuple[Any, Places]:
        """The same for text that has been cut into pieces."""
        try:
            memory = self._memories.pop()
        except IndexError:
            memory = self._vocabulary.empty_memory()
        try:
            return self._vocabulary.encode(text, ends, offsets, opener, memory)
        finally:
            self._memories.append(memory)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slices(offsets: Places, at_least: int) -> Iterator[Places]:
    """Offsets of runs of documents that together have about `at_least` bytes."""
    first = 0
    while first < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[first] + at_least))
        last = min(max(last, first + 1), len(offsets) - 1)
        yield offsets[first : last + 1]
        first = last


def _power_of_two(at_least: int) -> int:
    return 1 << max(at_least - 1, 1).bit_length()


@compiled
def _fill_pairs(table, keys, values):
    """An open table: rows of (pair + 1, value); 0 is an empty row."""
    mask = np.uint64(len(table) - 1)
    for i in range(len(keys)):
        row = _row_of_pair(keys[i], mask)
        while table[row, 0] != 0:
            row = (row + np.uint64(1)) & mask
        table[row, 0] = keys[i] + np.uint64(1)
        table[row, 1] = values[i]


@compiled
def _row_of_pair(key, mask):
    mixed = key * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(32)) & mask


@compiled
def _merge_of(pairs, left, right):
    """rank x 2^32 + id of what `left` and `right` make; the highest number if nothing."""
    key = np.uint64(left) << np.uint64(32) | np.uint64(right)
    mask = np.uint64(len(pairs) - 1)
    row = _row_of_pair(key, mask)
    while True:
        found = pairs[row, 0]
        if found == key + np.uint64(1):
            return pairs[row, 1]
        if found == 0:
            return np.uint64(0xFFFFFFFFFFFFFFFF)
        row = (row + np.uint64(1)) & mask


@compiled
def _fill_tokens(rows, token_bytes, places):
    mask = np.uint64(len(rows) - 1)
    for token in range(len(places) - 1):
        row = mix_bytes(token_bytes, places[token], places[token + 1]) & mask
        while rows[row] >= 0:
            row = (row + np.uint64(1)) & mask
        rows[row] = token


@compiled
def _token_of(text, start, end, rows, token_bytes, places):
    """The number of the token that these bytes are, or -1."""
    mask = np.uint64(len(rows) - 1)
    row = mix_bytes(text, start, end) & mask
    while rows[row] >= 0:
        token = rows[row]
        length = places[token + 1] - places[token]
        if length == end - start and same_bytes(text, start, token_bytes, places[token], length):
            return token
        row = (row + np.uint64(1)) & mask
    return -1


@compiled
def _merge_short(text, start, end, byte_ids, pairs, values, ids, count):
    """Write the ids of a short piece at `ids[count:]`; returns how many ids there are now. `values` is room to work."""
    length = end - start
    for i in range(length):
        ids[count + i] = byte_ids[byte_at(text, start + i)]
    for i in range(length - 1):
        values[i] = _merge_of(pairs, ids[count + i], ids[count + i + 1])
    while length > 1:
        best = 0
        for i in range(1, length - 1):
            if values[i] >> np.uint64(32) < values[best] >> np.uint64(32):
                best = i
        value = values[best]
        if value >> np.uint64(32) == NO_RANK:
            break
        ids[count + best] = np.int32(value & np.uint64(0xFFFFFFFF))
        length -= 1
        for i in range(best + 1, length):
            ids[count + i] = ids[count + i + 1]
        for i in range(best, length - 1):
            values[i] = values[i + 1]
        if best < length - 1:
            values[best] = _merge_of(pairs, ids[count + best], ids[count + best + 1])
        if best > 0:
            values[best - 1] = _merge_of(pairs, ids[count + best - 1], ids[count + best])
    return count + length


@compiled
def _merge_long(text, start, end, byte_ids, pairs, ids, count):
    """The same for a piece of any length, in O(n log n): a heap of rank x 2^32 + place over a linked list."""
    length = end - start
    alive = np.empty(length, np.int32)
    after = np.arange(1, length + 1)
    before = np.arange(-1, length - 1)
    heap = np.empty(3 * length, np.uint64)
    size = 0
    for i in range(length):
        alive[i] = byte_ids[byte_at(text, start + i)]
    for i in range(length - 1):
        value = _merge_of(pairs, alive[i], alive[i + 1])
        if value >> np.uint64(32) != NO_RANK:
            size = _push(heap, size, value & np.uint64(0xFFFFFFFF00000000) | np.uint64(i))
    while size > 0:
        top = heap[0]
        size = _pop(heap, size)
        left = np.int64(top & np.uint64(0xFFFFFFFF))
        if alive[left] < 0 or after[left] == length:
            continue
        right = after[left]
        value = _merge_of(pairs, alive[left], alive[right])
        if value >> np.uint64(32) != top >> np.uint64(32):
            continue  # one of the two has been joined to something else since
        alive[left] = np.int32(value & np.uint64(0xFFFFFFFF))
        alive[right] = -1
        after[left] = after[right]
        if after[left] < length:
            before[after[left]] = left
            value = _merge_of(pairs, alive[left], alive[after[left]])
            if value >> np.uint64(32) != NO_RANK:
                size = _push(heap, size, value & np.uint64(0xFFFFFFFF00000000) | np.uint64(left))
        if before[left] >= 0:
            value = _merge_of(pairs, alive[before[left]], alive[left])
            if value >> np.uint64(32) != NO_RANK:
                size = _push(heap, size, value & np.uint64(0xFFFFFFFF00000000) | np.uint64(before[left]))
    for i in range(length):
        if alive[i] >= 0:
            ids[count] = alive[i]
            count += 1
    return count


@compiled
def _push(heap, size, item):
    place = size
    while place > 0 and heap[(place - 1) >> 1] > item:
        heap[place] = heap[(place - 1) >> 1]
        place = (place - 1) >> 1
    heap[place] = item
    return size + 1


@compiled
def _pop(heap, size):
    size -= 1
    item = heap[size]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= item:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = item
    return size


@compiled
def _encode(
    text,
    ends,
    offsets,
    opener,
    byte_ids,
    pairs,
    token_rows,
    token_bytes,
    token_places,
    token_ids,
    memory,
    ids,
    starts,
):
    values = np.empty(LONGEST_SEARCHED, np.uint64)
    bucket_mask = np.uint64(len(memory) // 2 - 1)
    count = 0
    start = offsets[0]
    document = -1
    for piece in range(len(ends)):
        while start >= offsets[document + 1]:  # also over documents without a piece
            document += 1
            starts[document] = count
            if opener >= 0:
                ids[count] = opener
                count += 1
        end = ends[piece]
        length = end - start
        if length > LONGEST_REMEMBERED:
            token = -1
            if len(token_rows) > 0:
                token = _token_of(text, start, end, token_rows, token_bytes, token_places)
            if token >= 0:
                ids[count] = token_ids[token]
                count += 1
            elif length <= LONGEST_SEARCHED:
                count = _merge_short(text, start, end, byte_ids, pairs, values, ids, count)
            else:
                count = _merge_long(text, start, end, byte_ids, pairs, ids, count)
            start = end
            continue
        low, high = two_words(text, start, length)
        row = (mix(low, high, length) & bucket_mask) << np.uint64(1)
        if memory[row, 0] != low or memory[row, 1] != high or memory[row, 2] & np.uint64(255) != np.uint64(length):
            other = row + np.uint64(1)
            if (
                memory[other, 0] == low
                and memory[other, 1] == high
                and memory[other, 2] & np.uint64(255) == np.uint64(length)
            ):
                row = other
            else:
                before = count
                token = -1
                if len(token_rows) > 0:
                    token = _token_of(text, start, end, token_rows, token_bytes, token_places)
                if token >= 0:
                    ids[count] = token_ids[token]
                    count += 1
                else:
                    count = _merge_short(text, start, end, byte_ids, pairs, values, ids, count)
                made = count - before
                if made <= 4:
                    for part in range(4):
                        memory[other, part] = memory[row, part]  # the older of the two gives way
                    memory[row, 0] = low
                    memory[row, 1] = high
                    first = np.uint64(ids[before])
                    second = np.uint64(ids[before + 1]) if made > 1 else np.uint64(0)
                    third = np.uint64(ids[before + 2]) if made > 2 else np.uint64(0)
                    fourth = np.uint64(ids[before + 3]) if made > 3 else np.uint64(0)
                    memory[row, 2] = (
                        np.uint64(length)
                        | np.uint64(made) << np.uint64(8)
                        | first << np.uint64(16)
                        | second << np.uint64(40)
                    )
                    memory[row, 3] = third | fourth << np.uint64(32)
                start = end
                continue
        known = memory[row, 2]
        more = memory[row, 3]
        ids[count] = np.int32((known >> np.uint64(16)) & np.uint64(0xFFFFFF))
        ids[count + 1] = np.int32(known >> np.uint64(40))
        ids[count + 2] = np.int32(more & np.uint64(0xFFFFFFFF))
        ids[count + 3] = np.int32(more >> np.uint64(32))
        count += np.int64((known >> np.uint64(8)) & np.uint64(255))
        start = end
    while document < len(offsets) - 2:
        document += 1
        starts[document] = count
        if opener >= 0:
            ids[count] = opener
            count += 1
    starts[len(offsets) - 1] = count
    return count
