"""Equation: dot-product attention as it is computed, of arguments that are known to fit, and what torch has for it.

B batch, T queries, S keys, H query heads, G key/value heads, K head width, W value width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from groundup.model.dropout import Drop


def weighted_values(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S W"],
    mask: Float[Tensor, "..."] | None,
    distance: Int[Tensor, "..."] | None = None,
    *,
    slopes: Float[Tensor, "H"] | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    dropout: Drop | None = None,
    first_key: int = 0,
) -> Float[Tensor, "B H T W"]:
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).

    Args:
        mask: added to the scores (`additive`); each query may read a key.
        distance: position of the query minus position of the key, for slopes.
        slopes, scale, soft_cap, dropout: as of `Attend`.
        first_key: position of the first key, for dropout.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if has_kernel(q, slopes=slopes, soft_cap=soft_cap, dropout=dropout):
        return by_kernel(q, k, v, mask, scale=scale)
    # On a CPU three plain operations take a third of the time of torch's fused kernel at a few hundred positions
    # (docs/numbers.md).
    batch, heads, length, width = q.shape
    groups = k.shape[1]
    shared = (q * scale).reshape(batch, groups, heads // groups * length, width)  # query heads of a group side by side
    scores = (shared @ k.transpose(-1, -2)).reshape(batch, heads, length, -1)  # (B, H, T, S)
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if slopes is not None:
        assert distance is not None, "they come together"
        # In float32 whatever the model's precision: bfloat16 cannot tell 256 from 257.
        scores = scores - slopes[:, None, None] * distance
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(dim=-1).to(v.dtype)
    if dropout is not None:
        weights = dropout(weights, first_key)
    return (weights.reshape(batch, groups, -1, k.shape[2]) @ v).reshape(batch, heads, length, -1)


def has_kernel(
    q: Tensor,
    *,
    window: int | None = None,
    slopes: Tensor | None = None,
    soft_cap: float | None = None,
    dropout: Drop | None = None,
    **_: Any,
) -> bool:
    """Whether torch has one fused kernel for it, which takes less time than plain operations: on a GPU, and it knows
    neither slopes nor a soft cap, nor dropout by place, nor a window that is not in the mask."""
    return q.is_cuda and window is None and slopes is None and soft_cap is None and dropout is None


def by_kernel(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S W"],
    mask: Float[Tensor, "..."] | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Float[Tensor, "B H T W"]:
    """Attention by torch's fused kernels. Of these flash attention takes no mask, but `causal`, where each position
    reads itself and all before it, and skips what lies above the diagonal."""
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=None if mask is None else mask.to(q.dtype),
        is_causal=causal,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def additive(readable: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """0 where a query may read a key, −∞ where not: both are exact in bfloat16, and take the least memory. Added in one
    pass with the softmax; a mask of truth values takes twice the time, compiled (docs/log.md)."""
    return torch.zeros_like(readable, dtype=torch.bfloat16).masked_fill(~readable, float("-inf"))
