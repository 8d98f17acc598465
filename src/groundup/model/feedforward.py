"""Feed-forward: what each position does with itself. B batch, T time, D width, F inner width."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from groundup.model.settings import GELU, ModelConfig, SwiGLU


class GELUFeedForward(nn.Module):
    """down(gelu(up(x)))."""

    TP = {"up": "column", "down": "row"}

    def __init__(self, d_model: int, d_ff: int, approximate: Literal["tanh", "none"], bias: bool) -> None:
        super().__init__()
        self.approximate = approximate
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        inner: Tensor = F.gelu(self.up(x), approximate=self.approximate)  # (B, T, F)
        output: Tensor = self.down(inner)
        return output


class SwiGLUFeedForward(nn.Module):
    """down(silu(gate(x)) × up(x))."""

    TP = {"gate": "column", "up": "column", "down": "row"}

    def __init__(self, d_model: int, d_ff: int, bias: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=bias)
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        inner: Tensor = F.silu(self.gate(x)) * self.up(x)  # (B, T, F)
        output: Tensor = self.down(inner)
        return output


def make_feedforward(config: ModelConfig) -> nn.Module:
    match config.feedforward:
        case GELU(approximate=approximate, bias=bias):
            return GELUFeedForward(config.d_model, config.feedforward_width, approximate, bias)
        case SwiGLU(bias=bias):
            return SwiGLUFeedForward(config.d_model, config.feedforward_width, bias)
