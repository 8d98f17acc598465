"""Sampling: the scores of the next token → its id. R rows, V vocabulary."""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from groundup.generation.settings import Sampling
from groundup.model.draw import key


def adjusted(
    logits: Float[Tensor, "V"], sampling: Sampling, prompt: Sequence[int], answer: Sequence[int]
) -> Float[Tensor, "V"]:
    """The scores with what depends on the tokens: biases, and penalties on what was there before.

    A repetition penalty divides the scores above 0, and multiplies those below, of all tokens so far (Keskar et al.
    2019, arXiv:1909.05858, section 4.1); the other two are taken off those of the answer's tokens, as in OpenAI's API.
    """
    scores = logits.float()
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*prompt, *answer}), device=scores.device)
        repeated = scores[seen]
        factor = sampling.repetition_penalty
        scores = scores.scatter(0, seen, torch.where(repeated > 0, repeated / factor, repeated * factor))
    if answer and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = Counter(answer)
        written = torch.tensor(list(counts), device=scores.device)
        times = torch.tensor(list(counts.values()), device=scores.device)
        scores = scores.index_add(0, written, -(sampling.presence_penalty + sampling.frequency_penalty * times))
    if sampling.logit_bias:
        biased = torch.tensor([*sampling.logit_bias], device=scores.device)
        scores = scores.index_add(0, biased, torch.tensor([*sampling.logit_bias.values()], device=scores.device))
    return scores


def probabilities(scores: Float[Tensor, "R V"], sampling: Sampling) -> Float[Tensor, "R V"]:
    """The distribution that is drawn from: temperature first, then top-k, top-p and min-p, each over what is left."""
    scores = scores.float()
    if is_greedy(sampling):
        return torch.zeros_like(scores).scatter_(1, scores.argmax(dim=1, keepdim=True), 1.0)
    scores = scores / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scores.shape[1]:
        best = scores.topk(sampling.top_k, dim=1)
        scores = torch.full_like(scores, -math.inf).scatter(1, best.indices, best.values)
    shares = scores.softmax(dim=1)
    if sampling.top_p is not None:
        ordered, order = shares.sort(dim=1, descending=True, stable=True)
        before = ordered.cumsum(dim=1) - ordered  # what the better ones already add up to
        dropped = torch.zeros_like(shares, dtype=torch.bool).scatter(1, order, before >= sampling.top_p)
        shares = shares.masked_fill(dropped, 0.0)
    if sampling.min_p is not None:
        shares = shares.masked_fill(shares < sampling.min_p * shares.amax(dim=1, keepdim=True), 0.0)
    return shares / shares.sum(dim=1, keepdim=True)


def is_greedy(sampling: Sampling) -> bool:
    """Whether the best is always taken: a temperature as good as 0, by which dividing would overflow."""
    return sampling.temperature < 1e-6


def uniform(seed: int, number: int) -> float:
    """A number in [0, 1) for the token of that number, the same whenever and beside whatever it is drawn.

    >>> uniform(0, 5) == uniform(0, 5), uniform(0, 5) == uniform(1, 5)
    (True, False)
    """
    return (key("token", seed, number) % (1 << 64) >> 11) / (1 << 53)


def draw(shares: Float[Tensor, "R V"], uniforms: Sequence[float]) -> Tensor:
    """An id for each row, (R,): the first at which the shares so far add up to more than the row's number in [0, 1)."""
    sums = shares.double().cumsum(dim=1)
    total = sums[:, -1:]
    wanted = torch.tensor(uniforms, dtype=torch.float64, device=shares.device)[:, None] * total
    below = torch.nextafter(total, torch.zeros_like(total))
    return torch.searchsorted(sums, wanted.minimum(below), right=True).squeeze(1)
