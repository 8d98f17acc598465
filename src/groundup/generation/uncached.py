"""Uncached: continue ids by reading all of them again for each; the slow twin of the engine.

Also what generates where weights are cut over ranks, each of which has only some heads.
"""

import math
from collections.abc import Collection, Iterator, Sequence

import torch

from groundup.generation.engine import not_finite
from groundup.generation.sample import draw, probabilities, uniform
from groundup.generation.settings import Sampling
from groundup.model.transformer import Transformer, evaluating


def continue_uncached(
    model: Transformer, prompt: Sequence[int], sampling: Sampling, stops: Collection[int], never: Sequence[int]
) -> Iterator[int]:
    """What an engine answers to `prompt`, one id at a time, without penalties, biases and constraints.

    Raises:
        DivergedError: scores that are not finite.
    """
    ids, room, device = list(prompt), model.config.context_length, next(model.parameters()).device
    for number in range(sampling.max_tokens):
        with evaluating(model):
            logits = model.logits(model.hidden(torch.tensor([ids], device=device))[:, -1])
            logits[:, list(never)] = -math.inf
            if not logits.max().isfinite():
                raise not_finite()
            id = int(draw(probabilities(logits, sampling), [uniform(sampling.seed, number)]))
        if id in stops:
            return
        yield id
        ids.append(id)
        if len(ids) > room:
            ids = ids[-(room // 2) :]
