"""Loader: rows of packed tokens as a pure function of their number.

Row i of a split holds the `context_length + 1` ids from index `i × context_length` on, so every id but the first is a
target exactly once. An epoch is a seeded permutation of the rows; row numbers run on through epochs.
"""

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from groundup.batch import Batch
from groundup.errors import DamagedError
from groundup.shards import Tokens


def rows(shards: Tokens, context_length: int, seed: int, first: int, count: int) -> Batch:
    """Rows `first` to `first + count − 1` of the endless shuffled sequence.

    Args:
        shards: one split.
        context_length: tokens a row.
        seed: of the permutations.

    Raises:
        DamagedError: when the shards were damaged while they were open, naming row and document.

    >>> stream = Tokens(np.arange(9, dtype=np.uint16), offsets=np.array([0, 8]), n_bytes=np.array([7]))
    >>> batch = rows(stream, context_length=4, seed=0, first=0, count=2)
    >>> sorted(batch.tokens.tolist()), bool((batch.targets == batch.tokens + 1).all())
    ([[0, 1, 2, 3], [4, 5, 6, 7]], True)
    """
    n_rows = shards.n_rows(context_length)
    numbers = [_permutation(seed, row // n_rows, n_rows)[row % n_rows] for row in range(first, first + count)]
    try:
        return cut(shards, np.array(numbers) * context_length, context_length)
    except DamagedError as error:
        raise DamagedError(f"rows {first:,} to {first + count - 1:,} cannot be read: {error}") from None


def cut(shards: Tokens, starts: npt.NDArray[np.int64], context_length: int) -> Batch:
    """Cut the rows that begin at these indices of the stream; past its end they are padded."""
    last = len(shards.ids) - 1
    index = starts[:, None] + np.arange(context_length + 1)  # (B, T + 1)
    ids = shards.read(np.minimum(index, last))
    inside = index[:, :-1] < last  # a token whose target exists
    counts = inside if shards.closer is None else inside & (ids[:, :-1] != shards.closer)
    document = np.searchsorted(shards.offsets, index[:, :-1], side="right") - 1
    opened = shards.offsets[np.clip(document, 0, None)]
    position = index[:, :-1] - np.maximum(opened, starts[:, None])
    return Batch(
        tokens=_tensor(ids[:, :-1]),
        targets=_tensor(ids[:, 1:]),
        weight=_tensor(counts.astype(np.float32)),
        position=_tensor(np.where(inside, position, 0)),
        document=_tensor(np.where(inside, document, -1)),
    )


def _tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n_rows: int) -> npt.NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n_rows)
