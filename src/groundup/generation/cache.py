"""Cache: keys and values of the tokens read so far, as an `attend` object.

B rows, L layers, G key/value heads, S room in tokens, K head width, T new tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from groundup.model.attention import dot_product_attention
from groundup.model.settings import ModelConfig


@dataclass
class ContiguousCache:
    """One stretch of memory for each row: new keys and values are written behind the old, queries read them all."""

    keys: Float[Tensor, "B L G S K"]
    values: Float[Tensor, "B L G S K"]
    length: int = 0
    """Tokens held. The caller moves it on after each forward pass, when every layer has written."""

    @classmethod
    def empty(cls, config: ModelConfig, rows: int, device: torch.device, dtype: torch.dtype) -> "ContiguousCache":
        shape = (rows, config.n_layers, config.kv_heads, config.context_length, config.head_width)
        return cls(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int, **options: object) -> Tensor:
        end = self.length + k.shape[2]
        self.keys[:, layer, :, self.length : end] = k
        self.values[:, layer, :, self.length : end] = v
        place = torch.arange(end, device=q.device)
        distance = (place[self.length :, None] - place)[None, None]  # (1, 1, T, S)
        return dot_product_attention(
            q,
            self.keys[:, layer, :, :end],
            self.values[:, layer, :, :end],
            distance >= 0,
            distance,
            **options,  # type: ignore[arg-type]
        )


def _flatten(cache: ContiguousCache) -> tuple[list[Tensor], int]:
    return [cache.keys, cache.values], cache.length


def _unflatten(tensors: Iterable[Tensor], length: int) -> ContiguousCache:
    keys, values = tensors
    return ContiguousCache(keys, values, length)


pytree.register_pytree_node(ContiguousCache, _flatten, _unflatten)
