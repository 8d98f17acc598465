"""Dot-product attention against torch's own."""

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from groundup.model.attention import Causal
from groundup.model.dot_product import dot_product_attention
from groundup.model.equation import by_kernel


@pytest.mark.parametrize("groups", [2, 4])
def test_the_causal_kernel_reads_what_the_mask_lets_be_read(groups: int) -> None:
    """Which a GPU takes; here the same function by a CPU's kernel."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, groups, 9, 8), torch.randn(2, groups, 9, 8)
    assert_close(by_kernel(q, k, v, causal=True, scale=0.3), Causal()(q, k, v, scale=0.3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("groups", [2, 4])
def test_plain_operations_agree_with_torchs_kernel(window: int | None, groups: int) -> None:
    """On a GPU the kernel is used; here it is the independent other version."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, groups, 9, 8), torch.randn(2, groups, 9, 8)
    place = torch.arange(9)
    distance = (place[:, None] - place)[None, None]
    visible = distance >= 0
    allowed = visible if window is None else visible & (distance < window)
    kernel = scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=groups != 4)
    assert_close(dot_product_attention(q, k, v, visible, distance, window=window), kernel, atol=1e-5, rtol=0)


MASKS = {
    "truth values": torch.arange(5)[:, None] >= torch.arange(7) - 2,
    "numbers": torch.randn(5, 7, generator=torch.Generator().manual_seed(1)),
    "a row's padding": (torch.arange(7) < torch.tensor([[4], [7]]))[:, None, None],
    "each head's": torch.randn(4, 5, 1, generator=torch.Generator().manual_seed(1)) > 0,
    "some may read nothing": torch.arange(5)[:, None] > torch.arange(7),
    "some may read nothing, in numbers": torch.zeros(2, 1, 5, 7).index_fill(2, torch.tensor([1]), -math.inf),
}


@pytest.mark.parametrize("kind", [None, *MASKS])
def test_a_mask_means_what_it_means_to_torch(kind: str | None) -> None:
    torch.manual_seed(0)
    results = []
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 6)
    mask = MASKS[kind] if kind else None
    for attention in (dot_product_attention, lambda *given: scaled_dot_product_attention(*given, enable_gqa=True)):
        inputs = [each.clone().requires_grad_() for each in (q, k, v)]
        read = attention(*inputs, mask)
        results.append((read, *torch.autograd.grad(read.square().sum(), inputs)))
    assert_close(results[0], results[1], atol=1e-5, rtol=0)
    assert results[0][0].isfinite().all()


def test_a_window_narrows_any_mask() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)
    distance = torch.arange(9)[:, None] - torch.arange(9)
    padding = (torch.arange(9) < torch.tensor([[4], [9]]))[:, None, None]
    for mask in (None, padding, torch.randn(9, 9)):
        shown = torch.zeros(9, 9) if mask is None else mask
        shown = torch.where(shown, 0.0, -math.inf) if shown.dtype == torch.bool else shown
        expected = scaled_dot_product_attention(q, k, v, shown.masked_fill(distance >= 3, -math.inf))
        assert_close(dot_product_attention(q, k, v, mask, distance, window=3), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "error", "answer"),
    [
        (
            {"mask": torch.ones(9, 9, dtype=torch.long)},
            TypeError,
            "mask is of type torch.int64; it should be torch.bool",
        ),
        ({"mask": torch.ones(9, 8).bool()}, ValueError, r"mask has shape \(9, 8\), which cannot be broadcast .* 9, 9"),
        ({"mask": torch.ones(1, 1, 1, 9, 9)}, ValueError, "mask has shape"),
        ({"distance": torch.ones(3, 9).long(), "window": 2}, ValueError, r"distance has shape \(3, 9\)"),
        ({"distance": torch.ones(9, 9).bool()}, TypeError, "distance is of type torch.bool; .* whole numbers"),
        ({"window": 3}, ValueError, "window needs distance"),
        ({"slopes": torch.ones(4)}, ValueError, "slopes needs distance"),
        ({"q": torch.ones(4, 9, 8)}, ValueError, r"q \(4, 9, 8\), .* four dimensions"),
        ({"k": torch.ones(2, 3, 9, 8), "v": torch.ones(2, 3, 9, 8)}, ValueError, "k .2, 3, 9, 8. .* G divides H"),
        ({"v": torch.ones(2, 4, 7, 8)}, ValueError, "v .2, 4, 7, 8. do not fit"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_what_does_not_fit_is_named(change: dict[str, Any], error: type[Exception], answer: str) -> None:
    given = {"q": torch.ones(2, 4, 9, 8), "k": torch.ones(2, 4, 9, 8), "v": torch.ones(2, 4, 9, 8)}
    with pytest.raises(error, match=answer):
        dot_product_attention(**{**given, **change})
