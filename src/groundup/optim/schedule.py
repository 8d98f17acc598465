"""Schedules: the share of the learning rate at each step."""

import math
from collections.abc import Callable

from groundup.optim.settings import Cosine

Schedule = Callable[[int], float]
"""Number of finished steps → factor on each group's `initial_lr`."""


def make_schedule(settings: Cosine, steps: int) -> Schedule:
    """
    >>> schedule = make_schedule(Cosine(warmup_steps=2, final=0.0), steps=6)
    >>> [round(schedule(step), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """

    warmup = min(100, steps // 10) if settings.warmup_steps is None else settings.warmup_steps

    def cosine(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        along = (step - warmup) / max(1, steps - warmup)
        return settings.final + (1 - settings.final) * 0.5 * (1 + math.cos(math.pi * along))

    return cosine
