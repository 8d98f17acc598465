"""Attention: how a position reads others.

B batch, T queries, S keys, H query heads, G key/value heads, K head width, W value width.

*Which* keys a query may read is not decided here: it is the `attend` argument, an object such as `Causal` or `Packed`
below, or a cache. Every such object has the signature of `Attend`.
"""

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils import _pytree as pytree

from groundup.model.norm import make_norm
from groundup.model.position import PositionTerms, terms_from_zero
from groundup.model.settings import GroupedQuery, Latent, ModelConfig

BLOCK, MOST_BLOCKS = 128, 2
"""Queries that are taken together on a CPU, at least; and into how many blocks they are cut at most."""


@runtime_checkable
class Attend(Protocol):
    """How queries `q` meet keys `k` and values `v`: any object that can be called so, `Causal` or one of your own.

    Args:
        layer: global number of the layer, for objects that remember keys and values.
        window: how many keys, its own included, a query may look back over; None for all.
        slopes: (H,) ALiBi slopes: a key at distance n is scored n × slope lower.
        scale: factor on the scores; None for 1/√K.
        soft_cap: scores are squeezed into ±soft_cap by tanh.
        dropout: share of attention weights set to zero.

    >>> from groundup import ModelConfig, Transformer
    >>> def itself(q, k, v, **options):
    ...     return v  # each query reads its own position alone
    >>> model = Transformer(ModelConfig(vocab_size=8, d_model=16, n_layers=1)).eval()
    >>> first = model(torch.tensor([[1, 2, 3]]), attend=itself)[:, 2]
    >>> torch.allclose(first, model(torch.tensor([[7, 7, 3]]), attend=itself)[:, 2])
    True
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
    mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
    distance: Int[Tensor, "..."] | None = None,
    *,
    window: int | None = None,
    slopes: Float[Tensor, "H"] | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    dropout: float = 0.0,
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
    >>> torch.allclose(read, F.scaled_dot_product_attention(q, k, v, causal), atol=1e-6)
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


def weighted_values(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S W"],
    mask: Float[Tensor, "..."] | None,
    distance: Int[Tensor, "..."] | None,
    *,
    window: int | None = None,
    slopes: Float[Tensor, "H"] | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T W"]:
    """`dot_product_attention` of arguments that are known to fit.

    Args:
        mask: added to the scores (`additive`); each query may read a key.
        distance: as there.
    """
    if window is not None:
        assert mask is not None and distance is not None, "they come together"
        mask = mask.masked_fill(distance >= window, float("-inf"))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if q.is_cuda and soft_cap is None and slopes is None:  # which the kernel does not know
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if mask is None else mask.to(q.dtype),
            dropout_p=dropout,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
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
    weights = F.dropout(scores.softmax(dim=-1).to(v.dtype), dropout)
    return (weights.reshape(batch, groups, -1, k.shape[2]) @ v).reshape(batch, heads, length, -1)


def additive(readable: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """0 where a query may read a key, −∞ where not: both are exact in bfloat16, and take the least memory. Added in one
    pass with the softmax; a mask of truth values takes twice the time, compiled (docs/log.md)."""
    return torch.zeros_like(readable, dtype=torch.bfloat16).masked_fill(~readable, float("-inf"))


@dataclass(frozen=True)
class Causal:
    """Each position reads itself and all before it; called as an `Attend`, whatever the `layer`.

    >>> q = k = v = torch.randn(1, 2, 5, 8)
    >>> torch.allclose(Causal()(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True), atol=1e-6)
    True
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int = 0, **options: Any) -> Tensor:
        distance = _distance(q.shape[2], q.device)
        return by_blocks(q, k, v, additive(distance >= 0), distance, _blocks(q), **options)


@dataclass(frozen=True)
class Packed:
    """Each position reads itself and all before it in its own document; called as an `Attend`, whatever the `layer`.

    >>> q = k = v = torch.randn(1, 2, 5, 8)
    >>> together = Packed(torch.tensor([[0, 0, 1, 1, 1]]))(q, k, v)
    >>> alone = Causal()(q[:, :, 2:], k[:, :, 2:], v[:, :, 2:])
    >>> torch.allclose(together[:, :, 2:], alone, atol=1e-6)
    True
    """

    document: Int[Tensor, "B T"]
    """Any number that differs between the documents of a row."""
    mask: Float[Tensor, "B 1 T T"] = field(init=False, repr=False, compare=False)
    """Found once for all layers, and not while a layer is compiled."""

    def __post_init__(self) -> None:
        if self.document.ndim != 2:
            raise ValueError(f"document has shape {tuple(self.document.shape)}; it should be (rows, length)")
        same = self.document[:, None, :, None] == self.document[:, None, None, :]
        causal = _distance(self.document.shape[1], self.document.device) >= 0
        object.__setattr__(self, "mask", additive(same & causal))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int = 0, **options: Any) -> Tensor:
        distance = _distance(q.shape[2], q.device)
        return by_blocks(q, k, v, self.mask, distance, _blocks(q), **options)


