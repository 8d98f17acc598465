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
    """log p(target) at each position, in float32, `CHUNK` positions at a time: no float32 (B, T, V) tensor is kept, in
    bfloat16 the logits themselves are.

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
    in bfloat16 that is half of what autograd would keep for `log_softmax(logits.float())`."""

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


class AuxiliaryLosses:
    """What blocks ask the loss to add for each token: whatever they show to `tap` as `….auxiliary_loss`."""

    def __init__(self) -> None:
        self._shown: list[Float[Tensor, "B T"]] = []

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
    model: Transformer, batch: Batch, attending: Attending = by_document
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Cross-entropy of the next token in nats, summed with the batch's weights, and the blocks' auxiliary losses.

    Parts, where a block has an auxiliary loss: `next_token` and `auxiliary`.
    """
    auxiliary = AuxiliaryLosses()
    summed = -(token_logprobs(model, batch, attending, auxiliary.tap) * batch.weight).sum()
    return auxiliary.added_to(summed, {"next_token": summed}, batch)


def multi_token(
    model: Transformer, batch: Batch, attending: Attending = by_document, *, weight: float
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """`next_token`, and `weight` × the mean cross-entropy of the tokens after it, one for each head of
    `model.multi_token`; a token of another document is not predicted.

    Heads beside one another over one trunk as in Gloeckle et al. 2024, arXiv:2404.19737, section 2. Unlike there, the
    next token is read off the trunk itself, and the heads read it after its norm. Weighted as in DeepSeek-V3 (2024,
    arXiv:2412.19437, eq. 25). Parts: `next_token`, `token_2`, `token_3`, …, and `auxiliary`.
    """
    assert model.multi_token, "the model has heads for them: add_multi_token(n)"
    auxiliary = AuxiliaryLosses()
    attend = attending(batch)
    hidden = model.hidden(batch.tokens, batch.position, attend, auxiliary.tap)
    summed = -(_logprobs(model, hidden, batch.targets) * batch.weight).sum()
    parts = {"next_token": summed}
    further = model.hidden_multi_token(hidden, batch.position, attend, auxiliary.tap)
    for shift, states in enumerate(further, start=1):
        logprobs = _logprobs(model, states, batch.targets.roll(-shift, dims=1))
        counts = batch.weight.roll(-shift, dims=1) * (batch.document.roll(-shift, dims=1) == batch.document)
        counts[:, -shift:] = 0  # these have come round from the beginning of the row
        parts[f"token_{shift + 1}"] = -(logprobs * counts).sum()
        summed = summed + weight / len(further) * parts[f"token_{shift + 1}"]
    return auxiliary.added_to(summed, parts, batch)
