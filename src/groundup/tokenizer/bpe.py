"""Byte-pair encoding in plain Python: learning merges, and applying them. The compiled loops give the same.

After Sennrich et al. 2016 (arXiv:1508.07909, algorithm 1), over bytes as in GPT-2. What is short is done here, without
waiting for the compiled loops to load: `learn.py` and `count.py` learn, `encode.py` encodes.
"""

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from groundup.files import Progress, no_progress
from groundup.tokenizer import split
from groundup.tokenizer.vocabulary import to_utf8

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
    """Apply learned merges to the byte ids of one piece: always the leftmost of the pairs that were learned first.

    A heap over a linked list, so a piece of n bytes costs O(n log n): a megabyte of one letter is no attack.

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


def count_pieces(texts: Iterable[str], pattern: str) -> Counter[bytes]:
    """How often each piece occurs. Memory grows with distinct pieces, not with the corpus."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split.pieces(text, pattern))
    pieces: Counter[bytes] = Counter()
    for piece, count in counts.items():
        pieces[to_utf8(piece)] += count
    return pieces


def learn_merges(
    pieces: Counter[bytes], byte_ids: list[int], n_merges: int, progress: Progress = no_progress
) -> list[Pair]:
    """The pairs to join, in order; merge i makes id 256 + i. Fewer than `n_merges` when no pair is left.

    Among pairs that are equally frequent the one with the lower ids is joined first; with bytes numbered as in GPT-2's
    table these are the choices of Hugging Face tokenizers, so the merges are too.

    Args:
        pieces: bytes of each piece → how often it occurs.
        byte_ids: id of each byte value.
    """
    words = [[byte_ids[byte] for byte in piece] for piece in pieces]
    frequency = list(pieces.values())
    counts: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for number, word in enumerate(words):
        for pair in itertools.pairwise(word):
            counts[pair] += frequency[number]
            where[pair].add(number)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < n_merges:
        negative, pair = heapq.heappop(heap)
        if counts[pair] != -negative:
            continue  # an old count; the present one, if any, is elsewhere in the heap
        if counts[pair] == 0:
            continue
        changed: set[Pair] = set()
        for number in where.pop(pair):
            words[number], gone, come = join(words[number], pair, 256 + len(merges))
            for other in gone:
                counts[other] -= frequency[number]
            for other in come:
                counts[other] += frequency[number]
                where[other].add(number)
            changed.update(gone, come)
        for other in changed:
            if counts[other] > 0:
                heapq.heappush(heap, (-counts[other], other))
        merges.append(pair)
        if len(merges) % 64 == 0:
            progress(len(merges), n_merges, "merges")
    progress(n_merges, n_merges, "")
    return merges


def join(word: list[int], pair: Pair, joined: int) -> tuple[list[int], list[Pair], list[Pair]]:
    """`merge`, and which pairs of neighbours go and come by it: a few, however long the word.

    >>> join([1, 2, 3, 1, 2], (1, 2), 4)
    ([4, 3, 4], [(1, 2), (2, 3), (1, 2), (3, 1)], [(4, 3), (3, 4)])
    """
    left, right = pair
    after: list[int] = []
    gone: list[Pair] = []
    come: list[Pair] = []
    place, length = 0, len(word)
    while place < length:
        token = word[place]
        just_joined = bool(after) and after[-1] == joined
        if token == left and place + 1 < length and word[place + 1] == right:
            gone.append(pair)
            if after:
                if not just_joined:  # otherwise it went with the pair before
                    gone.append((word[place - 1], left))
                come.append((after[-1], joined))
            if place + 2 < length:
                gone.append((right, word[place + 2]))
            after.append(joined)
            place += 2
        else:
            if just_joined:
                come.append((joined, token))
            after.append(token)
            place += 1
    return after, gone, come


@dataclass(frozen=True)
class Merge:
    """Two neighbours joined into one token. All but the two numbers are ids."""

    rank: int
    left: int
    right: int
    joined: int
    position: int
    """Where the joined token begins, in bytes from the beginning of the piece."""


@dataclass(frozen=True)
class Piece:
    """A stretch of text that no merge crosses, and how its ids came about."""

    raw: bytes
    ids: tuple[int, ...]
    kind: Literal["merged", "whole", "special", "added", "library"]
    """Its bytes were merged; or it is a token as a whole, which is taken without a merge; or a special or added one; or
    a library made it, by rules that are not known here."""
    merges: tuple[Merge, ...] | None
    """In the order they happened; of a whole token, those that its bytes would have gone through. None of a piece of
    more than `EXPLAINED_BYTES`, and of a library's."""


EXPLAINED_BYTES = 256
"""Pieces up to here are explained: the plain way takes the square of the length, and nobody reads a longer tree."""


def merges_of(ids: Sequence[int], merges: Mapping[Pair, tuple[int, int]]) -> list[Merge]:
    """The merges that `encode_piece` makes of a piece, in its order: at each turn a look over the whole piece.

    >>> [(made.left, made.right) for made in merges_of([1, 2, 3], {(2, 3): (0, 9), (1, 2): (1, 8), (1, 9): (2, 7)})]
    [(2, 3), (1, 9)]
    """
    tokens, begins = list(ids), list(range(len(ids)))
    made: list[Merge] = []
    while pairs := [(merges[pair][0], i) for i, pair in enumerate(itertools.pairwise(tokens)) if pair in merges]:
        rank, i = min(pairs)
        left, right = tokens[i], tokens[i + 1]
        joined = merges[left, right][1]
        made.append(Merge(rank, left, right, joined, begins[i]))
        tokens[i : i + 2] = [joined]
        del begins[i + 1]
    return made
