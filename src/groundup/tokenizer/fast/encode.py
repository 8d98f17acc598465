"""Encoding, compiled: pre-tokens → ids. The plain twin is `bpe.apply_merges`.

Most pre-tokens of a text have been met before, so what they become is remembered: those of at most 16 bytes in a table
whose rows hold the bytes as two numbers and up to four ids, so that a look-up is one comparison in one cache line,
fetched some pre-tokens ahead. Longer ones are found by their hash, and compared byte by byte. A pre-token that is not
remembered is merged: a short one by looking for the best pair again and again, a long one with a heap.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from groundup.compiled.loops import compiled, inlined
from groundup.machine import available_cores
from groundup.tokenizer.bpe import Pair
from groundup.tokenizer.fast.compiled import byte_at, mix, mix_bytes, prefetch, same_bytes, two_words
from groundup.tokenizer.fast.scan import Bytes, Offsets, pre_token_ends

Words = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.int32]
Item = TypeVar("Item", bound=np.generic)

REMEMBERED = 1 << 18
"""Rows of the table of pre-tokens: 8 MiB, which a core's share of the last cache still holds."""
LONG_REMEMBERED = 1 << 14
"""Rows for pre-tokens of more than 16 bytes."""
ROOM_REMEMBERED = 1 << 20
"""Bytes of these, and ids of pre-tokens that become more than four; when there is no more room all is forgotten."""
IN_TWO_WORDS = 16
LONGEST_REMEMBERED = 128
AHEAD = 16
"""Pre-tokens, a power of two: so many rows are fetched before the first of them is looked at."""
LONGEST_SEARCHED = 48
"""Bytes of a pre-token up to which looking over all its pairs is faster than a heap."""
NO_RANK = (1 << 32) - 1
BYTES_AT_ONCE = 1 << 20
"""Bytes of text that a thread encodes at a time; the ends of its pre-tokens still fit the last cache."""


class Memory:
    """What pre-tokens have become so far; each thread has its own."""

    def __init__(self) -> None:
        room = np.empty(REMEMBERED * 4 + 8, np.uint64)  # unlike zeros, on huge pages: fewer misses of the page table
        first = -(room.ctypes.data // 8) % 8
        self.short: Words = room[first : first + REMEMBERED * 4].reshape(REMEMBERED, 4)
        """Pairs of rows in one cache line: first eight bytes, next eight, length + 256 x ids + 2^16 x first id, or
        position in `ids` + 2^40 x second id, third id + 2^32 x fourth id. A row of length 0 is empty."""
        self.short.fill(0)
        self.long: Words = np.zeros((LONG_REMEMBERED, 4), np.uint64)
        """Hash, position in `text`, length, position in `ids` + 2^32 x ids."""
        self.text = np.empty(ROOM_REMEMBERED, np.uint8)
        self.ids = np.empty(ROOM_REMEMBERED, np.int32)
        self.used = np.zeros(2, np.int64)
        self.arrays = (self.short, self.long, self.text, self.ids, self.used)


class Encoder:
    """A vocabulary as the compiled loops read it, which encodes many documents on all cores.

    Each thread has a memory of its own, kept from call to call.
    """

    def __init__(
        self,
        byte_ids: Sequence[int],
        merges: Mapping[Pair, tuple[int, int]],
        pattern: str,
        *,
        whole_pre_tokens: Mapping[bytes, int] | None = None,
        n_threads: int | None = None,
    ) -> None:
        """
        Args:
            byte_ids: (256,) the id of each byte.
            merges: pair of ids → (rank, id of the joined token).
            whole_pre_tokens: pre-tokens that are a token whatever the merges say → id.
        """
        pairs = np.array([*merges], np.uint64).reshape(-1, 2)
        values = np.array([*merges.values()], np.uint64).reshape(-1, 2)
        table: Words = np.zeros((_power_of_two(2 * len(pairs) + 2), 2), np.uint64)
        _fill_pairs(table, pairs[:, 0] << 32 | pairs[:, 1], values[:, 0] << 32 | values[:, 1])
        tokens = whole_pre_tokens or {}
        token_bytes = np.frombuffer(b"".join(tokens), np.uint8)
        token_offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
        token_ids = np.array([*tokens.values()], np.int32)
        token_rows = np.full(_power_of_two(2 * len(tokens)) if tokens else 0, -1, np.int32)
        _fill_tokens(token_rows, token_bytes, token_offsets)
        byte_table = np.array(byte_ids, np.int32)
        self._vocabulary = (byte_table, table, token_rows, token_bytes, token_offsets, token_ids)
        self._pattern = pattern
        self._n_threads = n_threads or available_cores()
        self._memories: list[Memory] = []
        self._threads: ThreadPoolExecutor | None = None

    def __call__(self, text: Bytes, offsets: Offsets, opener: int = -1) -> tuple[Ids, Offsets]:
        """Encode documents.

        Args:
            text: the documents, valid UTF-8, one after another.
            offsets: (documents + 1,) where each document begins, then where the last ends.
            opener: an id to put before each document, or -1.

        Returns:
            (ids,) and (documents + 1,) where the ids of each document begin, then where the last one's end.
        """
        runs = list(slices(offsets, BYTES_AT_ONCE))
        if len(runs) == 1 or self._n_threads == 1:
            parts = [self._slice(text, part, opener) for part in runs]
        else:
            self._threads = self._threads or ThreadPoolExecutor(self._n_threads, "encoding")
            parts = list(self._threads.map(lambda part: self._slice(text, part, opener), runs))
        return parts[0] if len(parts) == 1 else joined(parts)

    def _slice(self, text: Bytes, offsets: Offsets, opener: int) -> tuple[Ids, Offsets]:
        return self.encode_pre_tokens(text, pre_token_ends(text, offsets, self._pattern), offsets, opener)

    def encode_pre_tokens(self, text: Bytes, ends: Offsets, offsets: Offsets, opener: int = -1) -> tuple[Ids, Offsets]:
        """Encode documents whose pre-tokens end at `ends`; the other arguments as in `__call__`."""
        try:
            memory = self._memories.pop()
        except IndexError:
            memory = Memory()
        n_documents = len(offsets) - 1
        ids = np.empty(int(offsets[-1] - offsets[0]) + n_documents + 4, np.int32)
        starts = np.empty(n_documents + 1, np.int64)
        try:
            count = _encode(text, ends, offsets, opener, self._vocabulary, memory.arrays, ids, starts)
        finally:
            self._memories.append(memory)
        return ids[:count], starts


def joined(parts: Sequence[tuple[npt.NDArray[Item], Offsets]]) -> tuple[npt.NDArray[Item], Offsets]:
    """Arrays, each with the offsets of what is in it, as one."""
    begins = np.cumsum([0, *(len(array) for array, _ in parts)], dtype=np.int64)
    offsets = [offsets[:-1] + begin for (_, offsets), begin in zip(parts, begins[:-1], strict=True)]
    return np.concatenate([array for array, _ in parts]), np.concatenate([*offsets, begins[-1:]])


def slices(offsets: Offsets, at_least: int) -> Iterator[Offsets]:
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
def _fill_tokens(rows, token_bytes, offsets):
    mask = np.uint64(len(rows) - 1)
    for token in range(len(offsets) - 1):
        row = mix_bytes(token_bytes, offsets[token], offsets[token + 1]) & mask
        while rows[row] >= 0:
            row = (row + np.uint64(1)) & mask
        rows[row] = token


@compiled
def _token_of(text, start, end, rows, token_bytes, offsets):
    """The number of the token that these bytes are, or -1."""
    mask = np.uint64(len(rows) - 1)
    row = mix_bytes(text, start, end) & mask
    while rows[row] >= 0:
        token = rows[row]
        length = offsets[token + 1] - offsets[token]
        if length == end - start and same_bytes(text, start, token_bytes, offsets[token], length):
            return token
        row = (row + np.uint64(1)) & mask
    return -1


@compiled
def _merge_short(text, start, end, byte_ids, pairs, values, ids, count):
    """Write the ids of a short pre-token at `ids[count:]`; returns how many ids there are now."""
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
    """The same for a pre-token of any length, in O(n log n): a heap of rank x 2^32 + position over a linked list."""
    length = end - start
    for i in range(length):
        ids[count + i] = byte_ids[byte_at(text, start + i)]
    heap = np.empty(3 * length, np.uint64)
    size = 0
    for i in range(length - 1):
        value = _merge_of(pairs, ids[count + i], ids[count + i + 1])
        if value >> np.uint64(32) != NO_RANK:
            size = _push(heap, size, value & np.uint64(0xFFFFFFFF00000000) | np.uint64(i))
    if size == 0:
        return count + length
    alive = ids[count : count + length]
    after = np.arange(1, length + 1, dtype=np.int32)
    before = np.arange(-1, length - 1, dtype=np.int32)
    while size > 0:
        top = heap[0]
        size = _pop(heap, size)
        left = np.int64(top & np.uint64(0xFFFFFFFF))
        right = np.int64(after[left])
        if alive[left] < 0 or right == length:
            continue
        value = _merge_of(pairs, alive[left], alive[right])
        if value >> np.uint64(32) != top >> np.uint64(32):
            continue  # one of the two has been joined to something else since
        alive[left] = np.int32(value & np.uint64(0xFFFFFFFF))
        alive[right] = -1
        right = np.int64(after[right])
        after[left] = right
        if right < length:
            before[right] = left
            value = _merge_of(pairs, alive[left], alive[right])
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
    i = size
    while i > 0 and heap[(i - 1) >> 1] > item:
        heap[i] = heap[(i - 1) >> 1]
        i = (i - 1) >> 1
    heap[i] = item
    return size + 1


@compiled
def _pop(heap, size):
    size -= 1
    item = heap[size]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= item:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = item
    return size


@compiled
def _make(text, start, end, vocabulary, values, ids, count):
    """Write the ids of a pre-token at `ids[count:]`; returns how many ids there are now. `values` is room to work."""
    byte_ids, pairs, token_rows, token_bytes, token_offsets, token_ids = vocabulary
    if len(token_rows) > 0:
        token = _token_of(text, start, end, token_rows, token_bytes, token_offsets)
        if token >= 0:
            ids[count] = token_ids[token]
            return count + 1
    if end - start <= LONGEST_SEARCHED:
        return _merge_short(text, start, end, byte_ids, pairs, values, ids, count)
    return _merge_long(text, start, end, byte_ids, pairs, ids, count)


@compiled
def _forget(short, long, used):
    short[:, 2] = 0
    long[:, 2] = 0
    used[:] = 0


@compiled
def _encode(text, ends, offsets, opener, vocabulary, memory, ids, starts):
    """Write the ids of all documents, and in `starts` where those of each begin; returns how many ids there are."""
    short, long, kept_text, kept_ids, used = memory
    values = np.empty(LONGEST_SEARCHED, np.uint64)
    lows = np.empty(AHEAD, np.uint64)
    highs = np.empty(AHEAD, np.uint64)
    rows = np.empty(AHEAD, np.uint64)
    pairs_of_rows = np.uint64(len(short) // 2 - 1)
    count = 0
    document = -1
    start = offsets[0]
    ahead = start
    fetched = 0
    for pre_token in range(len(ends)):
        slot = pre_token & (AHEAD - 1)
        while fetched < min(pre_token + AHEAD, len(ends)):
            length = ends[fetched] - ahead
            if length <= IN_TWO_WORDS:
                far = fetched & (AHEAD - 1)
                lows[far], highs[far] = two_words(text, ahead, length)
                rows[far] = (mix(lows[far], highs[far], length) & pairs_of_rows) << np.uint64(1)
                prefetch(short, rows[far])
            ahead = ends[fetched]
            fetched += 1
        low = lows[slot]
        high = highs[slot]
        row = rows[slot]
        while start >= offsets[document + 1]:  # also over documents without a pre-token
            document += 1
            starts[document] = count
            if opener >= 0:
                ids[count] = opener
                count += 1
        end = ends[pre_token]
        length = end - start
        tag = np.uint64(length)
        if used[0] + LONGEST_REMEMBERED > len(kept_text) or used[1] + LONGEST_REMEMBERED > len(kept_ids):
            _forget(short, long, used)

        if length > IN_TWO_WORDS:
            count = _encode_long(text, start, end, vocabulary, values, memory, ids, count)
            start = end
            continue

        if short[row, 0] != low or short[row, 1] != high or short[row, 2] & np.uint64(255) != tag:
            other = row + np.uint64(1)
            if short[other, 0] == low and short[other, 1] == high and short[other, 2] & np.uint64(255) == tag:
                row = other
            else:
                before = count
                count = _make(text, start, end, vocabulary, values, ids, count)
                _remember_short(short, row, low, high, tag, kept_ids, used, ids, before, count)
                start = end
                continue
        count = _recall_short(short, row, kept_ids, ids, count)
        start = end
    while document < len(offsets) - 2:
        document += 1
        starts[document] = count
        if opener >= 0:
            ids[count] = opener
            count += 1
    starts[len(offsets) - 1] = count
    return count


@inlined
def _recall_short(short, row, kept_ids, ids, count):
    known = short[row, 2]
    made = np.int64((known >> np.uint64(8)) & np.uint64(255))
    if made > 4:
        begin = np.int64(known >> np.uint64(16))
        for i in range(made):
            ids[count + i] = kept_ids[begin + i]
    else:  # all four are written, but only so many are counted
        more = short[row, 3]
        ids[count] = np.int32((known >> np.uint64(16)) & np.uint64(0xFFFFFF))
        ids[count + 1] = np.int32(known >> np.uint64(40))
        ids[count + 2] = np.int32(more & np.uint64(0xFFFFFFFF))
        ids[count + 3] = np.int32(more >> np.uint64(32))
    return count + made


@inlined
def _remember_short(short, row, low, high, tag, kept_ids, used, ids, before, count):
    made = count - before
    for part in range(4):
        short[row + np.uint64(1), part] = short[row, part]  # the older of the two gives way
    short[row, 0] = low
    short[row, 1] = high
    short[row, 2] = tag | np.uint64(made) << np.uint64(8)
    if made > 4:
        short[row, 2] |= np.uint64(used[1]) << np.uint64(16)
        for i in range(made):
            kept_ids[used[1] + i] = ids[before + i]
        used[1] += made
    else:
        for i in range(count, before + 4):
            ids[i] = 0
        short[row, 2] |= np.uint64(ids[before]) << np.uint64(16) | np.uint64(ids[before + 1]) << np.uint64(40)
        short[row, 3] = np.uint64(ids[before + 2]) | np.uint64(ids[before + 3]) << np.uint64(32)


@compiled
def _encode_long(text, start, end, vocabulary, values, memory, ids, count):
    """Write the ids of a pre-token of more than 16 bytes, which is found by its hash, if it is remembered."""
    _, long, kept_text, kept_ids, used = memory
    length = end - start
    before = count
    mixed, row = np.uint64(0), np.uint64(0)
    if length <= LONGEST_REMEMBERED:
        mixed = mix_bytes(text, start, end)
        row = mixed & np.uint64(len(long) - 1)
        begin = np.int64(long[row, 1])
        known = long[row, 2] == np.uint64(length) and long[row, 0] == mixed
        if known and same_bytes(text, start, kept_text, begin, length):
            begin = np.int64(long[row, 3] & np.uint64(0xFFFFFFFF))
            made = np.int64(long[row, 3] >> np.uint64(32))
            for i in range(made):
                ids[count + i] = kept_ids[begin + i]
            return count + made
    count = _make(text, start, end, vocabulary, values, ids, count)
    made = count - before
    if length <= LONGEST_REMEMBERED:
        long[row, 0] = mixed
        long[row, 1] = used[0]
        long[row, 2] = length
        long[row, 3] = np.uint64(used[1]) | np.uint64(made) << np.uint64(32)
        for i in range(length):
            kept_text[used[0] + i] = byte_at(text, start + i)
        for i in range(made):
            kept_ids[used[1] + i] = ids[before + i]
        used[0] += length
        used[1] += made
    return count
