"""The guard: which steps are good enough to be taken, and where to go back to. It reads and writes no files.

A step is bad when its loss or gradient norm is not a finite number, or when one of them is a spike: far above the
median of the last good steps, in robust deviations (1.4826 × the median absolute deviation, which for a normal
distribution is its standard deviation). The norm is compared by its logarithm, because norms vary by factors. Falling
is never bad.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from groundup.train.settings import SkipAndRollBack

LEAST_LOSS_DEVIATION = 0.01
"""Share of the median: where the loss hardly moves, as in overfitting, one percent more is no surprise."""
LEAST_LOG_NORM_DEVIATION = 0.15
"""Least deviation of the norm's logarithm: at twelve deviations a factor of six."""


@dataclass(frozen=True)
class Trouble:
    """Why a step is bad."""

    seen: str
    """Such as `the loss is nan`."""
    loss: float
    grad_norm: float
    loss_deviations: float | None
    """How far above the median of the window; None where nothing was compared."""
    grad_norm_deviations: float | None


class Guard:
    """Judges the steps of one run, one after another."""

    def __init__(self, settings: SkipAndRollBack) -> None:
        self.settings = settings
        self.rollbacks = 0
        """How often the run went back."""
        self.bad_in_a_row = 0
        self._losses: deque[float] = deque(maxlen=settings.window)
        self._log_norms: deque[float] = deque(maxlen=settings.window)

    def judge(
        self, loss: float, grad_norm: float, scaled: bool = False, agree: Callable[[bool], bool] = bool
    ) -> Trouble | None:
        """Say what is wrong with a step before it is taken. A good one is remembered and ends a row of bad ones.

        Args:
            scaled: the loss was scaled, so an infinite gradient is the scaler's business: it leaves the step out and
                lowers the scale. Such a step is neither good nor bad.
            agree: whether a step that is good here is good on every rank.
        """
        if scaled and math.isfinite(loss) and not math.isfinite(grad_norm):
            return None
        trouble = self._trouble(loss, grad_norm)
        if not agree(trouble is None):
            trouble = trouble or Trouble("another rank found it bad", loss, grad_norm, None, None)
            self.bad_in_a_row += 1
            return trouble
        self.bad_in_a_row = 0
        self._losses.append(loss)
        self._log_norms.append(_log(grad_norm))
        return None

    @property
    def out_of_patience(self) -> bool:
        """Whether leaving out steps has not helped."""
        return self.bad_in_a_row >= self.settings.patience

    @property
    def may_go_back(self) -> bool:
        return self.rollbacks < self.settings.rollbacks

    def goal(self, steps: Iterable[int], number: int) -> int | None:
        """Which of the checkpoints after these steps to go back to from step `number`; None for the beginning."""
        first_bad = number - self.bad_in_a_row + 1
        before = [step for step in steps if step < first_bad]
        old_enough = [step for step in before if step < first_bad - self.settings.steps_back]
        return max(old_enough, default=min(before, default=None))

    def state(self) -> dict[str, Any]:
        """All that it remembers, as JSON values that are read back to the last bit."""
        return {
            "losses": list(self._losses),
            "log_norms": list(self._log_norms),
            "bad_in_a_row": self.bad_in_a_row,
            "rollbacks": self.rollbacks,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Remember what another guard's `state()` says; an empty one makes this a new guard."""
        self._losses = deque(state.get("losses", ()), self.settings.window)
        self._log_norms = deque(state.get("log_norms", ()), self.settings.window)
        self.bad_in_a_row = state.get("bad_in_a_row", 0)
        self.rollbacks = state.get("rollbacks", 0)

    def _trouble(self, loss: float, grad_norm: float) -> Trouble | None:
        for name, value in (("the loss", loss), ("the gradient norm", grad_norm)):
            if not math.isfinite(value):
                return Trouble(f"{name} is {value}", loss, grad_norm, None, None)
        if len(self._losses) < self.settings.warmup_steps:
            return None
        median = statistics.median(self._losses)
        of_loss = _deviations(loss, self._losses, LEAST_LOSS_DEVIATION * abs(median))
        of_norm = _deviations(_log(grad_norm), self._log_norms, LEAST_LOG_NORM_DEVIATION)
        spikes = []
        if of_loss > self.settings.loss_deviations:
            spikes.append(f"the loss is {loss:.4g}, {of_loss:.1f} deviations above the median of {median:.4g}")
        if of_norm > self.settings.grad_norm_deviations:
            usual = math.exp(statistics.median(self._log_norms))
            spikes.append(
                f"the gradient norm is {grad_norm:.4g}, {of_norm:.1f} deviations above the median of {usual:.4g}"
            )
        if not spikes:
            return None
        return Trouble(" and ".join(spikes), loss, grad_norm, of_loss, of_norm)


def _deviations(value: float, before: "deque[float]", least: float) -> float:
    """
    >>> _deviations(5.0, deque([1.0, 2.0, 3.0]), 0.0) == 3.0 / 1.4826
    True
    """
    median = statistics.median(before)
    deviation = 1.4826 * statistics.median(abs(other - median) for other in before)
    return (value - median) / max(deviation, least, 1e-12)


def _log(norm: float) -> float:
    return math.log(max(norm, 1e-30))  # a gradient of zero has no logarithm


def with_range(ranges: Iterable[list[int]], first: int, last: int) -> list[list[int]]:
    """Ranges [first, last) in order with one more among them; those that touch become one.

    >>> with_range([[0, 4], [8, 12]], 4, 6)
    [[0, 6], [8, 12]]
    """
    joined: list[list[int]] = []
    for begin, end in sorted([*ranges, [first, last]]):
        if joined and begin <= joined[-1][1]:
            joined[-1] = [joined[-1][0], max(joined[-1][1], end)]
        else:
            joined.append([begin, end])
    return joined
