"""How the ids of a text come about, pre-token by pre-token and merge by merge, for `groundup tokens show`."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from groundup.tokenizer.bpe import Pair

EXPLAINED_BYTES = 256
"""The longest pre-token whose merges are listed: listing takes time in the square of the length."""


@dataclass(frozen=True)
class Merge:
    """Two neighbours joined into one token. `left`, `right` and `joined` are ids."""

    rank: int
    left: int
    right: int
    joined: int
    position: int
    """Where the joined token begins, in bytes from the beginning of the pre-token."""


@dataclass(frozen=True)
class PreToken:
    """A stretch of text that no merge crosses, and how its ids came about."""

    raw: bytes
    ids: tuple[int, ...]
    kind: Literal["merged", "whole", "special", "added", "library"]
    """merged: by merges of its bytes. whole: it is a token itself, and is taken without a merge. special, added: it is
    such a token. library: another library made it, by rules that are not known here."""
    merges: tuple[Merge, ...] | None
    """In the order they happened; of a whole token, those that its bytes would have gone through. None for a pre-token
    of more than `EXPLAINED_BYTES`, and for a library's."""


def merges_of(ids: Sequence[int], merges: Mapping[Pair, tuple[int, int]]) -> list[Merge]:
    """The merges that `bpe.apply_merges` makes of a pre-token, in its order, found by scanning all pairs at each step.

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