@dataclass(frozen=True)
class Flex:
    """As `Packed`, by torch's flex attention (Dong et al. 2024, arXiv:2412.05496), which, compiled for a GPU, skips
    blocks of 128 by 128 scores that no query may read. It knows no dropout."""

    masks: dict[int | None, BlockMask]
    """Of each window that a layer has."""

    @classmethod
    def of(cls, document: Int[Tensor, "B T"], windows: Collection[int | None]) -> "Flex":
        """
        Args:
            document: any number that differs between the documents of a row.
        """
        (rows, length), device = document.shape, document.device

        def mask_of(window: int) -> BlockMask:
            return create_block_mask(
                lambda row, head, query, key: (
                    (query >= key) & (query - key < window) & (document[row, query] == document[row, key])
                ),
                rows,
                None,
                length,
                length,
                device=device,
            )

        return cls({window: mask_of(length if window is None else window) for window in windows})

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        layer: int = 0,
        window: int | None = None,
        slopes: Tensor | None = None,
        scale: float | None = None,
        soft_cap: float | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        assert dropout == 0, "it has no dropout"

        read: Tensor = flex_attention(
            q,
            k,
            v,
            score_mod=lambda score, row, head, query, key: (
                (score if soft_cap is None else soft_cap * torch.tanh(score / soft_cap))
                - (0.0 if slopes is None else slopes[head] * (query - key))
            ),
            block_mask=self.masks[window],
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return read


def by_blocks(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G T K"],
    v: Float[Tensor, "B G T W"],
    mask: Float[Tensor, "#B 1 T T"],
    distance: Int[Tensor, "1 1 T T"],
    n_blocks: int,
    *,
    window: int | None = None,
    **options: Any,
) -> Float[Tensor, "B H T W"]:
    """`dot_product_attention`, the queries in `n_blocks` blocks, each of which meets only the keys that its queries may
    read: of the square of scores the upper triangle, and what lies behind the window, is mostly not computed.
    """
    queries, keys, values = (each.tensor_split(n_blocks, dim=2) for each in (q, k, v))
    edges = [0, *itertools.accumulate(block.shape[2] for block in queries)]
    read = []
    for number, block in enumerate(queries):
        begin, end = edges[number], edges[number + 1]
        oldest = 0 if window is None else max(0, begin - window + 1)
        first = max(i for i in range(number + 1) if edges[i] <= oldest)
        square = (..., slice(begin, end), slice(edges[first], end))
        read.append(
            weighted_values(
                block,
                torch.cat(
                    keys[first : number + 1], dim=2
                ),  # the gradient of a cut is a view, that of a slice is padded
                torch.cat(values[first : number + 1], dim=2),
                mask[square],
                distance[square],
                window=window,
                **options,
            )
        )
    return torch.cat(read, dim=2)


def _blocks(q: Float[Tensor, "B H T K"]) -> int:
    """In how many blocks the queries are taken: a GPU's kernel skips the upper triangle by itself."""
    return 1 if q.is_cuda else max(1, min(MOST_BLOCKS, q.shape[2] // BLOCK))


def _distance(length: int, device: torch.device) -> Int[Tensor, "1 1 T T"]:
    index = torch.arange(length, device=device)
    return (index[:, None] - index)[None, None]


pytree.register_dataclass(Causal, field_names=[])
pytree.register_dataclass(Packed, field_names=["document"])


class GroupedQueryAttention(nn.Module):
    """Queries, keys and values from one input; each group of query heads shares a key/value head."""

    TP = {"query": "column", "key": "column", "value": "column", "out": "row"}

    def __init__(self, config: ModelConfig, settings: GroupedQuery, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.settings, self.window = config, layer, settings, settings.window_of(layer)
        self.d_head = config.head_width
        read, write = settings.bias != "none", settings.bias == "all"
        self.query = nn.Linear(config.d_model, config.n_heads * self.d_head, bias=read)
        self.key = nn.Linear(config.d_model, config.kv_heads * self.d_head, bias=read)
        self.value = nn.Linear(config.d_model, config.kv_heads * self.d_head, bias=read)
        self.out = nn.Linear(config.n_heads * self.d_head, config.d_model, bias=write)
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()
        if settings.qk_norm != "none":
            each = settings.qk_norm == "head"
            self.query_norm = make_norm(config.norm, self.d_head if each else self.query.out_features)
            self.key_norm = make_norm(config.norm, self.d_head if each else self.key.out_features)

    def forward(
        self, x: Float[Tensor, "B T D"], terms: PositionTerms | None = None, attend: Attend | None = None
    ) -> Float[Tensor, "B T D"]:
        """
        Args:
            terms: what the model's position left for attention; of positions 0..T−1 if not given.
            attend: which keys each query may read; all before it if not given.
        """
        terms = terms_from_zero(self.config, x) if terms is None else terms
        attend = Causal() if attend is None else attend
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.settings.qk_norm == "full":
            q, k = self.query_norm(q), self.key_norm(k)
        q, k, v = (_heads(each, self.d_head) for each in (q, k, v))  # (B, H, T, K), (B, G, T, K)
        if self.settings.qk_norm == "head":
            q, k = self.query_norm(q), self.key_norm(k)
        read = attend(
            terms.rotate(q),
            terms.rotate(k),
            v,
            layer=self.layer,
            window=self.window,
            slopes=terms.slopes,
            scale=self.settings.scale,
            soft_cap=self.settings.soft_cap,
            dropout=self.settings.dropout if self.training else 0.0,
        )
        output: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return output


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2 2024, arXiv:2405.04434, section 2.1, eq. 9–19).

    A token's keys and values are linear in one latent vector c: k = Uc, v = Wc. In training each head's keys and
    values are written out. Otherwise use is made of q·Uc = (Uᵀq)·c and Σ p Wc = W Σ p c: the queries are brought to
    the latent vectors, which then serve all heads as their one key and value. Fewer channels are cached, more are
    multiplied. `key` and `value` are then read as matrices: whoever wraps them has to offer a `weight` that is whole.
    L latent width, R rotary width, N = K + R channels of a key.
    """

    TP = {"query": "column", "key": "column", "value": "column", "out": "row"}

    def __init__(self, config: ModelConfig, settings: Latent, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.dropout, n_heads = config, layer, settings.dropout, config.n_heads
        self.d_head, self.d_rotary = config.head_width, settings.d_rotary
        self.d_value = settings.d_value or self.d_head
        self.scale = (self.d_head + self.d_rotary) ** -0.5
        self.query_latent: nn.Module = nn.Identity()
        self.query_latent_norm: nn.Module = nn.Identity()
        if settings.d_query_latent is not None:
            self.query_latent = nn.Linear(config.d_model, settings.d_query_latent, bias=False)
            self.query_latent_norm = make_norm(config.norm, settings.d_query_latent)
        width = settings.d_query_latent or config.d_model
        self.query = nn.Linear(width, n_heads * (self.d_head + self.d_rotary), bias=False)
        self.latent = nn.Linear(config.d_model, settings.d_latent, bias=False)
        self.latent_norm = make_norm(config.norm, settings.d_latent)
        self.rotary_key = nn.Linear(config.d_model, self.d_rotary, bias=False)
        self.key = nn.Linear(settings.d_latent, n_heads * self.d_head, bias=False)
        self.value = nn.Linear(settings.d_latent, n_heads * self.d_value, bias=False)
        self.out = nn.Linear(n_heads * self.d_value, config.d_model, bias=False)

    def forward(
        self, x: Float[Tensor, "B T D"], terms: PositionTerms | None = None, attend: Attend | None = None
    ) -> Float[Tensor, "B T D"]:
        """As of `GroupedQueryAttention`."""
        terms = terms_from_zero(self.config, x) if terms is None else terms
        attend = Causal() if attend is None else attend
        q = _heads(
            self.query(self.query_latent_norm(self.query_latent(x))), self.d_head + self.d_rotary
        )  # (B, H, T, N)
        q, q_rotary = q.split((self.d_head, self.d_rotary), dim=-1)
        latent = self.latent_norm(self.latent(x))  # (B, T, L)
        k_rotary = terms.rotate(self.rotary_key(x)[:, None])  # (B, 1, T, R)
        if self.training:
            k = torch.cat((_heads(self.key(latent), self.d_head), k_rotary.expand_as(q_rotary)), dim=-1)
            v = _heads(self.value(latent), self.d_value)
        else:
            q = q @ self.key.weight.unflatten(0, (-1, self.d_head))  # (B, H, T, L)
            k, v = torch.cat((latent[:, None], k_rotary), dim=-1), latent[:, None]
        read = attend(
            torch.cat((q, terms.rotate(q_rotary)), dim=-1),
            k,
            v,
            layer=self.layer,
            window=None,
            slopes=None,
            scale=self.scale,
            soft_cap=None,
            dropout=self.dropout if self.training else 0.0,
        )
        if not self.training:
            read = read @ self.value.weight.unflatten(0, (-1, self.d_value)).transpose(-1, -2)  # (B, H, T, W)
        output: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return output


def _heads(x: Float[Tensor, "B T NK"], width: int) -> Float[Tensor, "B N T K"]:
    heads: Tensor = x.unflatten(-1, (-1, width)).transpose(1, 2)
    return heads


def make_attention(config: ModelConfig, layer: int) -> nn.Module:
    match config.attention:
        case GroupedQuery() as settings:
            return GroupedQueryAttention(config, settings, layer)
        case Latent() as settings:
            return LatentAttention(config, settings, layer)
