"""Attention in blocks against attention at once."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from groundup.model.attention import Packed
from groundup.model.kernels.blocks import by_blocks

OPTIONS: list[dict[str, object]] = [
    {},
    {"window": 3},
    {"slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
    {"soft_cap": 2.0},
    {"scale": 0.3, "window": 4, "soft_cap": 1.5},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("n_blocks", [2, 3, 9])
def test_queries_in_blocks_read_what_they_read_together(options: dict[str, Any], n_blocks: int) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 9, 6, dtype=torch.float64), torch.randn(2, 2, 9, 6, dtype=torch.float64)
    packed = Packed(torch.tensor([[0] * 4 + [1] * 5, [7] * 9]))
    mask = packed.pairs.mask(options.get("window"))
    results = []
    for blocks in (1, n_blocks):
        inputs = [each.clone().requires_grad_() for each in (q, k, k.flip(-1))]
        read = by_blocks(*inputs, mask, packed.pairs.distance, blocks, **options)
        results.append((read, torch.autograd.grad(read.square().sum(), inputs)))
    assert_close(results[0], results[1], atol=1e-12, rtol=1e-9)
