"""Blocks: on a CPU, attention in which the queries are taken in blocks.

B batch, T time, H query heads, G key/value heads, K head width, W value width.
"""

import itertools
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from groundup.model.dropout import Drop
from groundup.model.equation import weighted_values

BLOCK, MOST_BLOCKS = 128, 2
"""Queries that a block has at least, and blocks that there are at most."""


def block_count(q: Float[Tensor, "B H T K"]) -> int:
    """In how many blocks the queries are taken; on a GPU all together, in one call of its kernel."""
    return 1 if q.is_cuda else max(1, min(MOST_BLOCKS, q.shape[2] // BLOCK))


def spans(length: int, n_blocks: int, window: int | None = None) -> list[tuple[int, int, int]]:
    """For each block: its first query, the one after its last, and the first key that it meets.

    >>> spans(10, 2), spans(10, 2, window=2)
    ([(0, 5, 0), (5, 10, 0)], [(0, 5, 0), (5, 10, 0)])
    """
    sizes = [length // n_blocks + (number < length % n_blocks) for number in range(n_blocks)]  # as of tensor_split
    edges = [0, *itertools.accumulate(sizes)]
    found = []
    for begin, end in itertools.pairwise(edges):
        oldest = 0 if window is None else max(0, begin - window + 1)
        found.append((begin, end, max(edge for edge in edges if edge <= oldest)))
    return found


def by_blocks(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G T K"],
    v: Float[Tensor, "B G T W"],
    mask: Float[Tensor, "#B 1 T T"],
    distance: Int[Tensor, "1 1 T T"] | None,
    n_blocks: int,
    *,
    window: int | None = None,
    dropout: Drop | None = None,
    **options: Any,
) -> Float[Tensor, "B H T W"]:
    """`weighted_values`, the queries in `n_blocks` blocks, each of which meets only the keys that its queries may read:
    of the square of scores the upper triangle, and what lies behind the window, is mostly not computed.

    Args:
        mask: keeps to the `window` already.
    """
    queries, keys, values = (each.tensor_split(n_blocks, dim=2) for each in (q, k, v))
    blocks = spans(q.shape[2], n_blocks, window)
    begins = [begin for begin, _, _ in blocks]
    read = []
    for number, (begin, end, oldest) in enumerate(blocks):
        met = slice(begins.index(oldest), number + 1)  # the gradient of a cut is a view, that of a slice is padded
        square = (..., slice(begin, end), slice(oldest, end))
        read.append(
            weighted_values(
                queries[number],
                torch.cat(keys[met], dim=2),
                torch.cat(values[met], dim=2),
                mask[square],
                None if distance is None else distance[square],
                dropout=None if dropout is None else dropout.of_queries(begin, end),
                first_key=oldest,
                **options,
            )
        )
    return torch.cat(read, dim=2)
