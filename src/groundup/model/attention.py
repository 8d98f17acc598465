"""Attention: how a position reads others.

B batch, T queries, S keys, H query heads, G key/value heads, K head width, W value width.

*Which* keys a query may read is not decided here: it is the `attend` argument, an object such as `Causal` or `Packed`
below, or a cache. Every such object has the signature of `Attend`.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from groundup.model.dot_product import additive, by_kernel, has_kernel
from groundup.model.dot_product import dot_product_attention as dot_product_attention
from groundup.model.kernels.blocks import block_count, by_blocks
from groundup.model.norm import make_norm
from groundup.model.position import PositionTerms, terms_at
from groundup.model.settings import GroupedQuery, Latent, ModelConfig


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

    One that has `wants_latents = True` gets latent vectors where they can stand for keys and values, which takes less
    room.

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


class Causal:
    """Each position reads itself and all before it; called as an `Attend`, whatever the `layer`.

    >>> q = k = v = torch.randn(1, 2, 5, 8)
    >>> plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    >>> torch.allclose(Causal.of(5, q.device)(q, k, v), plain, atol=1e-6)
    True
    """

    def __init__(self, mask: Float[Tensor, "1 1 T T"] | None = None) -> None:
        self._mask = mask

    @classmethod
    def of(cls, length: int, device: torch.device) -> "Causal":
        """For `length` positions on `device`: the mask is made once for all layers; a GPU's kernel needs none."""
        return cls() if device.type == "cuda" else cls(causal_mask(length, device))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int = 0, **options: Any) -> Tensor:
        if has_kernel(q, **options):
            return by_kernel(q, k, v, causal=True, **options)
        mask = causal_mask(q.shape[2], q.device) if self._mask is None else self._mask
        return by_blocks(q, k, v, mask, distance_if_asked(q, **options), block_count(q), **options)


class Packed:
    """Each position reads itself and all before it in its own document; called as an `Attend`, whatever the `layer`.

    Args:
        document: any number that differs between the documents of a row.
        mask: made of `document` once for all layers, and not while a layer is compiled, if not given.

    >>> q = k = v = torch.randn(1, 2, 5, 8)
    >>> together = Packed(torch.tensor([[0, 0, 1, 1, 1]]))(q, k, v)
    >>> alone = Causal()(q[:, :, 2:], k[:, :, 2:], v[:, :, 2:])
    >>> torch.allclose(together[:, :, 2:], alone, atol=1e-6)
    True
    """

    def __init__(self, document: Int[Tensor, "B T"], mask: Float[Tensor, "B 1 T T"] | None = None) -> None:
        self.document, self.mask = document, mask if mask is not None else packed_mask(document)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int = 0, **options: Any) -> Tensor:
        return by_blocks(q, k, v, self.mask, distance_if_asked(q, **options), block_count(q), **options)


def causal_mask(length: int, device: torch.device) -> Float[Tensor, "1 1 T T"]:
    return additive(_distance(length, device) >= 0)


def packed_mask(document: Int[Tensor, "B T"]) -> Float[Tensor, "B 1 T T"]:
    if document.ndim != 2:
        raise ValueError(f"document has shape {tuple(document.shape)}; it should be (rows, length)")
    same = document[:, None, :, None] == document[:, None, None, :]
    return additive(same & (_distance(document.shape[1], document.device) >= 0))


def distance_if_asked(
    q: Float[Tensor, "B H T K"], *, window: int | None = None, slopes: Tensor | None = None, **_: Any
) -> Int[Tensor, "1 1 T T"] | None:
    """How far each position is from each; None where neither a window nor slopes want to know."""
    return None if window is None and slopes is None else _distance(q.shape[2], q.device)


def _distance(length: int, device: torch.device) -> Int[Tensor, "1 1 T T"]:
    index = torch.arange(length, device=device)
    return (index[:, None] - index)[None, None]


def _register(attend: type, *names: str) -> None:
    """As a pytree of these tensors, as far as there are such; computing nothing when it is rebuilt of them."""
    pytree.register_pytree_node(
        attend,
        lambda it: ([tensor for name in names if (tensor := getattr(it, name)) is not None], None),
        lambda tensors, _: attend(*tensors),
    )


_register(Causal, "_mask")
_register(Packed, "document", "mask")


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
        q, k, v = (_heads(each, self.d_head) for each in (q, k, v))  # (B, H, T, K), (B, G, T, K)
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
            dropout=self.settings.dropout if self.training else 0.0,
        )
        output: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return output


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2 2024, arXiv:2405.04434, section 2.1, eq. 9–19).

    A token's keys and values are linear in one latent vector c: k = Uc, v = Wc. Each head's keys and values are written
    out, unless `attend.wants_latents`, as a cache does. Then use is made of q·Uc = (Uᵀq)·c and Σ p Wc = W Σ p c: the
    queries are brought to the latent vectors, which serve all heads as their one key and value. Fewer channels are
    cached, more are multiplied. `key` and `value` are then read as matrices: whoever wraps them has to offer a whole
    `weight`.
    L latent width, R rotary width, K + R channels of a key.
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
        """Arguments are those of `GroupedQueryAttention`."""
        terms = terms_at(self.config, x) if terms is None else terms
        attend = Causal() if attend is None else attend
        q = self.query(self.query_latent_norm(self.query_latent(x)))
        q = _heads(q, self.d_head + self.d_rotary)  # (B, H, T, K + R)
        q, q_rotary = q.split((self.d_head, self.d_rotary), dim=-1)
        latent = self.latent_norm(self.latent(x))  # (B, T, L)
        k_rotary = terms.rotate(self.rotary_key(x)[:, None])  # (B, 1, T, R)
        by_latents = getattr(attend, "wants_latents", False)
        if by_latents:
            q = q @ self.key.weight.unflatten(0, (-1, self.d_head))  # (B, H, T, L)
            k, v = torch.cat((latent[:, None], k_rotary), dim=-1), latent[:, None]
        else:
            k = torch.cat((_heads(self.key(latent), self.d_head), k_rotary.expand_as(q_rotary)), dim=-1)
            v = _heads(self.value(latent), self.d_value)
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
        if by_latents:
            read = read @ self.value.weight.unflatten(0, (-1, self.d_value)).transpose(-1, -2)  # (B, H, T, W)
        output: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return output


def _heads(x: Float[Tensor, "B T HK"], width: int) -> Float[Tensor, "B H T K"]:
    heads: Tensor = x.unflatten(-1, (-1, width)).transpose(1, 2)
    return heads


def make_attention(config: ModelConfig, layer: int) -> nn.Module:
    match config.attention:
        case GroupedQuery() as settings:
            return GroupedQueryAttention(config, settings, layer)
        case Latent() as settings:
            return LatentAttention(config, settings, layer)
