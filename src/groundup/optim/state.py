"""Optimizer state, made before the first step."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

Group = dict[str, Any]
"""Weights that are stepped alike: `params`, `lr`, `initial_lr`, `weight_decay`, …, as torch's optimizers have them."""


def prepare_state(optimizer: torch.optim.Optimizer) -> None:
    """Give every weight the state that `optimizer` has before its first step, all of it zero.

    So a checkpoint is read into any optimizer in the same way: tensor by tensor, in place. An optimizer of ours says
    by `empty_state(weight, group)` what it remembers of a weight; the others remember what AdamW does.
    """
    empty_state = getattr(optimizer, "empty_state", lambda weight, group: adamw_state(weight))
    for group in optimizer.param_groups:
        for weight in group["params"]:
            optimizer.state[weight] |= empty_state(weight, group)


def own(tensor: Tensor) -> Tensor:
    """The part of a tensor that is here, if it is cut over ranks."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def adamw_state(weight: Tensor) -> dict[str, Tensor]:
    """State by torch's names; the count of steps lies with the weight, as its fused kernel wants it."""
    return {
        "step": torch.zeros((), device=weight.device),
        "exp_avg": torch.zeros_like(weight, requires_grad=False),
        "exp_avg_sq": torch.zeros_like(weight, requires_grad=False),
    }
