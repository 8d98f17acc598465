"""Sampling: the scores of the next token → its id. B rows, V vocabulary."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from groundup.generation.settings import Sampling


def probabilities(logits: Float[Tensor, "V"], sampling: Sampling) -> Float[Tensor, "V"]:
    """The distribution that is drawn from: temperature first, then top-k, then top-p."""
    logits = logits.float()
    if sampling.temperature < 1e-6:  # as good as 0, and dividing by it would overflow
        return torch.zeros_like(logits).scatter_(0, logits.argmax(dim=0, keepdim=True), 1.0)
    scores = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(scores):
        kept = scores.topk(sampling.top_k).indices
        scores = torch.full_like(scores, float("-inf")).scatter(0, kept, scores[kept])
    shares = scores.softmax(dim=0)
    if sampling.top_p is not None:
        ordered, order = shares.sort(descending=True, stable=True)
        before = ordered.cumsum(dim=0) - ordered  # what the better ones already add up to
        dropped = torch.zeros_like(shares, dtype=torch.bool).scatter(0, order, before >= sampling.top_p)
        shares = shares.masked_fill(dropped, 0.0)
        shares = shares / shares.sum()
    return shares


def draw(shares: Float[Tensor, "B V"], generators: Sequence[torch.Generator]) -> Int[Tensor, "B"]:
    """An id for each row, on the device of `shares`, which is not waited for.

    The argmax of share / noise, with exponential noise, is distributed as the shares; `torch.multinomial` draws one id
    in the same way. Each row has a generator of its own, on the CPU, so that a seed means the same on every device and
    in every company.
    """
    noise = [torch.empty(shares.shape[1]).exponential_(generator=generator) for generator in generators]
    return (shares / torch.stack(noise).to(shares.device, non_blocking=True)).argmax(dim=1)
