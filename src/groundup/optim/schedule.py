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

    def cosine(step: int) -> float:
        if step < settings.warmup_steps:
            return (step + 1) / settings.warmup_steps
        along = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
        return settings.final + (1 - settings.final) * 0.5 * (1 + math.cos(math.pi * along))

    return cosine
