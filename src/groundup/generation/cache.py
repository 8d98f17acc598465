"""Cache: keys and values of the tokens read so far.

B rows, L layers, G key/value heads, S room in tokens, K key width, W value width, T new tokens at most, N in all.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils import _pytree as pytree

from groundup.model.attention import Pairs
from groundup.model.equation import weighted_values
from groundup.model.settings import ModelConfig


@dataclass
class ContiguousCache:
    """One stretch of memory for each row: new keys and values are written behind the old."""

    keys: Float[Tensor, "B L G S K"]
    values: Float[Tensor, "B L G S W"]
    """W = 0 where the values are the keys' first channels (latent attention)."""

    @classmethod
    def empty(cls, config: ModelConfig, rows: int, device: torch.device, dtype: torch.dtype) -> "ContiguousCache":
        heads, *widths = config.cached
        shape = (rows, config.n_layers, heads, config.context_length)
        keys, values = (torch.zeros(*shape, width, device=device, dtype=dtype) for width in widths)
        return cls(keys, values)

    def attend(self, held: Sequence[int], new: Sequence[int]) -> "CacheAttend":
        """The `attend` of the next forward pass.

        Args:
            held: tokens of each row that are in the cache.
            new: tokens of each row that are read now; behind them a row is filled up to the longest.
        """
        device, longest = self.keys.device, max(new)
        end = max(before + count for before, count in zip(held, new, strict=True))
        begin = torch.tensor(held, device=device)
        alike = len(set(held)) == len(set(new)) == 1
        index = [] if alike else [(row, i) for row, count in enumerate(new) for i in range(count)]
        query = begin[:, None] + torch.arange(longest, device=device)  # (B, T)
        distance = query[:, None, :, None] - torch.arange(end, device=device)  # (B, 1, T, S)
        row, number = torch.tensor(index, dtype=torch.long, device=device).view(-1, 2).T
        return CacheAttend(
            self.keys[..., :end, :],
            self.values[..., :end, :],
            row,
            number,
            query[row, number],
            Pairs.of(distance),
        )


@dataclass
class CacheAttend:
    """Writes the keys and values of new tokens into a cache, and lets each read its row up to itself."""

    keys: Float[Tensor, "B L G S K"]
    values: Float[Tensor, "B L G S W"]
    row: Int[Tensor, "N"]
    """Row of each new token. Empty where all rows have equally many old and new tokens: they come last there."""
    number: Int[Tensor, "N"]
    """Number of each new token among the new ones of its row."""
    position: Int[Tensor, "N"]
    """Position of each new token in its row."""
    pairs: Pairs
    wants_latents: ClassVar[bool] = True

    def prepared(self, length: int, device: torch.device, windows: Collection[int | None]) -> "CacheAttend":
        return replace(self, pairs=self.pairs.over(windows))

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, layer: int, window: int | None = None, **options: Any
    ) -> Tensor:
        keys = self._write(self.keys[:, layer], k)
        values = self._write(self.values[:, layer], v) if self.values.shape[-1] else keys[..., : v.shape[-1]]
        return weighted_values(q, keys, values, self.pairs.mask(window), self.pairs.distance, **options)

    def _write(self, held: Float[Tensor, "B G S K"], new: Float[Tensor, "B G T K"]) -> Float[Tensor, "B G S K"]:
        if len(self.row):
            held[self.row, :, self.position] = new[self.row, :, self.number]
        else:
            held[:, :, held.shape[2] - new.shape[2] :] = new
        return held


pytree.register_dataclass(ContiguousCache, field_names=["keys", "values"])
pytree.register_dataclass(CacheAttend, field_names=["keys", "values", "row", "number", "position", "pairs"])
