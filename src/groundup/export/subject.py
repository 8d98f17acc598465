"""What is exported, and how far what is read back is from it. B rows, T positions, V vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor

from groundup.errors import DamagedError
from groundup.generation.engine import Engine
from groundup.model.settings import ModelConfig
from groundup.tokenizer.chat import Chat
from groundup.tokenizer.declared import read_table
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.files import chat_of, required_tokenizer
from groundup.weights.load import build, read_weights

PROBED = 128
"""Positions at which logits are compared, if the context has as many."""
EQUAL = 1e-4
"""Most that logits of equal weights may differ, in float32; a share of the largest logit where that is above 1."""


@dataclass(frozen=True)
class Subject:
    """A model that is exported."""

    directory: Path
    config: ModelConfig
    weights: Mapping[str, Tensor]
    tokenizer: Tokenizer
    chat: Chat | None
    """None for a base model."""
    sampling: Mapping[str, Any]
    """The table of its `generation.json`."""
    probe: Int[Tensor, "1 T"]
    """The ids that logits are compared on: what the model itself writes."""

    @classmethod
    def read(cls, directory: Path) -> "Subject":
        config, weights = read_weights(directory)
        model = build(config, weights, str(directory))  # which refuses weights that do not fit, and says what is tied
        parameters = {name: weight.detach() for name, weight in model.named_parameters()}
        tokenizer = required_tokenizer(directory)
        rows, first = model.config.vocab_size or 0, tokenizer.roles.opener or 0
        first = first if first < rows else 0
        engine = Engine(model.float().eval(), most_requests=1, never=range(tokenizer.vocab_size, rows))
        tokens = min(PROBED, config.context_length) - 1
        (written,) = engine.generate([[first]], max_tokens=tokens, temperature=1.0, seed=0)
        probe = torch.tensor([[first, *written]])
        sampling = read_table(directory / "generation.json")
        return cls(directory, model.config, parameters, tokenizer, chat_of(directory), sampling, probe)

    def logits(self, weights: Mapping[str, Tensor] | None = None) -> Float[Tensor, "B T V"]:
        """The model's logits for the probe in float32, or with other weights."""
        return logits_of(self.config, self.weights if weights is None else weights, self.probe)


@torch.no_grad()
def logits_of(config: ModelConfig, weights: Mapping[str, Tensor], ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
    """The logits of a model with these weights, computed in float32 on the CPU."""
    logits: Tensor = build(config, {name: weight.float() for name, weight in weights.items()}, "the export").eval()(ids)
    return logits


def refuse(what: str, why: str) -> NoReturn:
    """
    Raises:
        DamagedError: always: the disk, or a fault of ours.
    """
    raise DamagedError(f"{what}, read back, {why}. It is not kept: try another disk, or report this")


@dataclass(frozen=True)
class Agreement:
    """How far the logits of what was read back are from those of the model."""

    positions: int
    largest_difference: float
    mean_difference: float
    same_best: float
    """Share of the positions at which the likeliest token is the same."""

    @classmethod
    def between(cls, ours: Float[Tensor, "B T V"], theirs: Float[Tensor, "B T V"]) -> "Agreement":
        """
        >>> Agreement.between(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 1.5]]]))
        Agreement(positions=1, largest_difference=0.5, mean_difference=0.25, same_best=1.0)
        """
        difference = (ours - theirs).abs()
        best = (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item()
        return cls(ours[..., 0].numel(), difference.max().item(), difference.mean().item(), best)

    def refuse_unequal(self, scale: float, what: str) -> None:
        """
        Args:
            scale: the largest logit.

        Raises:
            DamagedError: what was read back is another model.
        """
        if not self.largest_difference <= EQUAL * max(1.0, scale):  # nor a NaN
            refuse(what, f"gives other logits: they differ by up to {self.largest_difference:.3g}")

    @property
    def words(self) -> str:
        """
        >>> Agreement(128, 0.0, 0.0, 1.0).words
        'the same logits at 128 positions'
        >>> Agreement(128, 0.25, 0.0625, 0.984375).words
        'logits within 0.25 (0.0625 on average) at 128 positions, the likeliest token the same at 98.4%'
        """
        if self.largest_difference == 0:
            return f"the same logits at {self.positions} positions"
        return (
            f"logits within {self.largest_difference:.2g} ({self.mean_difference:.3g} on average) at {self.positions} "
            f"positions, the likeliest token the same at {self.same_best:.1%}"
        )
