"""Dot-product attention for an `attend` of one's own: masks as torch has them, arguments that do not fit named.

B batch, T queries, S keys, H query heads, G key/value heads, K head width, W value width.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from groundup.model.dropout import Drop
from groundup.model.equation import additive, weighted_values


def dot_product_attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S W"],
    mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
    distance: Int[Tensor, "..."] | None = None,
    *,
    window: int | None = None,
    slopes: Float[Tensor, "H"] | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    dropout: Drop | None = None,
) -> Float[Tensor, "B H T W"]:
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, eq. 1); of a head, the mask means what it
    means to torch's `scaled_dot_product_attention`.

    Args:
        mask: True for the keys that a query may read, or numbers that are added to the scores; of a shape that can be
            broadcast to (B, H, T, S). None: every query reads all keys. A query that may read none gets zeros.
        distance: position of the query minus position of the key, likewise; for a window or slopes.
        window, slopes, scale, soft_cap, dropout: as of `Attend`.

    Raises:
        ValueError: shapes that do not fit, or a window or slopes without `distance`.
        TypeError: a mask of whole numbers.

    >>> q = k = v = torch.randn(1, 2, 5, 8)
    >>> causal = torch.ones(5, 5, dtype=torch.bool).tril()
    >>> read = dot_product_attention(q, k, v, causal)
    >>> torch.allclose(read, torch.nn.functional.scaled_dot_product_attention(q, k, v, causal), atol=1e-6)
    True
    """
    _refuse_unfit(q, k, v, mask, distance)
    for name, given in (("window", window), ("slopes", slopes)):
        if given is not None and distance is None:
            raise ValueError(f"{name} needs distance: each query's position minus each key's, such as a tensor (T, S)")
    if mask is not None and mask.dtype == torch.bool:
        mask = additive(mask)
    if window is not None and distance is not None:
        near = additive(distance < window)
        mask = near if mask is None else mask + near
    options: dict[str, Any] = {"slopes": slopes, "scale": scale, "soft_cap": soft_cap, "dropout": dropout}
    if mask is None:
        return weighted_values(q, k, v, None, distance, **options)
    lost = (mask == -math.inf).all(dim=-1, keepdim=True)  # the softmax of nothing but −∞ is no number
    return weighted_values(q, k, v, mask.masked_fill(lost, 0.0), distance, **options).masked_fill(lost, 0.0)


def _refuse_unfit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, distance: Tensor | None) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"{shapes}: each should have four dimensions, (rows, heads, length, width)")
    if (q.shape[0], q.shape[3], k.shape[:3]) != (k.shape[0], k.shape[3], v.shape[:3]) or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"{shapes} do not fit: they should be (B, H, T, K), (B, G, S, K) and (B, G, S, W), where G divides H"
        )
    scores = (*q.shape[:3], k.shape[2])
    for name, given in (("mask", mask), ("distance", distance)):
        if given is not None and not _broadcasts(given.shape, scores):
            raise ValueError(
                f"{name} has shape {tuple(given.shape)}, which cannot be broadcast to the scores' {scores}"
            )
    if distance is not None and (distance.dtype == torch.bool or distance.is_floating_point()):
        raise TypeError(f"distance is of type {distance.dtype}; it should be of whole numbers, such as torch.int64")
    if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(
            f"mask is of type {mask.dtype}; it should be torch.bool, True for the keys that a query may read, or a "
            "floating-point type, whose numbers are added to the scores"
        )


def _broadcasts(shape: torch.Size, to: tuple[int, ...]) -> bool:
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(size in (1, wanted) for size, wanted in pairs)
