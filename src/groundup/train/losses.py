"""Losses: log-probabilities of the targets, and what is made of them.

A loss takes (model, batch, attending) and returns (weighted sum, weight, parts); whoever calls it divides by the
weight of the whole global batch, so that the pieces of a batch add up to the batch. B batch, T time, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from groundup.batch import Batch, total_weight
from groundup.model.attention import Attend, Packed
from groundup.model.feedforward import Tap, no_tap
from groundup.model.transformer import Transformer

Attending = Callable[[Batch], Attend]
Loss = Callable[[Transformer, Batch], tuple[Tensor, Tensor, dict[str, Tensor]]]
CHUNK = 1024
"""Rows of logits that exist at once in float32, where they are not computed by a compiled loop."""


def by_document(batch: Batch) -> Attend:
    """Attention that never leaves a document."""
    return Packed(batch.document)


@dataclass(frozen=True)
class Rowwise:
    """What is done to rows of logits: as written below, or compiled, when no float32 logits exist at all."""

    score: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    differentiate: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]


def token_logprobs(
    model: Transformer, batch: Batch, attending: Attending = by_document, tap: Tap = no_tap
) -> Float[Tensor, "B T"]:
    """log p(target) at each position, in float32, `CHUNK` positions at a time: no float32 (B, T, V) tensor is kept, in
    bfloat16 the logits themselves are.

    Padding has a value too; give it weight 0.

    Args:
        model: reads `batch.tokens` at `batch.position`.
        attending: batch → the `Attend` that the model reads with.
        tap: is shown what is on the way, as by `Transformer.hidden`.

    >>> from groundup.model.settings import ModelConfig
    >>> model = Transformer(ModelConfig(vocab_size=8, d_model=16, n_layers=1))
    >>> ids, position = torch.tensor([[1, 2, 3]]), torch.tensor([[0, 1, 2]])
    >>> batch = Batch(ids, ids + 1, torch.ones(1, 3), position, document=0 * position)
    >>> plain = model(ids).log_softmax(dim=-1).gather(-1, batch.targets[..., None])[..., 0]
    >>> torch.allclose(token_logprobs(model, batch), plain, atol=1e-6)
    True
    """
    hidden = model.hidden(batch.tokens, batch.position, attending(batch), tap)
    return scored(model, hidden, batch.targets)[0]


def cross_entropy(logits: Float[Tensor, "*rows V"], targets: Int[Tensor, "*rows"]) -> Float[Tensor, ""]:
    """The mean of −log softmax(logits)[target] in nats, in float32 (float64 for such logits), by torch; the logits may
    be of any floating-point type and stay as they are. A target of −100 is left out, as in torch.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: targets that are not ids, or logits that have no fractions.

    >>> logits = torch.zeros(2, 3, 8)  # eight tokens, all as likely
    >>> cross_entropy(logits, torch.tensor([[0, 1, 2], [7, 7, 7]]))  # log 8
    tensor(2.0794)
    """
    if not logits.ndim or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} and targets {tuple(targets.shape)}; logits should have one "
            "dimension more, the vocabulary's, as their last"
        )
    if not logits.is_floating_point() or targets.is_floating_point() or targets.dtype == torch.bool:
        raise TypeError(
            f"logits are of type {logits.dtype} and targets of {targets.dtype}; logits should be of a floating-point "
            "type, and targets ids of the tokens, of type torch.int64"
        )
    return F.cross_entropy(_widened(logits).reshape(-1, logits.shape[-1]), targets.flatten().long())


def scored(
    model: Transformer, hidden: Float[Tensor, "B T D"], targets: Int[Tensor, "B T"], rowwise: Rowwise | None = None
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Of each position log p(target), and log Σ exp(logits), from which the former is taken; both in float32
    (float64 for a model in float64)."""
    rows, picked = hidden.flatten(0, 1), targets.flatten()
    # A tensor of its own that no other step of the backward pass reads: a linear head's, and not what a head of
    # another kind may hand on or keep.
    overwrite = getattr(model.logits, "__func__", None) is Transformer.logits and isinstance(model.head, nn.Linear)
    in_float32 = hidden.dtype == torch.float32 and not torch.is_autocast_enabled(hidden.device.type)
    if torch.is_grad_enabled() and not in_float32:
        logprobs, total = _picked(model.logits(rows), picked, rowwise or PLAIN, overwrite)
    else:  # keep no logits for the backward pass: together they would be a float32 (B, T, V) tensor
        chunks = zip(rows.split(CHUNK), picked.split(CHUNK), strict=True)
        parts = [
            checkpoint(_chunk, model, *chunk, rowwise or PLAIN, overwrite, use_reentrant=False) for chunk in chunks
        ]
        logprobs, total = (torch.cat(part) for part in zip(*parts, strict=True))
    return logprobs.view_as(targets), total.view_as(targets)


