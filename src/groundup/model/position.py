"""Position: how a token's place enters the model.

Each kind is a module `(x, position) -> (x, rotation)`: it may add to the embedded tokens, and may leave angles by
which attention turns queries and keys. B batch, T time, D width, N heads, K head width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from groundup.model.settings import LearnedPosition, ModelConfig, Rotary

Rotation = tuple[Float[Tensor, "B 1 T K"], Float[Tensor, "B 1 T K"]]
"""Cosine and sine for each position and channel."""


class Learned(nn.Module):
    """Adds a learned vector for each position."""

    def __init__(self, context_length: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Embedding(context_length, d_model)

    def forward(self, x: Float[Tensor, "B T D"], position: Int[Tensor, "B T"]) -> tuple[Tensor, None]:
        return x + self.table(position), None


class RotaryAngles(nn.Module):
    """Leaves x alone and computes the angles."""

    def __init__(self, base: float, d_head: int) -> None:
        super().__init__()
        self.base, self.d_head = base, d_head

    def forward(self, x: Float[Tensor, "B T D"], position: Int[Tensor, "B T"]) -> tuple[Tensor, Rotation]:
        # In float32 whatever the model's precision: bfloat16 cannot tell position 257 from 258.
        channel = torch.arange(0, self.d_head, 2, dtype=torch.float32, device=x.device)
        angle = position[:, None, :, None].float() * self.base ** (-channel / self.d_head)  # (B, 1, T, K/2)
        angle = torch.cat((angle, angle), dim=-1)
        return x, (angle.cos().to(x.dtype), angle.sin().to(x.dtype))


def rotate(x: Float[Tensor, "B N T K"], rotation: Rotation) -> Float[Tensor, "B N T K"]:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34), halves paired as in GPT-NeoX."""
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


def make_position(config: ModelConfig) -> nn.Module:
    match config.position:
        case LearnedPosition():
            return Learned(config.context_length, config.d_model)
        case Rotary(base=base):
            return RotaryAngles(base, config.head_width)
