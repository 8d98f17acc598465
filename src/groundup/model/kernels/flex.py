"""Flex: torch's flex attention, for packed documents on a GPU.

B batch, T time.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention


@dataclass(frozen=True)
class Flex:
    """Packed attention by torch's flex attention (Dong et al. 2024, arXiv:2412.05496), which, compiled for a GPU, skips
    blocks of 128 by 128 scores that no query may read. It knows no dropout."""

    masks: dict[int | None, BlockMask]
    """By window: one for each that a layer has."""

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
