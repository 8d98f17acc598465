"""Losses: log-probabilities of the targets, and what is made of them.

A loss takes (model, batch) and returns (weighted sum, weight, parts); whoever calls it divides by the weight of the
whole global batch, so that micro-batches add up to the batch. All stand on one primitive, `target_logprobs`.
B batch, T time, N rows of logits, V vocabulary.
"""

import functools
from collections.abc import Callable
from functools import partial
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
CHUNK = 1024
"""Rows of logits that exist at once in float32, where they are not computed by a compiled loop."""


def by_document(batch: Batch) -> Attend:
    """Attention that never leaves a document."""
    return Packed(batch.document)


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
    return target_logprobs(model, hidden, batch.targets)[0]


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


def target_logprobs(
    model: Transformer, hidden: Float[Tensor, "B T D"], targets: Int[Tensor, "B T"], compiled: bool = False
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """log p(target) at each position, and log Σ exp(logits), from which it is taken; both in float32 (float64 for a
    model in float64).

    Args:
        compiled: rows of logits are scored in one compiled loop, and no float32 logits exist at all.
    """
    rows, picked = hidden.flatten(0, 1), targets.flatten()
    # A tensor of its own that no other step of the backward pass reads: a linear head's, and not what a head of
    # another kind may hand on or keep.
    overwrite = getattr(model.logits, "__func__", None) is Transformer.logits and isinstance(model.head, nn.Linear)

    def score(hidden: Tensor, targets: Tensor) -> Any:
        logits = model.logits(hidden)
        if model.logprobs is not None and torch.is_grad_enabled():
            return model.logprobs(logits, targets)
        return _Logprobs.apply(logits, targets, compiled, overwrite)  # type: ignore[no-untyped-call]

    in_float32 = hidden.dtype == torch.float32 and not torch.is_autocast_enabled(hidden.device.type)
    if torch.is_grad_enabled() and not in_float32:
        logprobs, total = score(rows, picked)
    else:  # keep no logits for the backward pass: together they would be a float32 (B, T, V) tensor
        logprobs, total = _by_rows(partial(checkpoint, score, use_reentrant=False), False, rows, picked)
    return logprobs.view_as(targets), total.view_as(targets)


class _Logprobs(torch.autograd.Function):
    """log softmax(logits)[target] and log Σ exp(logits), in float32.

    Keeps the logits as they came for the backward pass, not their softmax: in bfloat16 that is half of what autograd
    would keep for `log_softmax(logits.float())`. Where nobody else reads them, their gradient is written over them, so
    one backward pass is all.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, compiled: bool, overwrite: bool) -> tuple[Tensor, Tensor]:
        logprobs, total = _by_rows(_score, compiled, logits, targets)
        ctx.save_for_backward(logits, targets, total)
        ctx.compiled, ctx.overwrite = compiled, overwrite
        return logprobs, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        logits, *rest = ctx.saved_tensors
        gradient = logits if ctx.overwrite else logits.clone()
        _by_rows(_differentiate, ctx.compiled, gradient, *rest, *gradients)
        return gradient, None, None, None


def _by_rows(function: Callable[..., Any], compiled: bool, *columns: Tensor) -> Any:
    """The tensors, if any, that a function returns for these rows: in one compiled loop, or `CHUNK` rows at a time."""
    if compiled:
        return _compile(function)(*columns)
    results = [function(*chunk) for chunk in zip(*(column.split(CHUNK) for column in columns), strict=True)]
    return [torch.cat(each) for each in zip(*filter(None, results), strict=True)]


@functools.cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


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


def next_token(
    model: Transformer, batch: Batch, attending: Attending = by_document, *, z_loss: float = 0.0, compiled: bool = False
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Cross-entropy of the next token in nats, summed with the batch's weights, and the blocks' auxiliary losses.

    Args:
        model: reads `batch.tokens` at `batch.position`.
        attending: batch → the `Attend` that the model reads with.
        z_loss: weight of (log Σ exp(logits))² (Chowdhery et al. 2022, arXiv:2204.02311, section 5): it holds the logits
            where their softmax needs no dividing, so that they cannot drift away together.
        compiled: rows of logits are scored by a compiled loop.

    Returns:
        The sum, the weight to divide it by, and its parts, each as it is added: `next_token`, `z_loss` if it has a
        weight, and `auxiliary` if the blocks have such losses.

    >>> from groundup.model.settings import ModelConfig
    >>> model = Transformer(ModelConfig(vocab_size=8, d_model=16, n_layers=1))
    >>> ids, position = torch.tensor([[1, 2, 3]]), torch.tensor([[0, 1, 2]])
    >>> summed, weight, parts = next_token(model, Batch(ids, ids + 1, torch.ones(1, 3), position, 0 * position))
    >>> torch.allclose(summed / weight, cross_entropy(model(ids), ids + 1)), list(parts)
    (True, ['next_token'])
    """
    hidden, auxiliary = model.hidden_and_auxiliary(batch.tokens, batch.position, attending(batch))
    logprobs, total = target_logprobs(model, hidden, batch.targets, compiled)
    parts = {"next_token": -(logprobs * batch.weight).sum()}
    if z_loss:
        parts["z_loss"] = z_loss * (total.square() * batch.weight).sum()
    if auxiliary is not None:
        parts["auxiliary"] = (auxiliary * batch.weight).sum()
    return functools.reduce(torch.add, parts.values()), total_weight(batch), parts
