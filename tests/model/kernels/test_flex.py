"""Flex attention against the plain one."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close
from torch.utils import _pytree as pytree

from groundup.model.attention import Packed
from groundup.model.kernels.flex import Flex

OPTIONS: list[dict[str, object]] = [
    {},
    {"window": 3},
    {"slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
    {"soft_cap": 2.0},
    {"scale": 0.3, "window": 4, "soft_cap": 1.5},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_agrees(options: dict[str, Any], groups: int) -> None:
    """What runs compiled on a GPU, here as torch writes it out."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, groups, 9, 8), torch.randn(2, groups, 9, 8)
    document = torch.tensor([[0] * 4 + [1] * 5, [7] * 9])
    flex = Flex(document).prepared(9, document.device, {options.get("window")})
    expected = Packed(document)(q, k, v, layer=0, **options)
    assert_close(flex(q, k, v, layer=0, **options), expected, atol=1e-5, rtol=0)


def test_it_is_a_pytree_of_tensors() -> None:
    document = torch.tensor([[0] * 4 + [1] * 5, [7] * 9])
    flex = Flex(document).prepared(9, document.device, {None, 3})
    leaves, spec = pytree.tree_flatten(flex)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    rebuilt = pytree.tree_unflatten(leaves, spec)
    again, _ = pytree.tree_flatten(rebuilt)
    assert all(one is other for one, other in zip(leaves, again, strict=True)), "nothing is computed"
    for window, mask in flex.masks.items():
        assert torch.equal(rebuilt.masks[window].to_dense(), mask.to_dense())
        assert rebuilt.masks[window].mask_mod(0, 0, torch.tensor(5), torch.tensor(3)).item() is False
