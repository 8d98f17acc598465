"""The loop: an iterator over optimizer steps. Logging, evaluating and saving are the caller's `for` body."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from groundup.batch import Rows, Weighted, split, to, total_weight
from groundup.model.dropout import row_keys
from groundup.model.transformer import Transformer
from groundup.optim.precision import step_optimizer
from groundup.optim.schedule import Schedule
from groundup.train.peers import ALONE

Loss = Callable[[Transformer, Any], tuple[Tensor, Tensor, dict[str, Tensor]]]
"""(model, batch) → summed loss, the weight to divide it by, and its parts."""
Gradients = Callable[[Rows], tuple[Tensor, dict[str, Tensor]]]
"""Forward and backward over a batch; returns the loss and its parts."""


@dataclass(frozen=True)
class Step:
    """What one step of `fit` did. Nothing waits for the device until a tensor is read."""

    number: int
    """Steps finished, this one included."""
    loss: Float[Tensor, ""]
    grad_norm: Float[Tensor, ""]
    """Before clipping."""
    learning_rate: float
    tokens: Float[Tensor, ""]
    """Weight of the batch: targets that counted."""
    accepted: bool
    """Whether the weights were changed: `accept` was for it, and with a scaled loss no gradient overflowed."""
    parts: dict[str, Tensor]


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Float[Tensor, ""]:
    """Shorten the gradients, all by the same factor, so that the norm of all together is at most `max_norm`.

    Returns:
        The norm before. Parameters without a gradient count as zero.

    Raises:
        ValueError: a `max_norm` below zero.

    >>> weight = torch.zeros(2, requires_grad=True)
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> clip_gradients([weight], max_norm=1.0), weight.grad
    (tensor(5.), tensor([0.6000, 0.8000]))
    """
    if not max_norm >= 0:  # torch would turn the gradients round
        raise ValueError(f"max_norm = {max_norm}; it should be 0 or more, float('inf') for no limit")
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(_one_expert_after_another(gradients))
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def _one_expert_after_another(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """The tensors, stacks of experts taken apart: how they are kept does not change how a norm is rounded."""
    for n_experts, group in itertools.groupby(tensors, lambda tensor: len(tensor) if tensor.ndim == 3 else None):
        run = list(group)
        yield from run if n_experts is None else itertools.chain.from_iterable(zip(*run, strict=True))


class Ranks:
    """What depends on the other processes of a training. Here there are none; `train/ranks.py` has many."""

    rank, size = 0, 1
    cuts_weights = False
    """Whether a rank may hold only parts of the weights."""
    peers = ALONE
    """Those who save together: they talk beside the training, in the thread that writes."""

    def clip_gradients(self, parameters: Iterable[Tensor], max_norm: float) -> Tensor:
        """Clip to a norm over the gradients of all ranks, and return it."""
        return clip_gradients(parameters, max_norm)

    def total_weight(self, batch: Weighted) -> Tensor:
        """Weight of the global batch, of which this rank has some rows."""
        return total_weight(batch)

    def add_up(self, shares: dict[str, list[Tensor]], divisor: Tensor) -> dict[str, Tensor]:
        """The losses of the global batch, by name, of their shares in each of this rank's micro-batches; divided."""
        return {name: torch.stack(each).sum() / divisor for name, each in shares.items()}

    def dropout_keys(self, seed: int, step: int, count: int, device: torch.device) -> Int[Tensor, "B T"]:
        """The keys for `Transformer.keys` of this rank's `count` rows of the global batch."""
        return row_keys(seed, step, 0, count, device)

    def before_backward(self, last: bool) -> None:
        """Called before each micro-batch, of which this may be the step's last."""

    def after_backward(self, last: bool) -> None:
        """Called after each micro-batch."""

    def agree(self, verdict: bool) -> bool:
        """Whether every rank says yes."""
        return verdict

    def own(self, weight: Tensor) -> Tensor:
        """The part of a weight or gradient that is here."""
        return weight

    def copies(self, weight: Tensor) -> int:
        """How many ranks have the same part of it."""
        return 1

    def sums(self, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each number added up over the ranks that have one of that name."""
        return numbers

    def after_measuring(self) -> None:
        """Called when the model has been asked for something between two steps."""

    def watching(self, directory: Path) -> AbstractContextManager[Any]:
        """Inside, each rank looks after the others; what it finds goes into `directory`."""
        return nullcontext()

    def mark(self, step: int, where: str) -> None:
        """Remember how far this rank is, for what is said of it if it hangs."""

    def times(self) -> dict[str, list[float]] | None:
        """Since the last time, by rank: seconds `computing`, in `collectives` and `waiting`, and `bytes` sent."""
        return None

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all ranks, in order."""
        return [value]


ONE_RANK = Ranks()


def fit(
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    batches: Iterator[Rows],
    gradients: Gradients[Rows],
    *,
    steps: int,
    start: int = 0,
    clip: float | None = 1.0,
    clip_value: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
    accept: Callable[[Step], bool] | None = None,
    ranks: Ranks = ONE_RANK,
) -> Iterator[Step]:
    """Train from step `start` to `steps`, yielding once a step, after the update.

    Args:
        schedule: number of finished steps → factor on each group's `initial_lr`.
        batches: pulled one item a step and never ahead.
        gradients: leaves gradients on the optimizer's parameters.
        clip: largest gradient norm; None for no clipping.
        clip_value: largest value in the gradient that `clip` has left; None for no clipping.
        scaler: unscales gradients that were made of a scaled loss, and skips a step whose gradients overflowed.
        accept: asked once the gradient norm is known; False leaves the weights as they are.
        ranks: how the gradient's norm and the batch's weight are found where several processes train together.

    Raises:
        ValueError: the first batch leaves no gradient on any weight of the optimizer.

    >>> from groundup.batch import Batch
    >>> from groundup.train.losses import next_token
    >>> from groundup.model.settings import ModelConfig
    >>> from groundup.optim.optimizer import make_optimizer
    >>> from groundup.optim.schedule import make_schedule
    >>> from groundup.optim.settings import AdamW, Constant
    >>> _ = torch.manual_seed(0)
    >>> ids, position = torch.tensor([[1, 2, 3, 4]]), torch.arange(4)[None]
    >>> batch = Batch(ids, ids + 1, torch.ones(1, 4), position, document=0 * position)
    >>> model = Transformer(ModelConfig(vocab_size=8, d_model=16, n_layers=1))
    >>> optimizer = make_optimizer(model.named_parameters(), AdamW(learning_rate=3e-2))
    >>> gradients = accumulate(model, next_token, micro_batches=1)
    >>> done = list(fit(optimizer, make_schedule(Constant(), 20), itertools.repeat(batch), gradients, steps=20))
    >>> done[-1].number, bool(done[-1].loss < 0.5 < done[0].loss)
    (20, True)
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number in range(start, steps):
        batch = next(batches)
        factor = schedule(number)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        optimizer.zero_grad()
        loss, parts = gradients(batch)
        if number == start and all(parameter.grad is None for parameter in parameters):
            raise ValueError(
                f"after the first batch none of the optimizer's {len(parameters):,} weights has a gradient; make the "
                "optimizer of the weights that the loss depends on, as they are on their device and in their type"
            )
        if scaler is not None:
            scaler.unscale_(optimizer)
        grad_norm = ranks.clip_gradients(parameters, float("inf") if clip is None else clip)
        if clip_value is not None:
            torch.nn.utils.clip_grad_value_(parameters, clip_value)
        weight, learning_rate = ranks.total_weight(batch), optimizer.param_groups[0]["lr"]
        step = Step(number + 1, loss, grad_norm, learning_rate, weight, accepted=True, parts=parts)
        taken = step_optimizer(optimizer, scaler, accept is None or accept(step))
        yield step if taken else replace(step, accepted=False)


def accumulate(
    model: Transformer,
    loss: Loss,
    micro_batches: int | Callable[[Any], int],
    *,
    seed: int = 0,
    start: int = 0,
    scaler: torch.amp.GradScaler | None = None,
    ranks: Ranks = ONE_RANK,
) -> Gradients[Any]:
    """Gradients of a batch, one micro-batch after another; they add up to the whole, however uneven they are.

    Args:
        model: whose gradients.
        loss: (model, batch) → summed loss, weight to divide it by, parts; such as `next_token`.
        micro_batches: into how many the rows are split, to save memory; a function of the batch, where batches differ.
        seed: of dropout, together with the step and the number of the row within the global batch.
        start: number of the first step.
        scaler: scales the loss before its backward pass; give `fit` the same.
        ranks: give `fit` the same.
    """
    step = itertools.count(start)
    device = next(model.parameters()).device

    def gradients(batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        number = next(step)
        divisor = ranks.total_weight(batch).to(device)
        shares: dict[str, list[Tensor]] = defaultdict(list)
        split_rows = split(batch, micro_batches if isinstance(micro_batches, int) else micro_batches(batch))
        keys = ranks.dropout_keys(seed, number, len(batch.weight), device) if model.config.drops else None
        first = 0
        for left, rows in zip(reversed(range(len(split_rows))), split_rows, strict=True):
            ranks.before_backward(last=not left)
            model.keys = None if keys is None else keys[first : first + len(rows.weight)]
            summed, _, parts = loss(model, to(rows, device))
            model.keys, first = None, first + len(rows.weight)
            share = summed / divisor
            (share if scaler is None else scaler.scale(share)).backward()
            ranks.after_backward(last=not left)
            for name, part in {"": summed, **parts}.items():
                shares[name].append(part.detach())
        whole = ranks.add_up(shares, divisor)
        return whole.pop(""), whole

    return gradients
