"""Attention against loops, and the fused kernel against the plain operations."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from groundup.model.attention import Packed, dot_product_attention
from groundup.model.position import RotaryAngles, rotate

OPTIONS: list[dict[str, object]] = [
    {},
    {"window": 3},
    {"slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
    {"soft_cap": 2.0},
    {"scale": 0.3, "window": 4, "soft_cap": 1.5},
]


def attend_by_loops(q: Tensor, k: Tensor, v: Tensor, document: Tensor, **options: object) -> Tensor:
    """Equation 1 of Vaswani et al. 2017, one query at a time."""
    window, slopes, soft_cap = options.get("window"), options.get("slopes"), options.get("soft_cap")
    scale = options.get("scale") or 1 / math.sqrt(q.shape[-1])
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            g = h * k.shape[1] // q.shape[1]
            for t in range(q.shape[2]):
                keys = [s for s in range(t + 1) if document[b, s] == document[b, t] and (not window or t - s < window)]
                scores = []
                for s in keys:
                    score = scale * torch.dot(q[b, h, t], k[b, g, s])
                    if soft_cap:
                        score = soft_cap * torch.tanh(score / soft_cap)
                    scores.append(score - (slopes[h] * (t - s) if slopes is not None else 0))
                weights = torch.stack(scores).softmax(dim=0)
                out[b, h, t] = sum(w * v[b, g, s] for w, s in zip(weights, keys, strict=True))
    return out


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_is_the_equation(options: dict[str, object], groups: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 4, 9, 6, dtype=torch.float64)
    k = torch.randn(2, groups, 9, 6, dtype=torch.float64)
    v = torch.randn(2, groups, 9, 5, dtype=torch.float64)
    document = torch.tensor([[0] * 4 + [1] * 5, [7] * 9])
    expected = attend_by_loops(q, k, v, document, **options)
    assert_close(Packed(document)(q, k, v, layer=0, **options), expected, atol=1e-12, rtol=0)


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


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    angles = RotaryAngles(10_000.0, 16)

    def score(at_q: int, at_k: int) -> Tensor:
        turned = [rotate(x, angles(x[:, 0], torch.tensor([[at]]))[1]) for x, at in ((q, at_q), (k, at_k))]
        return (turned[0] * turned[1]).sum()

    assert_close(score(3, 1), score(103, 101), atol=1e-4, rtol=0)
    assert abs(score(3, 1) - score(9, 1)) > 1e-3
    assert_close(score(0, 0), (q * k).sum())


def test_the_model_calls_attend_with_every_argument_that_is_pinned(model) -> None:  # type: ignore[no-untyped-def]
    seen = []

    def attend(q, k, v, *, layer, window, slopes, scale, soft_cap, dropout):  # type: ignore[no-untyped-def]
        seen.append((layer, window, slopes, scale, soft_cap, dropout))
        return Packed(torch.zeros(q.shape[0], q.shape[2]).long())(q, k, v, layer=layer)

    tokens = torch.arange(6)[None]
    assert_close(model(tokens, attend=attend), model(tokens))
    assert seen == [(0, None, None, None, None, 0.0), (1, None, None, None, None, 0.0)]


def test_attend_objects_are_pytrees() -> None:
    document = torch.tensor([[0, 0, 1]])
    leaves, spec = torch.utils._pytree.tree_flatten(Packed(document))
    assert len(leaves) == 1
    assert torch.equal(torch.utils._pytree.tree_unflatten(leaves, spec).document, document)
