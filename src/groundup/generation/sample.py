"""Sampling: the scores of the next token → its id."""

import torch
from jaxtyping import Float
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
        shares = shares.scatter(0, order[before >= sampling.top_p], 0.0)
        shares = shares / shares.sum()
    return shares


def sample(logits: Float[Tensor, "V"], sampling: Sampling, generator: torch.Generator) -> int:
    """Draw one id. The generator lives on the CPU, so a seed means the same on every device."""
    return int(torch.multinomial(probabilities(logits, sampling).cpu(), 1, generator=generator))
