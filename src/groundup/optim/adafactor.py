"""Adafactor (Shazeer and Stern 2018, arXiv:1804.04235). R and C a matrix's rows and columns."""

import math
from typing import Any

import torch
from torch import Tensor

from groundup.optim.settings import Adafactor
from groundup.optim.state import Group

NEVER_ZERO = 1e-30  # ε₁ of algorithms 4 and 5, added to the squared gradient


class AdafactorOptimizer(torch.optim.Optimizer):
    """Without momentum: β₁ = 0."""

    def __init__(self, groups: list[Group], settings: Adafactor) -> None:
        super().__init__(groups, {})
        self._settings = settings

    def empty_state(self, weight: Tensor, group: Group) -> dict[str, Tensor]:
        """R + C numbers of a matrix, all of a vector; the count of steps stays on the CPU, where reading it waits for
        nobody."""
        state = {"step": torch.zeros(())}
        if not group["matrix"]:
            return state | {"mean_square": torch.zeros_like(weight, requires_grad=False)}
        return state | {
            "row_mean_square": weight.new_zeros(weight.shape[:-1], requires_grad=False),
            "column_mean_square": weight.new_zeros(weight.shape[:-2] + weight.shape[-1:], requires_grad=False),
        }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """W ← W − η max(ε₂, rms(W)) U / max(1, rms(U) / d), where U = G / √V and V is what its rows' and columns' means
        say of the mean squared gradient: (row × column) / mean of the rows."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    direction = self._direction(weight.grad, self.state[weight])
                    size = _root_mean_square(weight).clamp(min=self._settings.smallest)
                    excess = (_root_mean_square(direction) / self._settings.update_clip).clamp(min=1.0)
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(direction.mul_(group["lr"] * size / excess))

    def _direction(self, gradient: Tensor, state: dict[str, Tensor]) -> Tensor:
        """G / √V."""
        state["step"] += 1
        share = state["step"].item() ** -self._settings.decay_exponent  # 1 − β̂₂ of section 7.2
        square = gradient.square().add_(NEVER_ZERO)
        if "mean_square" in state:
            mean_square = state["mean_square"].lerp_(square, share)
            return gradient * mean_square.rsqrt()
        row = state["row_mean_square"].lerp_(square.mean(dim=-1), share)
        column = state["column_mean_square"].lerp_(square.mean(dim=-2), share)
        shape = row / row.mean(dim=-1, keepdim=True)
        return gradient * shape.rsqrt()[..., :, None] * column.rsqrt()[..., None, :]


def _root_mean_square(tensor: Tensor) -> Tensor:
    """One number for a vector or a matrix, one for each expert of a stack."""
    of_each: dict[str, Any] = {"dim": (1, 2), "keepdim": True} if tensor.ndim == 3 else {}
    n = math.prod(tensor.shape[-2:])
    size: Tensor = tensor.norm(**of_each) / math.sqrt(n)
    return size
