"""AdamW with parameter groups."""

from collections.abc import Iterable

import torch
from torch import Tensor

from groundup.optim.settings import AdamW


def decay_groups(parameters: Iterable[Tensor], weight_decay: float) -> list[dict[str, object]]:
    """Matrices with weight decay; vectors (gains, biases) without, as in GPT-3 and nanoGPT."""
    members = list(parameters)
    return [
        {"params": [parameter for parameter in members if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in members if parameter.ndim < 2], "weight_decay": 0.0},
    ]


def make_adamw(parameters: Iterable[Tensor], settings: AdamW) -> torch.optim.AdamW:
    """torch's fused AdamW. Each group's `initial_lr` is the learning rate at the top of the schedule."""
    optimizer = torch.optim.AdamW(
        decay_groups(parameters, settings.weight_decay),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer
