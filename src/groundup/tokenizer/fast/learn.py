"""Learning, compiled: documents → the pairs to join, in order. The plain twin is `bpe.learn_merges`.

All pieces lie one after another in one row of cells, one a byte, an empty cell between them. A token has its id in its
first and its last cell, so both neighbours are found in one step, and a join writes four cells. For each pair there is
a list of the places where it stood when the later of its two tokens was made; no place can be added after that, so a
list is made once and only its places that are still there count. Counts only fall, so the heap holds old, too high
counts, set right when they come up; and only pairs above a waterline are in it, which is lowered when it runs dry.
"""

import shutil
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from groundup.files import Progress, no_progress
from groundup.tokenizer.bpe import Pair
from groundup.tokenizer.columns import text_of
from groundup.tokenizer.fast.compiled import byte_at, compiled
from groundup.tokenizer.fast.count import PieceCounter, Pieces

EMPTY = -1
INSIDE = -2
MERGES_AT_ONCE = 256
BYTES_A_BYTE = 40
"""Of memory that joining takes for each byte of the different pieces, at most; see docs/numbers.md."""
BYTES_BESIDES = 350_000_000
"""Of memory that Python, the libraries and the documents being read take."""


def learn_from(
    columns: Iterable[pa.Array],
    pattern: str,
    byte_ids: Sequence[int],
    n_merges: int,
    memory_bytes: int,
    progress: Progress = no_progress,
    n_documents: int = 0,
    directory: Path | None = None,
    of: str = "",
) -> tuple[list[Pair], int]:
    """Count the pieces of documents, and learn merges from them.

    Args:
        columns: of documents, Arrow `large_string` without nulls.
        memory_bytes: that the process may take.
        n_documents: how many there are, for the progress.
        directory: where what was counted is kept, so that the same call goes on after an interruption.
        of: what the documents are; what was counted of others is not used.

    Returns:
        The merges, and how often a piece had to occur to be learned from: more than once if memory did not suffice.
    """
    room = memory_bytes - BYTES_BESIDES
    with closing(PieceCounter(pattern, room // 2, directory, of)) as counter:
        skip = counter.documents
        for column in columns:
            if len(column) <= skip:
                skip -= len(column)
                continue
            counter.add(*text_of(column[skip:]))
            skip = 0
            progress(counter.documents, max(n_documents, counter.documents), "documents counted")
        if directory:
            counter.save()  # so that an interruption from here on costs no counting
        pieces, floor = counter.pieces(room // BYTES_A_BYTE)
    merges = learn_merges(pieces, byte_ids, n_merges, progress)
    if directory:
        shutil.rmtree(directory)
    return merges, floor


def learn_merges(
    pieces: Pieces, byte_ids: Sequence[int], n_merges: int, progress: Progress = no_progress
) -> list[Pair]:
    """The pairs to join, in order; merge i makes id 256 + i. Fewer than `n_merges` when no pair is left.

    The most frequent pair goes first, of equally frequent ones that with the lower ids.

    Args:
        byte_ids: (256,) the id of each byte.
    """
    state = _State(pieces, np.array(byte_ids, np.int32), n_merges)
    while state.n_merges < n_merges:
        before = state.n_merges
        state.join(min(n_merges, before + MERGES_AT_ONCE))
        if state.n_merges == before:
            break
        progress(state.n_merges, n_merges, "merges")
    progress(n_merges, n_merges, "")
    return [(int(left), int(right)) for left, right in state.merges[: state.n_merges]]


class _State:
    """Everything that joining changes. Arrays that grow do so between two calls of the compiled loop."""

    def __init__(self, pieces: Pieces, byte_ids: npt.NDArray[np.int32], n_merges: int) -> None:
        n_cells = len(pieces.text) + len(pieces) + 1
        if n_cells >= 1 << 31:
            raise MemoryError(f"{len(pieces.text):,} bytes of different pieces are more than can be learned from")
        self.cells = np.empty(n_cells, np.int32)
        self.weight_of = np.empty(n_cells, np.int32)
        self.weights = pieces.counts
        _lay_out(pieces.text, pieces.offsets, byte_ids, self.cells, self.weight_of)
        self.merges = np.empty((n_merges, 2), np.int32)
        self.token_cells = np.ones(256 + n_merges, np.int32)
        self.touched = np.zeros((4, 256 + n_merges), np.int64)
        self.touched_tokens = np.empty((2, 256 + n_merges), np.int32)
        # pairs: by number, and their numbers in an open table
        self.pairs = np.empty((1 << 17, 2), np.int32)
        self.counts = np.empty(1 << 17, np.int64)
        self.lists = np.empty((1 << 17, 2), np.int64)  # begin and length in `places`
        self.table = np.full(1 << 18, -1, np.int32)
        self.places = np.empty(n_cells + 1024, np.int32)
        self.heap = np.empty((1 << 12, 2), np.int64)  # count, number of the pair
        # number of merges, of pairs, of places, of entries of the heap; the waterline
        self.numbers = np.zeros(5, np.int64)
        _list_byte_pairs(
            self.cells,
            self.weight_of,
            self.weights,
            self.pairs,
            self.counts,
            self.lists,
            self.table,
            self.places,
            self.numbers,
        )
        self.numbers[4] = 1 + self.counts[: self.numbers[1]].max(initial=0)

    @property
    def n_merges(self) -> int:
        return int(self.numbers[0])

    def join(self, n_merges: int) -> None:
        """Go on until there are `n_merges` merges, or no pair is left."""
        while self.n_merges < n_merges:
            need = _join(
                n_merges,
                self.cells,
                self.weight_of,
                self.weights,
                self.merges,
                self.token_cells,
                self.touched,
                self.touched_tokens,
                self.pairs,
                self.counts,
                self.lists,
                self.table,
                self.places,
                self.heap,
                self.numbers,
            )
            if need == 0:
                return
            self._make_room(int(need))

    def _make_room(self, need: int) -> None:
        """Room for the next merge, whose list has `need` places, or, if negative, for a waterline further down."""
        if need < 0:
            self._lower_waterline()
            return
        n_pairs, n_places, n_heap = (int(n) for n in self.numbers[1:4])
        new_pairs = 2 * min(need, len(self.token_cells))
        if n_pairs + new_pairs > len(self.pairs):
            room = len(self.pairs) * 3 // 2 + new_pairs
            self.pairs, self.counts, self.lists = (
                _longer(array, room, n_pairs) for array in (self.pairs, self.counts, self.lists)
            )
        if 2 * (n_pairs + new_pairs) > len(self.table):
            self.table = np.full(1 << (2 * (n_pairs + new_pairs)).bit_length(), -1, np.int32)
            _fill_table(self.pairs, n_pairs, self.table)
        if n_places + 2 * need > len(self.places):
            n_places = _compact(self.counts, self.lists, n_pairs, self.places)
            self.numbers[2] = n_places
            if n_places + 2 * need > 0.75 * len(self.places):
                self.places = _longer(self.places, len(self.places) * 3 // 2 + 2 * need, n_places)
        if n_heap + new_pairs > len(self.heap):
            self.heap = _longer(self.heap, 2 * len(self.heap) + new_pairs, n_heap)

    def _lower_waterline(self) -> None:
        """The heap ran dry: half as frequent pairs come into it."""
        counts, high = self.counts[: self.numbers[1]], int(self.numbers[4])
        low = max(1, int(counts[counts < high].max(initial=0)) // 2)
        rising = np.flatnonzero((counts < high) & (counts >= low))
        if len(rising) > len(self.heap):
            self.heap = np.empty((2 * len(rising), 2), np.int64)
        for number in rising:
            _push(self.heap, self.numbers, self.pairs, counts[number], number)
        self.numbers[4] = low


def _longer(array: npt.NDArray[Any], length: int, used: int) -> npt.NDArray[Any]:
    longer = np.empty((length, *array.shape[1:]), array.dtype)
    longer[:used] = array[:used]
    return longer


@compiled
def _lay_out(text, offsets, byte_ids, cells, weight_of):
    cell = 0
    cells[0] = EMPTY
    for piece in range(len(offsets) - 1):
        for place in range(offsets[piece], offsets[piece + 1]):
            cell += 1
            cells[cell] = byte_ids[byte_at(text, place)]
            weight_of[cell] = piece
        cell += 1
        cells[cell] = EMPTY


@compiled
def _list_byte_pairs(cells, weight_of, weights, pairs, counts, lists, table, places, numbers):
    number_of = np.full(1 << 16, -1, np.int32)
    n_pairs = 0
    for cell in range(1, len(cells) - 1):
        if cells[cell] >= 0 and cells[cell + 1] >= 0:
            key = cells[cell] << 8 | cells[cell + 1]
            number = number_of[key]
            if number < 0:
                number = n_pairs
                number_of[key] = number
                pairs[number, 0] = cells[cell]
                pairs[number, 1] = cells[cell + 1]
                counts[number] = 0
                lists[number, 1] = 0
                n_pairs += 1
            counts[number] += weights[weight_of[cell]]
            lists[number, 1] += 1
    n_places = 0
    for number in range(n_pairs):
        lists[number, 0] = n_places
        n_places += lists[number, 1]
        lists[number, 1] = 0
    for cell in range(1, len(cells) - 1):
        if cells[cell] >= 0 and cells[cell + 1] >= 0:
            number = number_of[cells[cell] << 8 | cells[cell + 1]]
            places[lists[number, 0] + lists[number, 1]] = cell
            lists[number, 1] += 1
    numbers[1] = n_pairs
    numbers[2] = n_places
    _fill_table(pairs, n_pairs, table)


@compiled
def _row(table, left, right):
    mixed = (np.uint64(left) << np.uint64(32) | np.uint64(right)) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(32)) & np.uint64(len(table) - 1)


@compiled
def _insert(table, left, right, number):
    row = _row(table, left, right)
    while table[row] >= 0:
        row = (row + np.uint64(1)) & np.uint64(len(table) - 1)
    table[row] = number


@compiled
def _number_of(table, pairs, left, right):
    row = _row(table, left, right)
    while True:
        number = table[row]
        if pairs[number, 0] == left and pairs[number, 1] == right:
            return number
        row = (row + np.uint64(1)) & np.uint64(len(table) - 1)


@compiled
def _fill_table(pairs, n_pairs, table):
    for number in range(n_pairs):
        _insert(table, pairs[number, 0], pairs[number, 1], number)


@compiled
def _compact(counts, lists, n_pairs, places):
    """Close the gaps that the lists of pairs that are no more have left."""
    n_places = 0
    for number in range(n_pairs):
        begin, length = lists[number, 0], lists[number, 1]
        if counts[number] == 0:
            length = 0
        for i in range(length):
            places[n_places + i] = places[begin + i]
        lists[number, 0] = n_places
        lists[number, 1] = length
        n_places += length
    return n_places


@compiled
def _before(pairs, count, number, other_count, other):
    """Whether a pair is joined before another."""
    if count != other_count:
        return count > other_count
    if pairs[number, 0] != pairs[other, 0]:
        return pairs[number, 0] < pairs[other, 0]
    return pairs[number, 1] < pairs[other, 1]


@compiled
def _push(heap, numbers, pairs, count, number):
    place = numbers[3]
    numbers[3] += 1
    while place > 0:
        above = (place - 1) >> 1
        if not _before(pairs, count, number, heap[above, 0], heap[above, 1]):
            break
        heap[place, 0] = heap[above, 0]
        heap[place, 1] = heap[above, 1]
        place = above
    heap[place, 0] = count
    heap[place, 1] = number


@compiled
def _pop(heap, numbers, pairs):
    numbers[3] -= 1
    size = numbers[3]
    count, number = heap[size, 0], heap[size, 1]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and _before(pairs, heap[child + 1, 0], heap[child + 1, 1], heap[child, 0], heap[child, 1]):
            child += 1
        if not _before(pairs, heap[child, 0], heap[child, 1], count, number):
            break
        heap[place, 0] = heap[child, 0]
        heap[place, 1] = heap[child, 1]
        place = child
    heap[place, 0] = count
    heap[place, 1] = number


@compiled
def _join(
    n_merges,
    cells,
    weight_of,
    weights,
    merges,
    token_cells,
    touched,
    touched_tokens,
    pairs,
    counts,
    lists,
    table,
    places,
    heap,
    numbers,
):
    """Join pairs until there are `n_merges`.

    Returns:
        0, or how many places the list of the next pair has, for which there is no room, or -1: the heap ran dry.
    """
    while numbers[0] < n_merges:
        while numbers[3] > 0 and counts[heap[0, 1]] != heap[0, 0]:
            number = heap[0, 1]
            _pop(heap, numbers, pairs)
            if counts[number] >= numbers[4]:
                _push(heap, numbers, pairs, counts[number], number)
        if numbers[3] == 0:
            return 0 if numbers[4] <= 1 else -1
        number = heap[0, 1]
        begin, length = lists[number, 0], lists[number, 1]
        new_pairs = 2 * min(length, len(token_cells))
        if (
            numbers[1] + new_pairs > len(pairs)
            or 2 * (numbers[1] + new_pairs) > len(table)
            or numbers[2] + 2 * length > len(places)
            or numbers[3] + new_pairs > len(heap)
        ):
            return length
        _pop(heap, numbers, pairs)
        left, right = pairs[number, 0], pairs[number, 1]
        token = 256 + numbers[0]
        merges[numbers[0], 0] = left
        merges[numbers[0], 1] = right
        numbers[0] += 1
        left_cells, right_cells = token_cells[left], token_cells[right]
        token_cells[token] = left_cells + right_cells

        # join, and note what the neighbours lose
        n_left, n_right, kept = 0, 0, 0
        for i in range(begin, begin + length):
            cell = places[i]
            middle = cell + left_cells
            if cells[cell] != left or cells[middle] != right:
                continue  # one of the two has been joined to something else since
            after = middle + right_cells
            weight = weights[weight_of[cell]]
            neighbour = cells[cell - 1]
            if neighbour >= 0 and neighbour != token:  # a token made just now has lost this pair already
                if touched[0, neighbour] == 0:
                    touched_tokens[0, n_left] = neighbour
                    n_left += 1
                touched[0, neighbour] += weight
            neighbour = cells[after]
            if neighbour >= 0:
                if touched[1, neighbour] == 0:
                    touched_tokens[1, n_right] = neighbour
                    n_right += 1
                touched[1, neighbour] += weight
            cells[middle - 1] = INSIDE
            cells[middle] = INSIDE
            cells[cell] = token
            cells[after - 1] = token
            places[begin + kept] = cell
            kept += 1
        for i in range(n_left):
            neighbour = touched_tokens[0, i]
            other = _number_of(table, pairs, neighbour, left)
            counts[other] -= touched[0, neighbour]
            touched[0, neighbour] = 0
        for i in range(n_right):
            neighbour = touched_tokens[1, i]
            other = _number_of(table, pairs, right, neighbour)
            counts[other] -= touched[1, neighbour]
            touched[1, neighbour] = 0
        counts[number] = 0
        lists[number, 1] = 0

        # the pairs that the new token makes with its neighbours: first how many, then where
        n_left, n_right = 0, 0
        for i in range(begin, begin + kept):
            cell = places[i]
            weight = weights[weight_of[cell]]
            neighbour = cells[cell - 1]
            if neighbour >= 0 and neighbour != token:
                if touched[1, neighbour] == 0:
                    touched_tokens[0, n_left] = neighbour
                    n_left += 1
                touched[0, neighbour] += weight
                touched[1, neighbour] += 1
            neighbour = cells[cell + token_cells[token]]
            if neighbour >= 0:
                if touched[3, neighbour] == 0:
                    touched_tokens[1, n_right] = neighbour
                    n_right += 1
                touched[2, neighbour] += weight
                touched[3, neighbour] += 1
        for side in range(2):
            for i in range(n_left if side == 0 else n_right):
                neighbour = touched_tokens[side, i]
                other = numbers[1]
                numbers[1] += 1
                pairs[other, 0] = neighbour if side == 0 else token
                pairs[other, 1] = token if side == 0 else neighbour
                counts[other] = touched[2 * side, neighbour]
                lists[other, 0] = numbers[2]
                lists[other, 1] = touched[2 * side + 1, neighbour]
                numbers[2] += touched[2 * side + 1, neighbour]
                _insert(table, pairs[other, 0], pairs[other, 1], other)
                if counts[other] >= numbers[4]:
                    _push(heap, numbers, pairs, counts[other], other)
                touched[2 * side, neighbour] = lists[other, 0]
        for i in range(begin, begin + kept):
            cell = places[i]
            neighbour = cells[cell - 1]
            if neighbour >= 0 and neighbour != token:
                places[touched[0, neighbour]] = cell - token_cells[neighbour]
                touched[0, neighbour] += 1
            neighbour = cells[cell + token_cells[token]]
            if neighbour >= 0:
                places[touched[2, neighbour]] = cell
                touched[2, neighbour] += 1
        for i in range(n_left):
            touched[0, touched_tokens[0, i]] = 0
            touched[1, touched_tokens[0, i]] = 0
        for i in range(n_right):
            touched[2, touched_tokens[1, i]] = 0
            touched[3, touched_tokens[1, i]] = 0
    return 0
