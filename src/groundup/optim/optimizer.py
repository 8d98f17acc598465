"""From settings to an optimizer: which weights it steps how."""

from collections.abc import Iterable

import torch
from torch import Tensor

from groundup.optim.adafactor import AdafactorOptimizer
from groundup.optim.adamw import adamw_over
from groundup.optim.lion import LionOptimizer
from groundup.optim.muon import MuonOptimizer
from groundup.optim.settings import Adafactor, AdamW, Lion, Muon, Optimizer
from groundup.optim.state import Group, prepare_state


def make_optimizer(
    weights: Iterable[tuple[str, Tensor]], settings: Optimizer, products: torch.dtype = torch.float32
) -> torch.optim.Optimizer:
    """The optimizer of these named weights, its state made. Each group's `initial_lr` is the learning rate at the top
    of the schedule.

    Args:
        products: the type that Muon multiplies matrices in.
    """
    groups = parameter_groups(weights, settings)
    optimizer: torch.optim.Optimizer
    match settings:
        case AdamW():
            optimizer = adamw_over(groups, settings)
        case Muon():
            optimizer = MuonOptimizer(groups, settings, products)
        case Lion():
            optimizer = LionOptimizer(groups, settings)
        case Adafactor():
            optimizer = AdafactorOptimizer(groups, settings)
    prepare_state(optimizer)
    return optimizer


def parameter_groups(weights: Iterable[tuple[str, Tensor]], settings: Optimizer) -> list[Group]:
    """Weights that are stepped alike, the embedding's first.

    Matrices decay, vectors (gains, biases) do not, as in GPT-3 and nanoGPT. Muon's `orthogonal` ones are the blocks'
    matrices: what stands for tokens or positions has no directions that are worth making equal.
    """
    alike: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, weight in weights:
        matrix = weight.ndim >= 2
        orthogonal = isinstance(settings, Muon) and matrix and name.startswith(("blocks.", "multi_token."))
        alike.setdefault((matrix, orthogonal), []).append(weight)
    return [
        {
            "params": members,
            "lr": settings.learning_rate,
            "initial_lr": settings.learning_rate,
            "weight_decay": settings.weight_decay if matrix else 0.0,
            "orthogonal": orthogonal,
        }
        for (matrix, orthogonal), members in alike.items()
    ]
