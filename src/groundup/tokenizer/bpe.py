"""Merging: one piece of bytes → ids, by always joining the leftmost pair that was learned first.

A heap over a linked list, so a piece of n bytes costs O(n log n): a megabyte of one letter is no attack. The plain
version, which looks over the whole piece for every merge, is in the tests.
"""

import heapq
import itertools
from collections.abc import Mapping, Sequence

Pair = tuple[int, int]


def merge(ids: Sequence[int], pair: Pair, new: int) -> list[int]:
    """Replace every occurrence of `pair`, left to right.

    >>> merge([1, 2, 3, 1, 2], (1, 2), 4)
    [4, 3, 4]
    """
    merged: list[int] = []
    i = 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(new)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def encode_piece(ids: Sequence[int], merges: Mapping[Pair, tuple[int, int]]) -> list[int]:
    """Apply learned merges to the byte ids of one piece.

    Args:
        ids: one id a byte.
        merges: pair → (rank, id of the joined token); a lower rank was learned earlier.

    >>> encode_piece([1, 2, 3], {(2, 3): (0, 9), (1, 2): (1, 8)})
    [1, 9]
    """
    alive = list(ids)
    end = len(alive)
    after = list(range(1, end + 1))
    before = list(range(-1, end - 1))
    heap = [(merges[pair][0], i, pair) for i, pair in enumerate(itertools.pairwise(alive)) if pair in merges]
    heapq.heapify(heap)
    while heap:
        _, left, pair = heapq.heappop(heap)
        right = after[left]
        if alive[left] != pair[0] or right == end or alive[right] != pair[1]:
            continue  # one of the two has been joined to something else since
        alive[left], alive[right] = merges[pair][1], -1
        after[left] = after[right]
        if after[left] != end:
            before[after[left]] = left
            candidate = (alive[left], alive[after[left]])
            if candidate in merges:
                heapq.heappush(heap, (merges[candidate][0], left, candidate))
        if before[left] >= 0:
            candidate = (alive[before[left]], alive[left])
            if candidate in merges:
                heapq.heappush(heap, (merges[candidate][0], before[left], candidate))
    return [token for token in alive if token >= 0]
