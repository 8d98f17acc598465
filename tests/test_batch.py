"""The three functions over batches."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.batch import Batch, split, to, total_weight


def batch(rows: int) -> Batch:
    numbers = torch.arange(rows * 3).view(rows, 3)
    return Batch(numbers, numbers + 1, torch.rand(rows, 3), numbers % 3, numbers // 3)


@given(st.integers(1, 20), st.integers(1, 25))
def test_micro_batches_are_nearly_equal_and_together_the_batch(rows: int, n: int) -> None:
    whole = batch(rows)
    micro_batches = split(whole, n)
    assert len(micro_batches) == min(n, rows)
    assert torch.equal(torch.cat([micro_batch.tokens for micro_batch in micro_batches]), whole.tokens)
    assert torch.equal(torch.cat([micro_batch.document for micro_batch in micro_batches]), whole.document)
    sizes = [len(micro_batch.tokens) for micro_batch in micro_batches]
    assert max(sizes) - min(sizes) <= 1
    torch.testing.assert_close(sum(total_weight(micro_batch) for micro_batch in micro_batches), total_weight(whole))


def test_moving_keeps_everything() -> None:
    whole = batch(2)
    assert torch.equal(to(whole, torch.device("cpu")).targets, whole.targets)
