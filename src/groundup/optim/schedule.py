"""Schedules: the share of the learning rate at each step."""

import math
from collections.abc import Callable

from groundup.optim.settings import Constant, Cosine, InverseSquareRoot, Linear, WarmupStableDecay, warmup_steps
from groundup.optim.settings import Schedule as ScheduleSettings

Schedule = Callable[[int], float]
"""Number of finished steps → factor on each group's `initial_lr`. Negative numbers are a ValueError."""


def make_schedule(settings: ScheduleSettings, steps: int) -> Schedule:
    """The schedule of a training of so many steps. Asked beyond them it stays where it ends: at `final`, where there is
    one; an inverse square root goes on falling. A warm-up that is longer than the training stays where that ends it.

    >>> def shown(settings, steps=6):
    ...     schedule = make_schedule(settings, steps)
    ...     return [round(schedule(step), 3) for step in range(steps)]
    >>> shown(Constant(warmup_steps=2))
    [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    >>> shown(Cosine(warmup_steps=2, final=0.0))
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    >>> shown(Linear(warmup_steps=2, final=0.2))
    [0.5, 1.0, 1.0, 0.8, 0.6, 0.4]
    >>> shown(WarmupStableDecay(warmup_steps=1, decay_steps=4))
    [1.0, 1.0, 1.0, 0.5, 0.293, 0.134]
    >>> shown(InverseSquareRoot(warmup_steps=2), steps=8)
    [0.5, 1.0, 0.816, 0.707, 0.632, 0.577, 0.535, 0.5]
    >>> make_schedule(Cosine(warmup_steps=2, final=0.1), 6)(1000)
    0.1
    """
    if steps < 0:
        raise ValueError(f"steps = {steps}; a training has 0 steps or more")
    warmup = warmup_steps(settings, steps)

    def along(step: int, since: int = warmup) -> float:
        return (step - since) / (steps - since) if step < steps else 1.0

    def schedule(step: int) -> float:
        if step < 0:
            raise ValueError(f"step = {step}; a schedule is asked by the number of finished steps, 0 or more")
        if warmup > steps:
            step = min(step, steps - 1)
        if step < warmup:
            return (step + 1) / warmup
        match settings:
            case Constant():
                return 1.0
            case Cosine(final=final):
                return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * along(step)))
            case Linear(final=final):
                return final + (1 - final) * (1 - along(step))
            case WarmupStableDecay(decay_steps=decay_steps, final=final):
                falls = steps - (steps // 5 if decay_steps is None else decay_steps)
                return 1.0 if step < falls else final + (1 - final) * (1 - math.sqrt(along(step, falls)))
            case InverseSquareRoot():
                return math.sqrt(max(1, warmup) / (step + 1))

    return schedule
