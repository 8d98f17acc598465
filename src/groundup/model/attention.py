"""Attention: how a position reads others.

B batch, T queries, S keys, H query heads, G key/value heads, K head width, W value width.

*Which* keys a query may read is not decided here: it is the `attend` argument, an object such as `Causal` or `Packed`
below, or a cache. Every such object has the signature of `Attend`.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from groundup.model.dot_product import dot_product_attention as dot_product_attention
from groundup.model.dropout import Drop, drop_for
from groundup.model.equation import additive, by_kernel, has_kernel
from groundup.model.kernels.blocks import block_count, by_blocks
from groundup.model.norm import make_norm
from groundup.model.position import PositionTerms, terms_at
from groundup.model.settings import GroupedQuery, ModelConfig


@runtime_checkable
class Attend(Protocol):
    """How queries `q` meet keys `k` and values `v`: any object that can be called so, `Causal` or one of your own.

    Args:
        layer: global number of the layer, for objects that remember keys and values.
        window: how many keys, its own included, a query may look back over; None for all.
        slopes: (H,) ALiBi slopes: a key at distance n is scored n × slope lower.
        scale: factor on the scores; None for 1/√K.
        soft_cap: scores are squeezed into ±soft_cap by tanh.
        dropout: leaves out a share of the attention weights: called with them, (B, H, T, S), and the first key's
            position in its row, or the positions of all keys; None for nothing.

    One that has `wants_latents = True` gets latent vectors where they can stand for keys and values, which takes less
    room. One that has a method `prepared(length, device, windows)` is asked by the model, before its first layer, for
    an object that has made for that many positions what all layers need.

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
        dropout: Drop | None,
    ) -> Float[Tensor, "B H T W"]: ...


@dataclass(frozen=True)
class Pairs:
    """What is known of each query and key before they meet, made once for all layers."""

    distance: Int[Tensor, "#B 1 T S"]
    """Position of the query minus position of the key."""
    masks: dict[int | None, Tensor]
    """By window, None for none: (B, 1, T, S) numbers that are added to the scores."""

    @classmethod
    def of(cls, distance: Int[Tensor, "#B 1 T S"], document: Int[Tensor, "B T"] | None = None) -> "Pairs":
        """Each query reads what is not after it, and of its own document if there are documents."""
        readable = distance >= 0
        if document is not None:
            readable = (document[:, None, :, None] == document[:, None, None, :]) & readable
        return cls(distance, {None: additive(readable)})

    @classmethod
    def within(cls, length: int, device: torch.device, document: Int[Tensor, "B T"] | None = None) -> "Pairs":
        """The pairs of `length` positions with each other."""
        index = torch.arange(length, dtype=torch.int32, device=device)
        return cls.of((index[:, None] - index)[None, None], document)

    def mask(self, window: int | None) -> Float[Tensor, "#B 1 T S"]:
        if window is None or window in self.masks:
            return self.masks[window]
        return self.masks[None].masked_fill(self.distance >= window, float("-inf"))

    def over(self, windows: Collection[int | None]) -> "Pairs":
        """With a mask for each of these windows."""
        return replace(self, masks=self.masks | {window: self.mask(window) for window in windows})


@dataclass(frozen=True)
class Causal:
    """Each position reads itself and all before it; called as an `Attend`, whatever the `layer`.

    >>> q = k = v = torch.randn(1, 2, 5, 8)
    >>> plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    >>> torch.allclose(Causal.of(5, q.device)(q, k, v), plain, atol=1e-6)
    True
    >>> prepared = Causal().prepared(5, q.device, windows={2})  # as a model does before its first layer
    >>> torch.equal(prepared(q, k, v, window=2), Causal()(q, k, v, window=2))
    True
    """

    pairs: Pairs | None = None
    """Made for each layer if not given."""

    @classmethod
    def of(cls, length: int, device: torch.device, windows: Collection[int | None] = (None,)) -> "Causal":
        """For `length` positions on `device` and layers with these `windows`: the masks are made once for all layers; a
        GPU's kernel needs none without a window."""
        if device.type == "cuda" and {*windows} <= {None}:
            return cls()
        return cls(Pairs.within(length, device).over(windows))

    def prepared(self, length: int, device: torch.device, windows: Collection[int | None]) -> "Causal":
        """As `of` makes it for this `length`, `device` and `windows`."""
        return self.of(length, device, windows)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, layer: int = 0, window: int | None = None, **options: Any
    ) -> Tensor:
        if has_kernel(q, window=window, **options):
            return by_kernel(q, k, v, causal=True, **options)
        pairs = Pairs.within(q.shape[2], q.device) if self.pairs is None else self.pairs
        return by_blocks(q, k, v, pairs.mask(window), pairs.distance, block_count(q), window=window, **options)


