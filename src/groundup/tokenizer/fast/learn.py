"""Learning, compiled: documents → the pairs to join, in order. The plain twin is `bpe.learn_merges`.

All pre-tokens lie one after another in one row of cells, one a byte, an empty cell between them. A token has its id in
its first and its last cell, so both neighbours are found in one step, and a join writes four cells. For each pair there
is a list of the cells where it began when the later of its two tokens was made; no position can be added after that, so
a list is made once, and only those of its positions count where the pair still stands. Counts only fall, so the heap
holds old, too high counts, set right when they come up; and only pairs above a waterline are in it, which is lowered
when it runs dry.
"""

import shutil
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from groundup.compiled.loops import compiled, inlined
from groundup.files import Progress, no_progress
from groundup.tokenizer.bpe import Pair
from groundup.tokenizer.columns import text_of
from groundup.tokenizer.fast.compiled import byte_at
from groundup.tokenizer.fast.count import PreTokenCounter

EMPTY = -1
INSIDE = -2
N_MERGES, N_PAIRS, N_POSITIONS, N_HEAP, WATERLINE = range(5)
"""What stands where in `_Arrays.numbers`."""
MERGES_AT_ONCE = 256
BYTES_A_BYTE = 40
"""Bytes of memory that joining takes at most for each byte of the distinct pre-tokens; see docs/numbers.md."""
BYTES_BESIDES = 350_000_000
"""Bytes of memory that Python, the libraries and the documents being read take."""


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
    """Count the pre-tokens of documents, and learn merges from them.

    Args:
        columns: of documents, Arrow `large_string` without nulls.
        memory_bytes: that the process may take.
        n_documents: how many there are, for the progress.
        directory: where what was counted is kept, so that the same call goes on after an interruption.
        of: what the documents are; what was counted of others is not used.

    Returns:
        The merges, and how often a pre-token had to occur to be learned from: more than once if memory did not suffice.
    """
    room = memory_bytes - BYTES_BESIDES
    with closing(PreTokenCounter(pattern, room // 2, directory, of)) as counter:
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
        pre_tokens, floor = counter.pre_tokens(room // BYTES_A_BYTE)
    merges = learn_merges(pre_tokens, byte_ids, n_merges, progress)
    if directory:
        shutil.rmtree(directory)
    return merges, floor


def learn_merges(
    pre_tokens: pa.RecordBatch, byte_ids: Sequence[int], n_merges: int, progress: Progress = no_progress
) -> list[Pair]:
    """The pairs to join, in order; merge i makes id 256 + i. Fewer than `n_merges` when no pair is left.

    The most frequent pair goes first, of equally frequent ones that with the lower ids.

    Args:
        pre_tokens: with how often each occurs, as `count.PreTokenCounter` gives them.
        byte_ids: (256,) the id of each byte.
    """
    arrays = _begin(pre_tokens, np.array(byte_ids, np.int32), n_merges)
    numbers = arrays.numbers
    while (before := numbers[N_MERGES]) < n_merges:
        lacking = int(_join(min(n_merges, before + MERGES_AT_ONCE), arrays))
        if lacking > 0:
            arrays = _with_room(arrays, lacking)
        elif lacking < 0:
            arrays = _with_lower_waterline(arrays)
        elif numbers[N_MERGES] > before:
            progress(int(numbers[N_MERGES]), n_merges, "merges")
        else:
            break
    progress(n_merges, n_merges, "")
    return [(int(left), int(right)) for left, right in arrays.merges[: numbers[N_MERGES]]]


class _Arrays(NamedTuple):
    """Everything that joining changes, as the compiled loops read it."""

    cells: npt.NDArray[np.int32]
    """(cells,) a token in its first and its last cell, `INSIDE` between, `EMPTY` between two pre-tokens."""
    pre_token_of: npt.NDArray[np.int32]
    """(cells,) the number of the pre-token that each cell belongs to."""
    weights: npt.NDArray[np.int64]
    """(pre-tokens,) how often each occurs."""
    merges: npt.NDArray[np.int32]
    """(merges, 2) the pairs joined so far."""
    token_cells: npt.NDArray[np.int32]
    """(tokens,) how many cells each token has."""
    touched: npt.NDArray[np.int64]
    """(4, tokens) per neighbour of the pair that is being joined; all zero between two joins."""
    touched_tokens: npt.NDArray[np.int32]
    """(2, tokens) the neighbours met on the left, and those on the right."""
    pairs: npt.NDArray[np.int32]
    """(pairs, 2) the tokens of each pair."""
    counts: npt.NDArray[np.int64]
    """(pairs,) how often each occurs."""
    lists: npt.NDArray[np.int64]
    """(pairs, 2) begin and length of its list in `positions`."""
    table: npt.NDArray[np.int32]
    """An open table of the numbers of pairs, by their tokens."""
    positions: npt.NDArray[np.int32]
    """The cells in which pairs begin, list after list."""
    heap: npt.NDArray[np.int64]
    """(entries, 2) count and number of a pair."""
    numbers: npt.NDArray[np.int64]
    """(5,) how many merges, pairs, positions and entries of the heap there are; the waterline."""


def _begin(pre_tokens: pa.RecordBatch, byte_ids: npt.NDArray[np.int32], n_merges: int) -> _Arrays:
    """The arrays before the first merge; those that grow do so between two calls of the compiled loop."""
    text, offsets = text_of(pre_tokens["text"])
    n_cells = len(text) + len(offsets)
    if n_cells >= 1 << 31:
        raise MemoryError(f"{len(text):,} bytes of distinct pre-tokens are more than can be learned from")
    arrays = _Arrays(
        cells=np.empty(n_cells, np.int32),
        pre_token_of=np.empty(n_cells, np.int32),
        weights=pre_tokens["count"].to_numpy(),
        merges=np.empty((n_merges, 2), np.int32),
        token_cells=np.ones(256 + n_merges, np.int32),
        touched=np.zeros((4, 256 + n_merges), np.int64),
        touched_tokens=np.empty((2, 256 + n_merges), np.int32),
        pairs=np.empty((1 << 17, 2), np.int32),
        counts=np.empty(1 << 17, np.int64),
        lists=np.empty((1 << 17, 2), np.int64),
        table=np.full(1 << 18, -1, np.int32),
        positions=np.empty(n_cells + 1024, np.int32),
        heap=np.empty((1 << 12, 2), np.int64),
        numbers=np.zeros(5, np.int64),
    )
    _lay_out(text, offsets, byte_ids, arrays.cells, arrays.pre_token_of)
    _list_byte_pairs(arrays)
    arrays.numbers[WATERLINE] = 1 + arrays.counts[: arrays.numbers[N_PAIRS]].max(initial=0)
    return arrays


def _with_room(arrays: _Arrays, need: int) -> _Arrays:
    """The arrays with room for the next merge, whose list has `need` positions."""
    n_pairs, n_positions, n_heap = (int(n) for n in arrays.numbers[N_PAIRS : N_HEAP + 1])
    new_pairs = 2 * min(need, len(arrays.token_cells))
    if n_pairs + new_pairs > len(arrays.pairs):
        room = len(arrays.pairs) * 3 // 2 + new_pairs
        grown = {name: _longer(getattr(arrays, name), room, n_pairs) for name in ("pairs", "counts", "lists")}
        arrays = arrays._replace(**grown)
    if 2 * (n_pairs + new_pairs) > len(arrays.table):
        arrays = arrays._replace(table=np.full(1 << (2 * (n_pairs + new_pairs)).bit_length(), -1, np.int32))
        _fill_table(arrays.pairs, n_pairs, arrays.table)
    if n_positions + 2 * need > len(arrays.positions):
        n_positions = _compact(arrays.counts, arrays.lists, n_pairs, arrays.positions)
        arrays.numbers[N_POSITIONS] = n_positions
        if n_positions + 2 * need > 0.75 * len(arrays.positions):
            room = len(arrays.positions) * 3 // 2 + 2 * need
            arrays = arrays._replace(positions=_longer(arrays.positions, room, n_positions))
    if n_heap + new_pairs > len(arrays.heap):
        arrays = arrays._replace(heap=_longer(arrays.heap, 2 * len(arrays.heap) + new_pairs, n_heap))
    return arrays


def _with_lower_waterline(arrays: _Arrays) -> _Arrays:
    """The heap ran dry: half as frequent pairs come into it."""
    numbers = arrays.numbers
    counts, high = arrays.counts[: numbers[N_PAIRS]], int(numbers[WATERLINE])
    low = max(1, int(counts[counts < high].max(initial=0)) // 2)
    rising = np.flatnonzero((counts < high) & (counts >= low))
    if len(rising) > len(arrays.heap):
        arrays = arrays._replace(heap=np.empty((2 * len(rising), 2), np.int64))
    for number in rising:
        _push(arrays.heap, numbers, arrays.pairs, counts[number], number)
    numbers[WATERLINE] = low
    return arrays


def _longer(array: npt.NDArray[Any], length: int, used: int) -> npt.NDArray[Any]:
    longer = np.empty((length, *array.shape[1:]), array.dtype)
    longer[:used] = array[:used]
    return longer


@compiled
def _lay_out(text, offsets, byte_ids, cells, pre_token_of):
    cell = 0
    cells[0] = EMPTY
    for pre_token in range(len(offsets) - 1):
        for i in range(offsets[pre_token], offsets[pre_token + 1]):
            cell += 1
            cells[cell] = byte_ids[byte_at(text, i)]
            pre_token_of[cell] = pre_token
        cell += 1
        cells[cell] = EMPTY


@compiled
def _list_byte_pairs(arrays):
    cells, pairs, counts, lists, positions = arrays.cells, arrays.pairs, arrays.counts, arrays.lists, arrays.positions
    weights, pre_token_of = arrays.weights, arrays.pre_token_of
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
            counts[number] += weights[pre_token_of[cell]]
            lists[number, 1] += 1
    n_positions = 0
    for number in range(n_pairs):
        lists[number, 0] = n_positions
        n_positions += lists[number, 1]
        lists[number, 1] = 0
    for cell in range(1, len(cells) - 1):
        if cells[cell] >= 0 and cells[cell + 1] >= 0:
            number = number_of[cells[cell] << 8 | cells[cell + 1]]
            positions[lists[number, 0] + lists[number, 1]] = cell
            lists[number, 1] += 1
    arrays.numbers[N_PAIRS] = n_pairs
    arrays.numbers[N_POSITIONS] = n_positions
    _fill_table(pairs, n_pairs, arrays.table)


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
def _compact(counts, lists, n_pairs, positions):
    """Close the gaps that the lists of pairs that no longer occur have left."""
    n_positions = 0
    for number in range(n_pairs):
        begin, length = lists[number, 0], lists[number, 1]
        if counts[number] == 0:
            length = 0
        for i in range(length):
            positions[n_positions + i] = positions[begin + i]
        lists[number, 0] = n_positions
        lists[number, 1] = length
        n_positions += length
    return n_positions


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
    i = numbers[N_HEAP]
    numbers[N_HEAP] += 1
    while i > 0:
        above = (i - 1) >> 1
        if not _before(pairs, count, number, heap[above, 0], heap[above, 1]):
            break
        heap[i, 0] = heap[above, 0]
        heap[i, 1] = heap[above, 1]
        i = above
    heap[i, 0] = count
    heap[i, 1] = number


@compiled
def _pop(heap, numbers, pairs):
    numbers[N_HEAP] -= 1
    size = numbers[N_HEAP]
    count, number = heap[size, 0], heap[size, 1]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and _before(pairs, heap[child + 1, 0], heap[child + 1, 1], heap[child, 0], heap[child, 1]):
            child += 1
        if not _before(pairs, heap[child, 0], heap[child, 1], count, number):
            break
        heap[i, 0] = heap[child, 0]
        heap[i, 1] = heap[child, 1]
        i = child
    heap[i, 0] = count
    heap[i, 1] = number


@compiled
def _join(n_merges, arrays):
    """Join pairs until there are `n_merges`.

    Returns:
        0: these are made, or no pair is left. Else how many positions the list of the next pair has, for which there is
        no room, or -1: the heap ran dry.
    """
    numbers = arrays.numbers
    while numbers[N_MERGES] < n_merges:
        _correct_top(arrays)
        if numbers[N_HEAP] == 0:
            return 0 if numbers[WATERLINE] <= 1 else -1
        number = arrays.heap[0, 1]
        begin, length = arrays.lists[number, 0], arrays.lists[number, 1]
        if _lacks_room(arrays, length):
            return length
        _pop(arrays.heap, numbers, arrays.pairs)
        token = 256 + numbers[N_MERGES]
        arrays.merges[numbers[N_MERGES], 0] = arrays.pairs[number, 0]
        arrays.merges[numbers[N_MERGES], 1] = arrays.pairs[number, 1]
        numbers[N_MERGES] += 1
        kept, n_left, n_right = _replace(arrays, number, token)
        _list_pairs_of(arrays, token, begin, begin + kept, n_left, n_right)
    return 0


@inlined
def _correct_top(arrays):
    """Counts in the heap may be too high: set the top right until it is."""
    heap, counts, numbers, pairs = arrays.heap, arrays.counts, arrays.numbers, arrays.pairs
    while numbers[N_HEAP] > 0 and counts[heap[0, 1]] != heap[0, 0]:
        number = heap[0, 1]
        _pop(heap, numbers, pairs)
        if counts[number] >= numbers[WATERLINE]:
            _push(heap, numbers, pairs, counts[number], number)


@inlined
def _lacks_room(arrays, length):
    numbers = arrays.numbers
    new_pairs = 2 * min(length, len(arrays.token_cells))
    return (
        numbers[N_PAIRS] + new_pairs > len(arrays.pairs)
        or 2 * (numbers[N_PAIRS] + new_pairs) > len(arrays.table)
        or numbers[N_POSITIONS] + 2 * length > len(arrays.positions)
        or numbers[N_HEAP] + new_pairs > len(arrays.heap)
    )


@inlined
def _replace(arrays, number, token):
    """Put `token` where pair `number` stands, take from the counts what the neighbours lose, and gather in `touched`
    what the pairs of `token` with its neighbours gain: positions and counts on the left, the same on the right.

    Returns:
        At how many positions the pair stood, which are moved to the beginning of its list; and how many different
        neighbours there are on the left and on the right.
    """
    cells, positions, token_cells = arrays.cells, arrays.positions, arrays.token_cells
    weights, pre_token_of = arrays.weights, arrays.pre_token_of
    at_left, left_counts = arrays.touched[0], arrays.touched[1]
    at_right, right_counts = arrays.touched[2], arrays.touched[3]
    tokens_left, tokens_right = arrays.touched_tokens[0], arrays.touched_tokens[1]
    counts, table, pairs = arrays.counts, arrays.table, arrays.pairs
    left, right = pairs[number, 0], pairs[number, 1]
    left_cells, right_cells = token_cells[left], token_cells[right]
    token_cells[token] = left_cells + right_cells
    begin, end = arrays.lists[number, 0], arrays.lists[number, 0] + arrays.lists[number, 1]
    n_left, n_right, kept, n_twice, twice = 0, 0, 0, 0, 0
    for i in range(begin, end):
        cell = positions[i]
        middle = cell + left_cells
        if cells[cell] != left or cells[middle] != right:
            continue  # one of the two is already joined to something else
        after = middle + right_cells
        weight = weights[pre_token_of[cell]]
        neighbour = cells[cell - 1]
        if neighbour == token:  # made just now, when `left` was still its neighbour
            n_twice += 1
            twice += weight
        elif neighbour >= 0:
            if at_left[neighbour] == 0:
                tokens_left[n_left] = neighbour
                n_left += 1
            at_left[neighbour] += 1
            left_counts[neighbour] += weight
        neighbour = cells[after]
        if neighbour >= 0:
            if at_right[neighbour] == 0:
                tokens_right[n_right] = neighbour
                n_right += 1
            at_right[neighbour] += 1
            right_counts[neighbour] += weight
        cells[middle - 1] = INSIDE
        cells[middle] = INSIDE
        cells[cell] = token
        cells[after - 1] = token
        positions[begin + kept] = cell
        kept += 1
    for i in range(n_left):
        counts[_number_of(table, pairs, tokens_left[i], left)] -= left_counts[tokens_left[i]]
    for i in range(n_right):
        counts[_number_of(table, pairs, right, tokens_right[i])] -= right_counts[tokens_right[i]]
    counts[number] = 0
    arrays.lists[number, 1] = 0
    if n_twice > 0:  # `left` may have no position left then: an empty list does no harm
        at_right[left] -= n_twice
        right_counts[left] -= twice
        at_right[token] = n_twice
        right_counts[token] = twice
        tokens_right[n_right] = token
        n_right += 1
    return kept, n_left, n_right


@inlined
def _list_pairs_of(arrays, token, begin, end, n_left, n_right):
    """Add the pairs that a new token makes with its neighbours, and list where each of them begins.

    The token stands at the positions from `begin` to `end`.
    """
    cells, positions, token_cells = arrays.cells, arrays.positions, arrays.token_cells
    left, right = arrays.touched[0], arrays.touched[2]  # by neighbour: where the next position of the pair goes
    _add_pairs(arrays, token, 0, n_left)
    _add_pairs(arrays, token, 2, n_right)
    for i in range(begin, end):
        cell = positions[i]
        neighbour = cells[cell - 1]
        if neighbour >= 0 and neighbour != token:
            positions[left[neighbour]] = cell - token_cells[neighbour]
            left[neighbour] += 1
        neighbour = cells[cell + token_cells[token]]
        if neighbour >= 0:
            positions[right[neighbour]] = cell
            right[neighbour] += 1
    for i in range(n_left):
        left[arrays.touched_tokens[0, i]] = 0
    for i in range(n_right):
        right[arrays.touched_tokens[1, i]] = 0


@inlined
def _add_pairs(arrays, token, side, n_neighbours):
    """Add the pairs with the neighbours on the left (side 0) or right (2), each with an empty list of the length in
    `touched[side]`, which becomes where the list begins."""
    pairs, counts, lists, table = arrays.pairs, arrays.counts, arrays.lists, arrays.table
    heap, numbers = arrays.heap, arrays.numbers
    neighbours, lengths, amounts = arrays.touched_tokens[side >> 1], arrays.touched[side], arrays.touched[side + 1]
    for i in range(n_neighbours):
        neighbour = neighbours[i]
        number = numbers[N_PAIRS]
        numbers[N_PAIRS] += 1
        pairs[number, 0] = neighbour if side == 0 else token
        pairs[number, 1] = token if side == 0 else neighbour
        counts[number] = amounts[neighbour]
        lists[number, 0] = numbers[N_POSITIONS]
        lists[number, 1] = lengths[neighbour]
        numbers[N_POSITIONS] += lengths[neighbour]
        _insert(table, pairs[number, 0], pairs[number, 1], number)
        if counts[number] >= numbers[WATERLINE]:
            _push(heap, numbers, pairs, counts[number], number)
        lengths[neighbour] = lists[number, 0]
        amounts[neighbour] = 0
