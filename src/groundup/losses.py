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
from groundup.model.transformer import Transformer

Attending = Callable[[Batch], Attend]
Loss = Callable[[Transformer, Batch], tuple[Tensor, Tensor, dict[str, Tensor]]]
CHUNK = 1024
"""Rows of logits that exist at once in float32."""


def by_document(batch: Batch) -> Attend:
    """Attention that never leaves a document."""
    return Packed(batch.document)


def token_logprobs(model: Transformer, batch: Batch, attending: Attending = by_document) -> Float[Tensor, "B T"]:
    """log p(target) at each position, in float32, `CHUNK` positions at a time: no (B, T, V) tensor is kept.

    Padding has a value too; give it weight 0.
    """
    hidden = model.hidden(batch.tokens, batch.position, attending(batch)).flatten(0, 1)
    chunks = zip(hidden.split(CHUNK), batch.targets.flatten().split(CHUNK), strict=True)
    if hidden.dtype == torch.float32:  # keep no logits for the backward pass: together they would be that tensor
        logprobs = [checkpoint(_chunk_logprobs, model, rows, targets, use_reentrant=False) for rows, targets in chunks]
    else:
        logprobs = [_chunk_logprobs(model, rows, targets) for rows, targets in chunks]
    return torch.cat(logprobs).view_as(batch.targets)


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


def next_token(
    model: Transformer, batch: Batch, attending: Attending = by_document
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Cross-entropy of the next token in nats, summed with the batch's weights."""
    logprobs = token_logprobs(model, batch, attending)
    return -(logprobs * batch.weight).sum(), total_weight(batch), {}