class Packed:
    """Each position reads itself and all before it in its own document; called as an `Attend`, whatever the `layer`.

    Args:
        document: any number that differs between the documents of a row.
        pairs: made of `document` once for all layers, and not while a layer is compiled, if not given.

    >>> q = k = v = torch.randn(1, 2, 5, 8)
    >>> packed = Packed(torch.tensor([[0, 0, 1, 1, 1]])).prepared(5, q.device, windows={None})
    >>> together = packed(q, k, v)
    >>> alone = Causal()(q[:, :, 2:], k[:, :, 2:], v[:, :, 2:])
    >>> torch.allclose(together[:, :, 2:], alone, atol=1e-6)
    True
    """

    def __init__(self, document: Int[Tensor, "B T"], pairs: Pairs | None = None) -> None:
        if document.ndim != 2:
            raise ValueError(f"document has shape {tuple(document.shape)}; it should be (rows, length)")
        self.document = document
        self.pairs = Pairs.within(document.shape[1], document.device, document) if pairs is None else pairs

    def prepared(self, length: int, device: torch.device, windows: Collection[int | None]) -> "Packed":
        """With a mask for each of the `windows`; `length` and `device` are those of the documents."""
        self.pairs = self.pairs.over(windows)
        return self

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, layer: int = 0, window: int | None = None, **options: Any
    ) -> Tensor:
        pairs = self.pairs
        return by_blocks(q, k, v, pairs.mask(window), pairs.distance, block_count(q), window=window, **options)


# As pytrees of tensors, for which nothing is computed when they are rebuilt.
pytree.register_dataclass(Pairs, field_names=["distance", "masks"])
pytree.register_dataclass(Packed, field_names=["document", "pairs"])
pytree.register_pytree_node(
    Causal, lambda it: ([] if it.pairs is None else [it.pairs], None), lambda pairs, _: Causal(*pairs)
)


class GroupedQueryAttention(nn.Module):
    """Queries, keys and values from one input; each group of query heads shares a key/value head."""

    TP = {"query": "column", "key": "column", "value": "column", "out": "row"}

    def __init__(self, config: ModelConfig, settings: GroupedQuery, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.settings, self.window = config, layer, settings, settings.window_of(layer)
        self.d_head = config.head_width
        self.first_head = 0
        """Number of the first query head that is here, where a tensor-parallel rank holds a part of them."""
        read, write = settings.bias != "none", settings.bias == "all"
        self.query = nn.Linear(config.d_model, config.n_heads * self.d_head, bias=read)
        self.key = nn.Linear(config.d_model, config.kv_heads * self.d_head, bias=read)
        self.value = nn.Linear(config.d_model, config.kv_heads * self.d_head, bias=read)
        self.out = nn.Linear(config.n_heads * self.d_head, config.d_model, bias=write)
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()
        if settings.qk_norm != "none":
            each = settings.qk_norm == "head"
            if not each:
                self.TP = {**self.TP, "query_norm": "all heads", "key_norm": "all heads"}
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
        terms = terms_at(self.config, x) if terms is None else terms
        attend = Causal() if attend is None else attend
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.settings.qk_norm == "full":
            q, k = self.query_norm(q), self.key_norm(k)
        q, k, v = (heads_of(each, self.d_head) for each in (q, k, v))  # (B, H, T, K), (B, G, T, K)
        if self.settings.qk_norm == "head":
            q, k = self.query_norm(q), self.key_norm(k)
        read = attend(
            terms.rotate(q),
            terms.rotate(k),
            v,
            layer=self.layer,
            window=self.window,
            slopes=None if terms.slopes is None else terms.slopes[self.first_head :][: q.shape[1]],
            scale=self.settings.scale,
            soft_cap=self.settings.soft_cap,
            dropout=drop_for(self.settings.dropout, terms.keys, x, self.first_head, q.shape[1])
            if self.training
            else None,
        )
        output: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return output


def heads_of(x: Float[Tensor, "B T HK"], width: int) -> Float[Tensor, "B H T K"]:
    heads: Tensor = x.unflatten(-1, (-1, width)).transpose(1, 2)
    return heads
