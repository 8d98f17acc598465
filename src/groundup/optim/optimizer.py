"""From settings to an optimizer: which weights it steps how."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from groundup.optim.adafactor import AdafactorOptimizer
from groundup.optim.adamw import adamw_over
from groundup.optim.lion import LionOptimizer
from groundup.optim.muon import MuonOptimizer
from groundup.optim.settings import Adafactor, AdamW, Lion, Muon, Optimizer
from groundup.optim.state import Group, prepare_state
from groundup.optim.width import is_matrix, is_orthogonal, learning_rate_factor


def make_optimizer(
    weights: Iterable[tuple[str, Tensor]],
    settings: Optimizer,
    matmul_dtype: torch.dtype = torch.float32,
    width_ratio: float = 1.0,
) -> torch.optim.Optimizer:
    """The optimizer of these named weights, its state made. Each group's `initial_lr` is its learning rate at the top
    of the schedule. Weights that get no gradient stay as they are.

    Args:
        weights: pairs of name and tensor, such as `model.named_parameters()`: what is a block's is known by its name.
        settings: which optimizer, and how it steps.
        matmul_dtype: the type of Muon's matmuls.
        width_ratio: how many times as wide the model is as the one whose learning rate this is.

    Raises:
        TypeError: weights without names.
        ValueError: no weights, or one tensor under two names.

    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = make_optimizer(model.named_parameters(), AdamW(weight_decay=0.1))
    >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
    [(1, 0.1), (1, 0.0)]
    """
    groups = parameter_groups(weights, settings, width_ratio)
    optimizer: torch.optim.Optimizer
    match settings:
        case AdamW():
            optimizer = adamw_over(groups, settings)
        case Muon():
            optimizer = MuonOptimizer(groups, settings, matmul_dtype)
        case Lion():
            optimizer = LionOptimizer(groups, settings)
        case Adafactor():
            optimizer = AdafactorOptimizer(groups, settings)
    prepare_state(optimizer)
    return optimizer


def parameter_groups(
    weights: Iterable[tuple[str, Tensor]], settings: Optimizer, width_ratio: float = 1.0
) -> list[Group]:
    """Weights that are stepped alike, the embedding's first.

    Matrices decay, vectors (gains, biases) do not, as in GPT-3 and nanoGPT; where width changes the learning rate, a
    step still decays by the same share.
    """
    alike: dict[tuple[bool, bool, float], list[Tensor]] = {}
    for name, weight in _named(weights):
        factor = learning_rate_factor(name, weight, settings, width_ratio)
        orthogonal = isinstance(settings, Muon) and is_orthogonal(name, weight)
        alike.setdefault((is_matrix(name, weight), orthogonal, factor), []).append(weight)
    return [
        {
            "params": members,
            "lr": settings.learning_rate * factor,
            "initial_lr": settings.learning_rate * factor,
            "weight_decay": settings.weight_decay / factor if matrix else 0.0,
            "matrix": matrix,
            "orthogonal": orthogonal,
        }
        for (matrix, orthogonal, factor), members in alike.items()
    ]


def _named(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The pairs, each tensor once."""
    names: dict[Tensor, str] = {}  # by identity, as tensors are told apart
    for pair in weights:
        match pair:
            case (str(name), Tensor() as weight):
                if weight in names:
                    raise ValueError(
                        f"{names[weight]} and {name} are one tensor; give it once, as model.named_parameters() does"
                    )
                names[weight] = name
                yield name, weight
            case _:
                raise TypeError(
                    f"the weights have a {type(pair).__name__} among them; give pairs of name and tensor, such as "
                    "model.named_parameters(), or the items() of a dict"
                )
    if not names:
        raise ValueError(
            "there are no weights to step; give pairs of name and tensor, such as model.named_parameters()"
        )
