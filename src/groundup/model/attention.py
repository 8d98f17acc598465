"""Attention: how a position reads others.

B batch, T queries, S keys, H query heads, G key/value heads, K head width, W value width.

*Which* keys a query may read is not decided here: it is the `attend` argument, an object such as `Causal` or `Packed`
below, or a cache. Every such object has the signature of `Attend`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from groundup.model.position import Rotation, rotate
from groundup.model.settings import ModelConfig


@runtime_checkable
class Attend(Protocol):
    """How queries meet keys and values.

    Args:
        layer: global number of the layer, for objects that remember keys and values.
        window: how many keys, its own included, a query may look back over; None for all.
        slopes: (H,) ALiBi slopes: a key at distance n is scored n × slope lower.
        scale: factor on the scores; None for 1/√K.
        soft_cap: scores are squeezed into ±soft_cap by tanh.
        dropout: share of attention weights set to zero.
    """

    def __call__(
        self,
        q: Float[Tensor, "B H T K"],
        k: Float[Tensor, "B G T K"],
        v: Float[Tensor, "B G T W"],
        *,
        layer: int,
        window: int | None,
        slopes: Float[Tensor, "H"] | None,
        scale: float | None,
        soft_cap: float | None,
        dropout: float,
    ) -> Float[Tensor, "B H T W"]: ...


def dot_product_attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S W"],
    visible: Bool[Tensor, "#B 1 T S"],
    distance: Int[Tensor, "#B 1 T S"],
    *,
    window: int | None = None,
    slopes: Float[Tensor, "H"] | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T W"]:
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).

    Args:
        visible: which keys each query may read; every query must see one.
        distance: position of the query minus position of the key.
    """
    if window is not None:
        visible = visible & (distance < window)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if q.is_cuda and soft_cap is None and slopes is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, dropout_p=dropout, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    # On a CPU three plain operations take a third of the time of torch's fused kernel at a few hundred positions.
    batch, heads, length, width = q.shape
    groups = k.shape[1]
    shared = (q * scale).reshape(batch, groups, heads // groups * length, width)  # query heads of a group side by side
    scores = (shared @ k.transpose(-1, -2)).reshape(batch, heads, length, -1)  # (B, H, T, S)
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if slopes is not None:
        scores = scores - slopes[:, None, None] * distance
    forbidden = torch.zeros_like(visible, dtype=q.dtype).masked_fill(~visible, float("-inf"))
    weights = F.dropout((scores + forbidden).softmax(dim=-1), dropout)
    return (weights.reshape(batch, groups, -1, k.shape[2]) @ v).reshape(batch, heads, length, -1)


@dataclass(frozen=True)
class Causal:
    """Each position reads itself and all before it."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int, **options: object) -> Tensor:
        distance = _distance(q.shape[2], q.device)
        return dot_product_attention(q, k, v, distance >= 0, distance, **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Packed:
    """Each position reads itself and all before it in its own document."""

    document: Int[Tensor, "B T"]
    """Any number that differs between the documents of a row."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int, **options: object) -> Tensor:
        return dot_product_attention(q, k, v, self._visible, self._distance, **options)  # type: ignore[arg-type]

    @cached_property
    def _distance(self) -> Int[Tensor, "1 1 T T"]:
        return _distance(self.document.shape[1], self.document.device)

    @cached_property
    def _visible(self) -> Bool[Tensor, "B 1 T T"]:
        same = self.document[:, None, :, None] == self.document[:, None, None, :]
        return same & (self._distance >= 0)


def _distance(length: int, device: torch.device) -> Int[Tensor, "1 1 T T"]:
    place = torch.arange(length, device=device)
    return (place[:, None] - place)[None, None]


pytree.register_dataclass(Causal, field_names=[])
pytree.register_dataclass(Packed, field_names=["document"])


class GroupedQueryAttention(nn.Module):
    """Queries, keys and values from one input; each group of query heads shares a key/value head."""

    TP = {"query": "column", "key": "column", "value": "column", "out": "row"}

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.d_head, self.dropout = layer, config.head_width, config.attention.dropout
        bias = config.attention.bias
        self.query = nn.Linear(config.d_model, config.n_heads * self.d_head, bias=bias)
        self.key = nn.Linear(config.d_model, config.kv_heads * self.d_head, bias=bias)
        self.value = nn.Linear(config.d_model, config.kv_heads * self.d_head, bias=bias)
        self.out = nn.Linear(config.n_heads * self.d_head, config.d_model, bias=bias)
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()
        if config.attention.qk_norm:
            self.query_norm, self.key_norm = (nn.RMSNorm(self.d_head, eps=config.norm.epsilon) for _ in range(2))

    def forward(self, x: Float[Tensor, "B T D"], rotation: Rotation | None, attend: Attend) -> Float[Tensor, "B T D"]:
        q = self.query_norm(self._heads(self.query(x)))  # (B, H, T, K)
        k = self.key_norm(self._heads(self.key(x)))  # (B, G, T, K)
        v = self._heads(self.value(x))
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        dropout = self.dropout if self.training else 0.0
        read = attend(q, k, v, layer=self.layer, window=None, slopes=None, scale=None, soft_cap=None, dropout=dropout)
        output: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return output

    def _heads(self, x: Float[Tensor, "B T NK"]) -> Float[Tensor, "B N T K"]:
        heads: Tensor = x.unflatten(-1, (-1, self.d_head)).transpose(1, 2)
        return heads
