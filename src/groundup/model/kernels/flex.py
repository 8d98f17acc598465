"""Flex: torch's flex attention, for packed documents on a GPU.

B batch, T time.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils import _pytree as pytree

from groundup.model.dropout import Drop

TENSORS = [
    f"{full}{side}_{what}" for side in ("kv", "q") for full in ("", "full_") for what in ("num_blocks", "indices")
]
"""Tensors of a `BlockMask`: which blocks of scores are computed, and which of them without a mask inside."""


class Flex:
    """Packed attention by torch's flex attention (Dong et al. 2024, arXiv:2412.05496), which, compiled for a GPU, skips
    blocks of 128 by 128 scores that no query may read. It knows no dropout.

    Args:
        document: any number that differs between the documents of a row.
        masks: by window; made when a model asks for what all its layers need.
    """

    def __init__(self, document: Int[Tensor, "B T"], masks: dict[int | None, BlockMask] | None = None) -> None:
        self.document, self.masks = document, masks or {}

    def prepared(self, length: int, device: torch.device, windows: Collection[int | None]) -> "Flex":
        rows = len(self.document)
        for window in {*windows} - self.masks.keys():
            readable = _readable(self.document, window)
            self.masks[window] = create_block_mask(readable, rows, None, length, length, device=device)
        return self

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
        dropout: Drop | None = None,
    ) -> Tensor:
        assert dropout is None, "it has no dropout"
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


def _readable(document: Int[Tensor, "B T"], window: int | None) -> Callable[..., Tensor]:
    """Whether a query may read a key, as flex attention asks for single scores."""
    reach = document.shape[1] if window is None else window
    return lambda row, head, query, key: (
        (query >= key) & (query - key < reach) & (document[row, query] == document[row, key])
    )


def _flatten(flex: Flex) -> tuple[list[Any], Any]:
    masks = flex.masks.values()
    shapes = [(window, mask.seq_lengths, mask.BLOCK_SIZE) for window, mask in flex.masks.items()]
    return [flex.document, *({name: getattr(mask, name) for name in TENSORS} for mask in masks)], shapes


def _unflatten(parts: Iterable[Any], shapes: Any) -> Flex:
    document, *tensors = parts
    masks = {
        window: BlockMask(lengths, **each, BLOCK_SIZE=block_size, mask_mod=_readable(document, window))
        for (window, lengths, block_size), each in zip(shapes, tensors, strict=True)
    }
    return Flex(document, masks)


pytree.register_pytree_node(Flex, _flatten, _unflatten)
