"""Health of each layer at some steps: its activations, its gradients, and how far its weights move.

A measurement costs a forward pass over a few rows of the step's batch, without gradients and apart from the training's
own, and a norm of each tensor. B batch, T time, H query heads, K head width, F inner units.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from groundup.batch import Batch, split, to
from groundup.model.attention import Attend
from groundup.model.transformer import Transformer, evaluating
from groundup.optim.masters import Masters
from groundup.train.fit import ONE_RANK, Ranks, Step
from groundup.train.losses import by_document

TOKENS = 2048
"""About this many tokens of the batch are read; one row at least."""
SAMPLED_ENTRIES = 1 << 16
"""Entries of a larger matrix, evenly spread, that stand for all when its change is measured: a copy of every weight
would not fit beside them."""
SCORES_AT_ONCE = 1 << 24
Measured = dict[tuple[str, str], Tensor]
"""(layer or part, name of a number) → the number."""
Activations = tuple[int, Measured]
"""How many rows were read, and what flowed through the layers."""


class Health:
    """Measures every so many steps: `before` the update, then `after` it."""

    def __init__(
        self,
        masters: Masters,
        every: int,
        activations: Callable[[Any], Activations] | None,
        ranks: Ranks = ONE_RANK,
    ) -> None:
        """
        Args:
            activations: measures a batch, such as `activations` of a model; without it only weights are measured.
            ranks: those that have parts of the weights.
        """
        self._masters, self._every, self._activations, self._ranks = masters, every, activations, ranks
        self._measured: Measured = {}
        self._before: dict[str, Tensor] = {}
        self._rows, self._seconds = 0, 0.0

    def before(self, step: Step, batch: Any) -> None:
        """Measure activations, gradients as they reach the optimizer, and weights, if this step is measured."""
        self._measured, self._before = {}, {}
        if step.number % self._every:
            return
        started = time.monotonic()
        self._rows, measured = (0, {}) if self._activations is None else self._activations(batch)
        self._measured |= measured
        own = self._ranks.own
        weights = {name: own(weight.detach()) for name, weight in self._masters.copies.items()}
        gradients = {name: own(weight.grad) for name, weight in self._masters.copies.items() if weight.grad is not None}
        self._measured |= {(layer, "grad_norm"): norm for layer, norm in self._norms(gradients).items()}
        self._measured |= {(layer, "weight_norm"): norm for layer, norm in self._norms(weights).items()}
        self._before = {name: _some_of(weight).clone() for name, weight in weights.items()}
        self._ranks.after_measuring()
        self._seconds = time.monotonic() - started

    def after(self, step: Step) -> dict[str, Any] | None:
        """The line for health.jsonl if this step was measured and taken."""
        if not self._before or not step.accepted:
            return None
        started = time.monotonic()
        moved, were = {}, {}
        for name, before in self._before.items():
            weight = self._ranks.own(self._masters.copies[name].detach())
            share = (weight.numel() / max(1, before.numel())) ** 0.5
            moved[name], were[name] = (_some_of(weight) - before) * share, before * share
        lengths = self._norms(were)
        self._measured |= {
            (layer, "update_ratio"): norm / lengths[layer].clamp(min=1e-12)
            for layer, norm in self._norms(moved).items()
        }
        values = torch.stack([value.float() for value in self._measured.values()]).tolist()  # waits once
        numbers: dict[str, dict[str, float]] = defaultdict(dict)
        for (layer, name), value in zip(self._measured, values, strict=True):
            numbers[layer][name] = value
        return {
            "step": step.number,
            "rows": self._rows,
            "seconds": round(self._seconds + time.monotonic() - started, 4),
            "layers": [
                {"layer": n, **numbers[str(n)]} for n in sorted(int(each) for each in numbers if each.isdigit())
            ],
            "parts": {layer: found for layer, found in numbers.items() if not layer.isdigit()},
        }

    def _norms(self, tensors: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """The norm of all tensors of a layer together, those that other ranks hold included."""
        squares: dict[str, list[Tensor]] = defaultdict(list)
        for name, norm in zip(tensors, torch._foreach_norm(list(tensors.values())), strict=True):
            squares[_layer_of(name)].append(norm.float().square() / self._ranks.copies(self._masters.copies[name]))
        total = self._ranks.sums({layer: torch.stack(found).sum() for layer, found in squares.items()})
        return {layer: square.sqrt() for layer, square in total.items()}


def _layer_of(name: str) -> str:
    """`3` of `blocks.3.attention.query.weight`, `embed` of `embed.weight`."""
    first, *rest = name.split(".")
    return rest[0] if first == "blocks" else first


def _some_of(weight: Tensor) -> Tensor:
    return weight.flatten()[:: max(1, weight.numel() // SAMPLED_ENTRIES)]


def activations(model: Transformer, batch: Batch) -> Activations:
    """Measure a forward pass over some rows of a batch, layer by layer."""
    some = split(batch, max(1, len(batch.tokens) // max(1, TOKENS // batch.tokens.shape[1])))[0]
    batch = to(some, next(model.parameters()).device)
    found: Measured = {}
    awake: dict[str, list[Tensor]] = defaultdict(list)
    real = batch.document >= 0

    def tap(name: str, tensor: Tensor) -> None:
        layer, _, part = name.removeprefix("blocks.").partition(".")
        if part == "feedforward.active":
            awake[layer].append((tensor > 0).flatten(0, -2).any(dim=0))
        elif part in ("", "attention", "feedforward"):
            found[layer, f"{part or 'stream'}_rms"] = tensor[real].float().square().mean().sqrt()

    measuring = _Measuring(by_document(batch), batch)
    with evaluating(model):
        model.hidden(batch.tokens, batch.position, measuring, tap)
    for layer, units in awake.items():
        found[layer, "dead_units"] = 1 - torch.cat(units).float().mean()
    return len(batch.tokens), found | measuring.found


@dataclass
class _Measuring:
    """Attends as `attend` does, and measures the scores."""

    attend: Attend
    batch: Batch
    found: Measured = field(default_factory=dict)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int, **options: Any) -> Tensor:
        entropy, logit = attention_statistics(q, k, self.batch, **options)
        name = str(layer)
        self.found[name, "attention_entropy"] = entropy.mean()
        self.found[name, "attention_entropy_lowest"] = entropy.min()
        self.found[name, "attention_logit_highest"] = logit
        return self.attend(q, k, v, layer=layer, **options)


def attention_statistics(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G T K"],
    batch: Batch,
    *,
    window: int | None = None,
    slopes: Float[Tensor, "H"] | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "H"], Float[Tensor, ""]]:
    """Mean entropy of each head's attention in nats, padding left out; and the largest score of a query and a key that
    it may read, scaled, before soft cap and slopes."""
    n_rows, n_heads, length, width = q.shape
    position = torch.arange(length, device=q.device)
    scale = width**-0.5 if scale is None else scale
    entropy, queries = torch.zeros(n_heads, device=q.device), torch.zeros((), device=q.device)
    highest = torch.full((), float("-inf"), device=q.device)
    block = max(1, SCORES_AT_ONCE // (n_heads * length))
    for row in range(n_rows):
        keys = k[row].float().repeat_interleave(n_heads // k.shape[1], dim=0)  # (H, T, K)
        document = batch.document[row]
        for first in range(0, length, block):
            part = slice(first, first + block)
            distance = position[part, None] - position
            visible = (distance >= 0) & (document[part, None] == document)
            if window is not None:
                visible = visible & (distance < window)
            scores = q[row, :, part].float() @ keys.transpose(-1, -2) * scale  # (H, block, T)
            real = document[part] >= 0
            seen = scores.masked_fill(~(visible & real[:, None]), float("-inf"))
            highest = torch.maximum(highest, seen.max())
            if soft_cap is not None:
                scores = soft_cap * torch.tanh(scores / soft_cap)
            if slopes is not None:
                scores = scores - slopes[:, None, None] * distance
            share = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
            entropy += (torch.special.entr(share).sum(dim=-1) * real).sum(dim=-1)
            queries += real.sum()
    return entropy / queries.clamp(min=1), highest
