"""Learning: count the pieces of a corpus, then join the most frequent pair again and again.

Byte-pair encoding after Sennrich et al. 2016 (arXiv:1508.07909, algorithm 1), over bytes as in GPT-2. Among pairs
that are equally frequent the one with the lower ids is joined first; with bytes numbered as in GPT-2's table these
are the choices of Hugging Face tokenizers, so the merges are too.
"""

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable

import regex

from groundup.files import Progress, no_progress
from groundup.tokenizer.bpe import Pair, merge


def count_pieces(texts: Iterable[str], pattern: "regex.Pattern[str]") -> Counter[bytes]:
    """How often each piece occurs. Memory grows with distinct pieces, not with the corpus."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(pattern.findall(text))
    pieces: Counter[bytes] = Counter()
    for piece, count in counts.items():
        pieces[piece.encode("utf-8", "replace")] += count
    return pieces


def learn_merges(
    pieces: Counter[bytes], byte_ids: list[int], n_merges: int, progress: Progress = no_progress
) -> list[Pair]:
    """The pairs to join, in order; merge i makes id 256 + i. Fewer than `n_merges` when no pair is left.

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
            word = words[number]
            joined = merge(word, pair, 256 + len(merges))
            for old in itertools.pairwise(word):
                counts[old] -= frequency[number]
                changed.add(old)
            for new in itertools.pairwise(joined):
                counts[new] += frequency[number]
                where[new].add(number)
                changed.add(new)
            words[number] = joined
        for other in changed:
            if counts[other] > 0:
                heapq.heappush(heap, (-counts[other], other))
        merges.append(pair)
        if len(merges) % 64 == 0:
            progress(len(merges), n_merges, "merges")
    progress(n_merges, n_merges, "")
    return merges
