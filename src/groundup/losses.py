"""Losses: log-probabilities of the targets, and what is made of them.

A loss takes (model, batch, attending) and returns (weighted sum, weight, parts); whoever calls it divides by the
weight of the whole global batch, so that the pieces of a batch add up to the batch. B batch, T time, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from groundup.batch import Batch, total_weight
from groundup.model.attention import Attend, Packed
from groundup.model.feedforward import Tap
from groundup.model.transformer import Transformer

Attending = Callable[[Batch], Attend]
Loss = Callable[[Transformer, Batch], tuple[Tensor, Tensor, dict[str, Tensor]]]
CHUNK = 1024
"""Rows of logits that exist at once in float32."""


def by_document(batch: Batch) -> Attend:
    """Attention that never leaves a document."""
    return Packed(batch.document)


def token_logprobs(
    model: Transformer, batch: Batch, attending: Attending = by_document, tap: Tap | None = None
) -> Float[Tensor, "B T"]:
    """log p(target) at each position, in float32, `CHUNK` positions at a time: no (B, T, V) tensor is kept.

    Padding has a value too; give it weight 0.
    """
    return _logprobs(model, model.hidden(batch.tokens, batch.position, attending(batch), tap), batch.targets)


def _logprobs(model: Transformer, hidden: Float[Tensor, "B T D"], targets: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    chunks = zip(hidden.flatten(0, 1).split(CHUNK), targets.flatten().split(CHUNK), strict=True)
    if hidden.dtype == torch.float32:  # keep no logits for the backward pass: together they would be that tensor
        logprobs = [checkpoint(_chunk_logprobs, model, rows, picked, use_reentrant=False) for rows, picked in chunks]
    else:
        logprobs = [_chunk_logprobs(model, rows, picked) for rows, picked in chunks]
    return torch.cat(logprobs).view_as(targets)


def _chunk_logprobs(model: Transformer, hidden: Float[Tensor, "N D"], targets: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
    return _picked_logprob(model.logits(hidden), targets)


class _PickedLogprob(torch.autograd.Function):
    """log softmax(logits)[target], in float32. Keeps the logits as they came for the backward pass, not their softmax:
    in bfloat16 that is a quarter of what autograd would keep for `log_softmax(logits.float())`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        scores = logits.float()
        total = scores.logsumexp(dim=-1)
        ctx.save_for_backward(logits, targets, total)
        return scores.gather(-1, targets[:, None]).squeeze(-1) - total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """d log p(target) / d logits = onehot(target) − softmax(logits)."""
        logits, targets, total = ctx.saved_tensors
        softmax = (logits.float() - total[:, None]).exp_()
        softmax.scatter_add_(-1, targets[:, None], torch.full_like(softmax[:, :1], -1.0))
        return softmax.mul_(-gradients[0][:, None]).to(logits.dtype), None


def _picked_logprob(logits: Float[Tensor, "N V"], targets: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
    picked: Tensor = _PickedLogprob.apply(logits, targets)  # type: ignore[no-untyped-call]
    return picked


class Penalties:
    """What blocks ask the loss to add for each token: whatever they show to `tap` as `….penalty`."""

    def __init__(self) -> None:
        self._shown: list[Float[Tensor, "B T"]] = []

    def tap(self, name: str, tensor: Tensor) -> None:
        if name.endswith(".penalty"):
            self._shown.append(tensor)

    def added(self, summed: Tensor, batch: Batch, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """A loss's result, with the penalties in it."""
        if self._shown:
            penalty = (torch.stack(self._shown).sum(dim=0) * batch.weight).sum()
            parts = {"next_token": summed, **parts, "penalty": penalty}
            summed = summed + penalty
        return summed, total_weight(batch), parts


def next_token(
    model: Transformer, batch: Batch, attending: Attending = by_document
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Cross-entropy of the next token in nats, summed with the batch's weights, and the blocks' penalties.

    Parts, where a block has a penalty: `next_token` and `penalty`.
    """
    penalties = Penalties()
    summed = -(token_logprobs(model, batch, attending, penalties.tap) * batch.weight).sum()
    return penalties.added(summed, batch, {})


def multi_token(
    model: Transformer, batch: Batch, attending: Attending = by_document, *, further: float = 0.3
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """`next_token`, and `further` × the mean cross-entropy of the tokens after it, each predicted by a block of
    `model.ahead` over the shared trunk (Gloeckle et al. 2024, arXiv:2404.19737, section 2).

    A token of another document is not predicted. Parts: `next_token`, `ahead_1`, `ahead_2`, …, and `penalty`.
    """
    penalties = Penalties()
    attend = attending(batch)
    hidden = model.hidden(batch.tokens, batch.position, attend, penalties.tap)
    parts = {"next_token": -(_logprobs(model, hidden, batch.targets) * batch.weight).sum()}
    summed = parts["next_token"]
    for distance, ahead in enumerate(model.ahead, start=1):
        _, place = model.position(hidden, batch.position)
        predicted = _logprobs(model, ahead(hidden, place, attend, penalties.tap), batch.targets.roll(-distance, dims=1))
        weight = batch.weight.roll(-distance, dims=1) * (batch.document.roll(-distance, dims=1) == batch.document)
        weight[:, -distance:] = 0  # these have come round from the beginning of the row
        parts[f"ahead_{distance}"] = -(predicted * weight).sum()
        summed = summed + further / len(model.ahead) * parts[f"ahead_{distance}"]
    return penalties.added(summed, batch, parts)
