"""Lion (Chen et al. 2023, arXiv:2302.06675, algorithm 2)."""

import torch
from torch import Tensor

from groundup.optim.settings import Lion
from groundup.optim.state import Group


class LionOptimizer(torch.optim.Optimizer):
    def __init__(self, groups: list[Group], settings: Lion) -> None:
        super().__init__(groups, {})
        self._settings = settings

    def empty_state(self, weight: Tensor, group: Group) -> dict[str, Tensor]:
        return {"momentum": torch.zeros_like(weight, requires_grad=False)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """θ ← θ − η (sign(β₁ m + (1 − β₁) g) + λ θ), then m ← β₂ m + (1 − β₂) g."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients = [weight.grad for weight in weights]
            momenta = [self.state[weight]["momentum"] for weight in weights]
            directions = torch._foreach_lerp(gradients, momenta, self._settings.beta1)
            torch._foreach_sign_(directions)
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, directions, alpha=-group["lr"])
            torch._foreach_lerp_(momenta, gradients, 1 - self._settings.beta2)
