"""Byte-pair encoding in plain Python: learning merges, and applying them.

After Sennrich et al. 2016 (arXiv:1508.07909, algorithm 1), over bytes as in GPT-2. Short texts are encoded here; for
long ones the compiled loops in `fast/` give the same merges and ids.
"""

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from groundup.files import Progress, no_progress
from groundup.tokenizer import split
from groundup.tokenizer.vocabulary import to_utf8

Pair = tuple[int, int]


def merge(ids: Sequence[int], pair: Pair, new: int) -> list[int]:
    """Replace every occurrence of `pair`, left to right. `join` does the same and reports which pairs changed.

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


def apply_merges(ids: Sequence[int], merges: Mapping[Pair, tuple[int, int]]) -> list[int]:
    """Apply learned merges to the byte ids of one pre-token: always the leftmost of the pairs that were learned first.

    A heap over a linked list, so n bytes cost O(n log n): a megabyte of one letter is no attack.

    Args:
        ids: one id a byte.
        merges: pair → (rank, id of the joined token); a lower rank was learned earlier.

    >>> apply_merges([1, 2, 3], {(2, 3): (0, 9), (1, 2): (1, 8)})
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
            continue  # one of the two has been already joined to something else
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


def count_pre_tokens(texts: Iterable[str], pattern: str) -> Counter[bytes]:
    """How often each pre-token occurs. Memory grows with distinct pre-tokens, not with the corpus."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split.pre_tokens(text, pattern))
    as_bytes: Counter[bytes] = Counter()
    for pre_token, count in counts.items():
        as_bytes[to_utf8(pre_token)] += count
    return as_bytes


def learn_merges(
    pre_tokens: Counter[bytes], byte_ids: list[int], n_merges: int, progress: Progress = no_progress
) -> list[Pair]:
    """The pairs to join, in order; merge i makes id 256 + i. Fewer than `n_merges` when no pair is left.

    Among pairs that are equally frequent the one with the lower ids is joined first; with bytes numbered as in GPT-2's
    table these are the choices of Hugging Face tokenizers, so the merges are too.

    Args:
        pre_tokens: bytes of each pre-token → how often it occurs.
        byte_ids: id of each byte value.
    """
    words = [[byte_ids[byte] for byte in pre_token] for pre_token in pre_tokens]
    frequency = list(pre_tokens.values())
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
        changed: set[Pair] = set()
        for number in where.pop(pair):
            words[number], removed, added = join(words[number], pair, 256 + len(merges))
            for other in removed:
                counts[other] -= frequency[number]
            for other in added:
                counts[other] += frequency[number]
                where[other].add(number)
            changed.update(removed, added)
        for other in changed:
            if counts[other] > 0:
                heapq.heappush(heap, (-counts[other], other))
        merges.append(pair)
        if len(merges) % 64 == 0:
            progress(len(merges), n_merges, "merges")
    progress(n_merges, n_merges, "")
    return merges


def join(word: list[int], pair: Pair, joined: int) -> tuple[list[int], list[Pair], list[Pair]]:
    """`merge`, and the pairs of neighbours that it removes and adds: few, however long the word.

    >>> join([1, 2, 3, 1, 2], (1, 2), 4)
    ([4, 3, 4], [(1, 2), (2, 3), (1, 2), (3, 1)], [(4, 3), (3, 4)])
    """
    left, right = pair
    after: list[int] = []
    removed: list[Pair] = []
    added: list[Pair] = []
    i, length = 0, len(word)
    while i < length:
        token = word[i]
        just_joined = bool(after) and after[-1] == joined
        if token == left and i + 1 < length and word[i + 1] == right:
            removed.append(pair)
            if after:
                if not just_joined:  # otherwise it went with the pair before
                    removed.append((word[i - 1], left))
                added.append((after[-1], joined))
            if i + 2 < length:
                removed.append((right, word[i + 2]))
            after.append(joined)
            i += 2
        else:
            if just_joined:
                added.append((joined, token))
            after.append(token)
            i += 1
    return after, removed, added
