"""The loader: rows are a function of their number, and every token is a target once."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from groundup.batch import total_weight
from groundup.errors import DamagedError
from groundup.shards import Tokens, open_split
from groundup.train.loader import cut, rows

LENGTHS = [5, 1, 12, 3, 9, 2, 20]
END = 999


@pytest.fixture
def shards() -> Tokens:
    """Documents whose ids say where they stand; each begins with END."""
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    ids = np.arange(offsets[-1] + 1)
    ids[offsets] = END
    return Tokens(ids.astype(np.uint16), offsets, np.ones(len(LENGTHS), np.int64))


@pytest.mark.parametrize("context", [1, 4, 7, 52, 60])
def test_every_token_but_the_first_is_a_target_exactly_once_an_epoch(shards: Tokens, context: int) -> None:
    n = shards.n_rows(context)
    batch = rows(shards, context, seed=3, first=5 * n, count=n)
    seen = Counter(batch.targets[batch.weight > 0].tolist())
    assert seen == Counter(shards.ids[1:].tolist())
    assert (batch.document[batch.weight == 0] == -1).all()


@pytest.mark.parametrize("batch_rows", [1, 4, 5, 100])
def test_a_tail_shorter_than_a_batch_is_filled_from_the_next_epoch(shards: Tokens, batch_rows: int) -> None:
    """Fault B9: no batch is smaller, and after whole epochs each target has counted once in every one of them."""
    n = shards.n_rows(8)
    batches = [rows(shards, 8, seed=0, first=step * batch_rows, count=batch_rows) for step in range(2 * n)]
    assert {tuple(batch.tokens.shape) for batch in batches} == {(batch_rows, 8)}
    epochs = 2 * batch_rows
    assert sum(total_weight(batch).item() for batch in batches) == epochs * (len(shards.ids) - 1)
    seen = Counter(target for batch in batches for target in batch.targets[batch.weight > 0].tolist())
    assert seen == Counter(epochs * shards.ids[1:].tolist())


def test_a_row_depends_on_its_number_alone(shards: Tokens) -> None:
    together = rows(shards, 8, seed=1, first=3, count=9)
    for number in range(9):
        alone = rows(shards, 8, seed=1, first=3 + number, count=1)
        assert torch.equal(alone.tokens[0], together.tokens[number])


def test_seed_and_epoch_change_the_order_and_nothing_else(shards: Tokens) -> None:
    n = shards.n_rows(2)
    orders = [rows(shards, 2, seed, first, n).tokens[:, 0].tolist() for seed, first in ((0, 0), (0, n), (1, 0))]
    assert len({tuple(order) for order in orders}) == 3
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_position_counts_within_row_and_document(shards: Tokens) -> None:
    batch = cut(shards, np.array([3]), 8)  # two tokens of document 0, one of 1, five of 2
    assert batch.document.tolist() == [[0, 0, 1, 2, 2, 2, 2, 2]]
    assert batch.position.tolist() == [[0, 1, 0, 0, 1, 2, 3, 4]]
    assert batch.targets.tolist() == [[4, END, END, 7, 8, 9, 10, 11]]  # the opening token is the last one's target


def test_the_tail_is_padded_with_weight_zero(shards: Tokens) -> None:
    batch = cut(shards, np.array([48]), 8)
    assert batch.weight.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]
    assert batch.targets[0, 3] == END


@pytest.mark.parametrize("damage", ["overwritten", "cut short"])
def test_shards_that_change_while_they_are_open_are_named(tmp_path: Path, damage: str) -> None:
    """On an accelerator such an id is a fault of the device; past the end of a mapped file lies a bus error."""
    for name, numbers in {
        "train": np.arange(100, dtype=np.uint16) % 50,
        "train.offsets": np.array([0, 40, 99]),
        "train.bytes": np.array([1, 1]),
    }.items():
        np.save(tmp_path / f"{name}.npy", numbers)
    shards = open_split(tmp_path, "train", 50)
    rows(shards, 8, 0, 0, 13)
    if damage == "overwritten":
        opened = np.load(tmp_path / "train.npy", mmap_mode="r+")
        opened[60] = 50
        opened.flush()
        said = r"rows 0 to 12 cannot be read: .*npy holds id 50 at position 60, in document 1; the vocabulary has 50"
    else:
        with open(tmp_path / "train.npy", "r+b") as stream:
            stream.truncate(300)
        said = r"rows 0 to 12 cannot be read: .*train\.npy had 328 bytes when it was opened and now has 300"
    with pytest.raises(DamagedError, match=said):
        rows(shards, 8, 0, 0, 13)