def _chunk(
    model: Transformer, hidden: Tensor, targets: Tensor, rowwise: Rowwise, overwrite: bool
) -> tuple[Tensor, Tensor]:
    return _picked(model.logits(hidden), targets, rowwise, overwrite)


class _Picked(torch.autograd.Function):
    """log softmax(logits)[target] and log Σ exp(logits), in float32.

    Keeps the logits as they came for the backward pass, not their softmax: in bfloat16 that is half of what autograd
    would keep for `log_softmax(logits.float())`. Where nobody else reads them, their gradient is written over them, so
    one backward pass is all.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, rowwise: Rowwise, overwrite: bool) -> tuple[Tensor, Tensor]:
        logprobs, total = rowwise.score(logits, targets)
        ctx.save_for_backward(logits, targets, total)
        ctx.rowwise, ctx.overwrite = rowwise, overwrite
        return logprobs, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        logits, targets, total = ctx.saved_tensors
        gradient = logits if ctx.overwrite else logits.clone()
        ctx.rowwise.differentiate(gradient, targets, total, *gradients)
        return gradient, None, None, None


def _picked(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, "N"], rowwise: Rowwise, overwrite: bool
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    picked: tuple[Tensor, Tensor] = _Picked.apply(logits, targets, rowwise, overwrite)  # type: ignore[no-untyped-call]
    return picked


def _score(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    scores = _widened(logits)
    total = scores.logsumexp(dim=-1)
    return scores.gather(-1, targets[:, None]).squeeze(-1) - total, total


def _differentiate(logits: Tensor, targets: Tensor, total: Tensor, to_logprob: Tensor, to_total: Tensor) -> None:
    """d log p(target) / d logits = onehot(target) − softmax(logits), and d log Σ exp / d logits = softmax(logits);
    written over the logits."""
    softmax = (_widened(logits) - total[:, None]).exp()
    onehot = torch.arange(logits.shape[-1], device=logits.device) == targets[:, None]
    logits.copy_(softmax * (to_total - to_logprob)[:, None] + onehot * to_logprob[:, None])


def _widened(logits: Tensor) -> Tensor:
    """In float32, or float64 if that is what they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _score_by_chunks(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    parts = [_score(*chunk) for chunk in zip(logits.split(CHUNK), targets.split(CHUNK), strict=True)]
    return torch.cat([logprob for logprob, _ in parts]), torch.cat([total for _, total in parts])


def _differentiate_by_chunks(logits: Tensor, *rest: Tensor) -> None:
    for chunk in zip(logits.split(CHUNK), *(each.split(CHUNK) for each in rest), strict=True):
        _differentiate(*chunk)


PLAIN = Rowwise(_score_by_chunks, _differentiate_by_chunks)


def compiled_rowwise() -> Rowwise:
    """Each of the two in one pass over the logits."""
    return Rowwise(torch.compile(_score, dynamic=False), torch.compile(_differentiate, dynamic=False))


class AuxiliaryLosses:
    """What blocks ask the loss to add for each token: whatever they show to `tap` as `….auxiliary_loss`."""

    def __init__(self) -> None:
        self._shown: list[Float[Tensor, "B T"]] = []

    def tap_of(self, model: Transformer) -> Tap:
        return self.tap if model.has_auxiliary_losses else no_tap

    def tap(self, name: str, tensor: Tensor) -> None:
        if name.endswith(".auxiliary_loss"):
            self._shown.append(tensor)

    def added_to(
        self, summed: Tensor, parts: dict[str, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """A loss's result with them in it; parts only where there is more than one."""
        if self._shown:
            parts["auxiliary"] = (torch.stack(self._shown).sum(dim=0) * batch.weight).sum()
            summed = summed + parts["auxiliary"]
        return summed, total_weight(batch), parts if len(parts) > 1 else {}


def next_token(
    model: Transformer,
    batch: Batch,
    attending: Attending = by_document,
    *,
    z_loss: float = 0.0,
    rowwise: Rowwise | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Cross-entropy of the next token in nats, summed with the batch's weights, and the blocks' auxiliary losses.

    Args:
        model: reads `batch.tokens` at `batch.position`.
        attending: batch → the `Attend` that the model reads with.
        z_loss: weight of (log Σ exp(logits))² (Chowdhery et al. 2022, arXiv:2204.02311, section 5): it holds the logits
            where their softmax needs no dividing, so that they cannot drift away together.
        rowwise: how rows of logits are scored, such as `compiled_rowwise()`; as written here if not given.

    Returns:
        The sum, the weight to divide it by, and, where there is more than the first of them, its parts `next_token`,
        `z_loss` and `auxiliary`, each as it is added.

    >>> from groundup.model.settings import ModelConfig
    >>> model = Transformer(ModelConfig(vocab_size=8, d_model=16, n_layers=1))
    >>> ids, position = torch.tensor([[1, 2, 3]]), torch.tensor([[0, 1, 2]])
    >>> summed, weight, parts = next_token(model, Batch(ids, ids + 1, torch.ones(1, 3), position, 0 * position))
    >>> torch.allclose(summed / weight, cross_entropy(model(ids), ids + 1)), parts
    (True, {})
    """
    auxiliary = AuxiliaryLosses()
    hidden = model.hidden(batch.tokens, batch.position, attending(batch), auxiliary.tap_of(model))
    logprobs, total = scored(model, hidden, batch.targets, rowwise)
    summed = -(logprobs * batch.weight).sum()
    parts = {"next_token": summed}
    if z_loss:
        parts["z_loss"] = z_loss * (total.square() * batch.weight).sum()
        summed = summed + parts["z_loss"]
    return auxiliary.added_to(summed, parts, batch)


def multi_token(
    model: Transformer,
    batch: Batch,
    attending: Attending = by_document,
    *,
    weight: float,
    rowwise: Rowwise | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """`next_token`, and `weight` × the mean cross-entropy of the tokens after it, one for each head of
    `model.multi_token`; a token of another document is not predicted.

    Heads beside one another over one trunk as in Gloeckle et al. 2024, arXiv:2404.19737, section 2. Unlike there, the
    next token is read off the trunk itself, and the heads read it after its norm. Weighted as in DeepSeek-V3 (2024,
    arXiv:2412.19437, eq. 25). Parts: `next_token`, `token_2`, `token_3`, …, and `auxiliary`.
    """
    assert model.multi_token, "the model has heads for them: add_multi_token(n)"
    auxiliary = AuxiliaryLosses()
    attend, tap = attending(batch), auxiliary.tap_of(model)
    hidden = model.hidden(batch.tokens, batch.position, attend, tap)
    summed = -(scored(model, hidden, batch.targets, rowwise)[0] * batch.weight).sum()
    parts = {"next_token": summed}
    further = model.hidden_multi_token(hidden, batch.position, attend, tap)
    for shift, states in enumerate(further, start=1):
        logprobs, _ = scored(model, states, batch.targets.roll(-shift, dims=1), rowwise)
        counts = batch.weight.roll(-shift, dims=1) * (batch.document.roll(-shift, dims=1) == batch.document)
        counts[:, -shift:] = 0  # these have come round from the beginning of the row
        parts[f"token_{shift + 1}"] = -(logprobs * counts).sum()
        summed = summed + weight / len(further) * parts[f"token_{shift + 1}"]
    return auxiliary.added_to(summed, parts, batch)
