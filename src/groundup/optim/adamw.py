"""AdamW: torch's, over groups of weights."""

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from groundup.optim.settings import AdamW, Muon
from groundup.optim.state import Group


def adamw_over(groups: list[Group], settings: AdamW) -> torch.optim.AdamW:
    """torch's fused one. (On the meta device, where nothing is computed, it has no such form.)"""
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=not any(weight.is_meta for group in groups for weight in group["params"]),
    )


def adamw_step(weights: list[Tensor], states: list[dict[str, Tensor]], group: Group, settings: AdamW | Muon) -> None:
    """One step of the same kernel, for an optimizer that leaves some of its weights to AdamW."""
    adamw(
        weights,
        [weight.grad for weight in weights if weight.grad is not None],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        fused=True,
        amsgrad=False,
        maximize=False,
        lr=group["lr"],
        beta1=settings.beta1,
        beta2=settings.beta2,
        weight_decay=group["weight_decay"],
        eps=settings.epsilon,
    )
