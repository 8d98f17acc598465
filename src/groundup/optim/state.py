"""What an optimizer remembers of each weight, before its first step."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class KnowsItsState(Protocol):
    """An optimizer of ours: it says what it remembers of a weight, all of it nought before the first step."""

    def empty_state(self, weight: Tensor) -> dict[str, Tensor]: ...


def prepare_state(optimizer: torch.optim.Optimizer) -> None:
    """Give every weight the state that `optimizer` would make at its first step; what is there already stays.

    So a checkpoint is read into any optimizer in the same way: tensor by tensor, in place.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            for key, nought in _empty_state(optimizer, weight).items():
                optimizer.state[weight].setdefault(key, nought)


def _empty_state(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict[str, Tensor]:
    match optimizer:
        case KnowsItsState():
            return optimizer.empty_state(weight)
        case torch.optim.AdamW():
            return adamw_state(weight)
        case _:
            raise TypeError(f"what {type(optimizer).__name__} remembers of a weight is not known here")


def adamw_state(weight: Tensor) -> dict[str, Tensor]:
    """torch's names; the count of steps lies with the weight, as its fused kernel wants it."""
    return {
        "step": torch.zeros((), device=weight.device),
        "exp_avg": torch.zeros_like(weight, requires_grad=False),
        "exp_avg_sq": torch.zeros_like(weight, requires_grad=False),
    }
