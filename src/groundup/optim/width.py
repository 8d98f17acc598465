"""Width transfer: one learning rate for models of every width (μP).

Yang et al. 2022, arXiv:2203.03466: with table 8's deviations, multipliers and learning rates no activation grows or
dies as the width grows, at the start or in any step, so that the best learning rate of a narrow model is a wide one's
too. Here the multiplier of the scores, 1/width, lies in the gain of the norm before the head, by the rule that a
multiplier may be moved into a weight's deviation and learning rate (lemma J.1). So a finished model is like any other:
nothing of this is left to be told to whoever loads it. Heads are to be as wide as in the narrow model, and more.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from groundup.optim.settings import Adafactor, AdamW, Lion, Muon, Optimizer


@dataclass(frozen=True)
class _Powers:
    """Powers of the ratio of widths."""

    initial: float
    """On what the weight is at the start."""
    adam: float
    """On its learning rate, where a step has the learning rate's size in every entry (AdamW, Lion)."""
    orthogonal: float
    """Where all its directions are equally long and its entries have the learning rate's size (Muon)."""
    relative: float
    """Where a step has a size relative to the weight's own (Adafactor)."""


HIDDEN = _Powers(initial=-0.5, adam=-1.0, orthogonal=-0.5, relative=-0.5)
"""Matrices of the blocks: both sides grow."""
ROUTER = _Powers(initial=-1.0, adam=-1.0, orthogonal=-1.0, relative=0.0)
"""From the width to a fixed number of experts."""
LAST_GAIN = _Powers(initial=-1.0, adam=-1.0, orthogonal=0.0, relative=0.0)
"""The norm before the head, which holds the scores' multiplier."""
FIXED = _Powers(initial=0.0, adam=0.0, orthogonal=0.0, relative=0.0)
"""Embeddings, head, gains, biases: one side is fixed, or both."""


@torch.no_grad()
def narrow_start(weights: Iterable[tuple[str, Tensor]], ratio: float) -> None:
    """Scale weights as they were drawn to what suits a model `ratio` times as wide as the one that was tuned."""
    for name, weight in weights:
        weight *= ratio ** _powers(name, weight).initial


def learning_rate_factor(name: str, weight: Tensor, settings: Optimizer, ratio: float) -> float:
    """What the learning rate of this weight is multiplied by."""
    powers = _powers(name, weight)
    match settings:
        case AdamW() | Lion():
            return float(ratio**powers.adam)
        case Muon():
            return float(ratio ** (powers.orthogonal if is_orthogonal(name, weight) else powers.adam))
        case Adafactor():
            return float(ratio**powers.relative)


def is_matrix(name: str, weight: Tensor) -> bool:
    """Whether this is a matrix, or a stack of experts' matrices, and no vector or stack of vectors."""
    return weight.ndim >= 2 and not name.endswith(".bias")


def is_orthogonal(name: str, weight: Tensor) -> bool:
    """Whether Muon makes this weight's directions equally long: a matrix of a block. What stands for tokens or
    positions has no directions that are worth it."""
    return is_matrix(name, weight) and name.startswith(("blocks.", "multi_token."))


def _powers(name: str, weight: Tensor) -> _Powers:
    if name.endswith(".router.weight"):
        return ROUTER
    if is_orthogonal(name, weight):
        return HIDDEN
    in_last_norm = name.startswith("norm.") or (name.startswith("multi_token.") and name.split(".")[2] == "norm")
    return LAST_GAIN if in_last_norm else FIXED
