"""Cache: keys and values of the tokens read so far, as an `attend` object.

B rows, L layers, G key/value heads, S room in tokens, K key width, W value width, T new tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from groundup.model.dot_product import additive, weighted_values
from groundup.model.settings import ModelConfig


@dataclass
class ContiguousCache:
    """One stretch of memory for each row: new keys and values are written behind the old, queries read them all."""

    keys: Float[Tensor, "B L G S K"]
    values: Float[Tensor, "B L G S W"]
    """W = 0 where the values are the keys' first channels (latent attention)."""
    wants_latents: ClassVar[bool] = True
    length: int = 0
    """Tokens held. The caller moves it on after each forward pass, when every layer has written."""

    @classmethod
    def empty(cls, config: ModelConfig, rows: int, device: torch.device, dtype: torch.dtype) -> "ContiguousCache":
        heads, *widths = config.cached
        shape = (rows, config.n_layers, heads, config.context_length)
        keys, values = (torch.zeros(*shape, width, device=device, dtype=dtype) for width in widths)
        return cls(keys, values)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int, **options: object) -> Tensor:
        end = self.length + k.shape[2]
        self.keys[:, layer, :, self.length : end] = k
        keys = self.keys[:, layer, :, :end]
        if self.values.shape[-1]:
            self.values[:, layer, :, self.length : end] = v
            values = self.values[:, layer, :, :end]
        else:
            values = keys[..., : v.shape[-1]]
        index = torch.arange(end, device=q.device)
        distance = (index[self.length :, None] - index)[None, None]  # (1, 1, T, S)
        return weighted_values(q, keys, values, additive(distance >= 0), distance, **options)  # type: ignore[arg-type]


def _flatten(cache: ContiguousCache) -> tuple[list[Tensor], int]:
    return [cache.keys, cache.values], cache.length


def _unflatten(tensors: Iterable[Tensor], length: int) -> ContiguousCache:
    keys, values = tensors
    return ContiguousCache(keys, values, length)


pytree.register_pytree_node(ContiguousCache, _flatten, _unflatten)
