"""Dropout (Srivastava et al. 2014) by place: whether a unit is left out is a function of the step, its row, position,
layer, sublayer and channel; of a weight of attention, of its head and the key's position too. However rows, positions,
heads and layers are spread over micro-batches and processes, and computed again, the same units are left out.

Each position has a key, a number of 64 bits, and each layer and each sublayer make of it another one (`draw.hashed`).
B batch, T queries, S keys, H heads, D width.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from groundup.model.draw import hashed, key


def row_keys(seed: int, step: int, first: int, count: int, device: torch.device) -> Int[Tensor, "B 1"]:
    """The keys of rows `first`, `first` + 1, … of the global batch of a step, for `Transformer.keys`.

    >>> whole = row_keys(seed=0, step=3, first=0, count=8, device=torch.device("cpu"))
    >>> torch.equal(whole[6:], row_keys(seed=0, step=3, first=6, count=2, device=torch.device("cpu")))
    True
    """
    return hashed(key(seed, "dropout", step), torch.arange(first, first + count, device=device)[:, None])


def position_keys(keys: Int[Tensor, "B 1"] | Int[Tensor, "B T"], length: int) -> Int[Tensor, "B T"]:
    """Of a key for each row one for each of its positions 0..T−1; those of positions are left as they are."""
    return keys if keys.shape[1] == length > 1 else hashed(keys, torch.arange(length, device=keys.device))


def left_out(keys: Int[Tensor, "..."], indices: Int[Tensor, "n"], share: float) -> Bool[Tensor, "..."]:
    """Of each of `n` indices behind each key, (…, n), whether it is of the `share` that is left out.

    By the finaliser of MurmurHash3 (Appleby), without its last step, which the highest bits do not need: 32 bits take a
    third of the time of 64.
    """
    # ^, and no product: a C++ compiler knows how large an index can be, and that its products do not overflow.
    z = keys.int()[..., None] ^ indices.int()
    z = (z ^ ((z >> 16) & 0xFFFF)) * -0x7A143595
    z = (z ^ ((z >> 13) & 0x7FFFF)) * -0x3D4D51CB
    return z < round(share * 2**32) - 2**31


class Dropout(nn.Module):
    """Leaves out a share of the channels of each position in training, and makes the others larger by as much.

    Args:
        share: of the channels.
        number: tells apart what is dropped in one layer.

    >>> drops, x = Dropout(0.5, number=0), torch.ones(1, 3, 8)
    >>> keys = torch.tensor([[1, 2, 3]])
    >>> torch.equal(drops(x, keys)[:, 1:], drops(x[:, 1:], keys[:, 1:])), torch.equal(drops.eval()(x, keys), x)
    (True, True)
    """

    def __init__(self, share: float, number: int) -> None:
        super().__init__()
        self.share, self.number = share, number

    def forward(self, x: Float[Tensor, "B T D"], keys: Int[Tensor, "B T"] | None = None) -> Float[Tensor, "B T D"]:
        """
        Args:
            keys: one for each position of this layer; drawn from torch's generator if not given.
        """
        if not self.training or self.share == 0:
            return x
        keys = hashed(_drawn_keys(x) if keys is None else keys, self.number)
        return _without(x, left_out(keys, torch.arange(x.shape[-1], device=x.device), self.share), self.share)

    def extra_repr(self) -> str:
        return f"{self.share}, number={self.number}"


@dataclass(frozen=True)
class Drop:
    """Dropout of attention weights, as `attend` is given it.

    >>> drop = Drop(0.5, keys=torch.tensor([[[1, 2, 3]]]))
    >>> weights = torch.ones(1, 1, 3, 4)
    >>> torch.equal(drop(weights)[..., 2:], drop(weights[..., 2:], first_key=2))
    True
    """

    share: float
    keys: Int[Tensor, "B H T"]
    """One for each query of each head that is here."""

    def __call__(
        self, weights: Float[Tensor, "B H T S"], first_key: int | Int[Tensor, "S"] = 0
    ) -> Float[Tensor, "B H T S"]:
        """
        Args:
            first_key: position of the first key in its row, if they follow one another; or the positions of all.
        """
        positions = first_key
        if isinstance(positions, int):
            positions = torch.arange(positions, positions + weights.shape[-1], device=weights.device)
        return _without(weights, left_out(self.keys, positions, self.share), self.share)

    def of_queries(self, begin: int, end: int) -> "Drop":
        """For these queries alone."""
        return Drop(self.share, self.keys[:, :, begin:end])


pytree.register_pytree_node(Drop, lambda drop: ([drop.keys], drop.share), lambda keys, share: Drop(share, *keys))


def drop_for(
    share: float, keys: Int[Tensor, "B T"] | None, x: Float[Tensor, "B T D"], first_head: int, n_heads: int
) -> Drop | None:
    """What attention over `x` leaves out of the weights of `n_heads` heads from global number `first_head` on.

    Args:
        keys: one for each position of this layer; drawn from torch's generator if not given.
    """
    if share == 0:
        return None
    head = torch.arange(first_head, first_head + n_heads, device=x.device)[:, None]
    return Drop(share, hashed((_drawn_keys(x) if keys is None else keys)[:, None] ^ head, WEIGHTS))


ATTENTION, FEEDFORWARD, WEIGHTS = 0, 1, 2
"""Numbers of what is dropped in a layer: what its two sublayers add, and the weights of attention."""


def _drawn_keys(x: Float[Tensor, "B T D"]) -> Int[Tensor, "B T"]:
    return torch.randint(1 << 62, x.shape[:2], device=x.device)


def _without(x: Tensor, dropped: Tensor, share: float) -> Tensor:
    return x.masked_fill(dropped, 0.0) * (1 / (1 - share))
