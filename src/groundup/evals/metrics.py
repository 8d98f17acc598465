"""Metrics: what the values of a task's items come to, with their errors. Without torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from groundup.evals.statistics import Values, bootstrap, mean_error, share_interval


@dataclass(frozen=True)
class Metric:
    """A number of all items together."""

    of: tuple[str, ...]
    """The values of an item that it is made of."""
    aggregate: Callable[[Values], float]
    """(n, values) → the number."""
    higher_is_better: bool = True


@dataclass(frozen=True)
class Measured:
    """A metric of some items."""

    value: float
    standard_error: float | None
    """None for a single item."""
    interval: tuple[float, float] | None
    """Ends of the 95 % interval."""
    items: int


def measure(metric: str, values: Sequence[Mapping[str, float]]) -> Measured | None:
    """A metric of items by their values; None where no item has them, as when every check failed to run."""
    how = metric_called(metric)
    table = table_of(how, values)
    n = len(table)
    if not n:
        return None
    value = how.aggregate(table)
    if n == 1:
        return Measured(value, None, None, 1)
    if metric in METRICS:
        return Measured(value, *bootstrap(table, how.aggregate), n)
    error = mean_error(table[:, 0])
    is_share = np.isin(table, (0, 1)).all()
    interval = share_interval(table[:, 0]) if is_share else (value - 1.96 * error, value + 1.96 * error)
    return Measured(value, error, interval, n)


def table_of(metric: Metric, values: Sequence[Mapping[str, float]]) -> Values:
    """(n, values) what a metric is made of, of the items that have it."""
    return np.array([[each[name] for name in metric.of] for each in values if metric.of[0] in each])


def metric_called(name: str) -> Metric:
    """The metric of that name: one of `METRICS`, or the mean of the items' values of that name."""
    return METRICS.get(name) or Metric((name,), lambda table: float(table.mean()))


def _correlation(table: Values) -> float:
    """Matthews' correlation of (n, 2) predicted and right classes, 0 or 1; 0 where one class is never met."""
    predicted, right = table.T
    spreads = predicted.std() * right.std()
    return float(((predicted - predicted.mean()) * (right - right.mean())).mean() / spreads) if spreads else 0.0


def _of_sums(table: Values) -> float:
    return float(table[:, 0].sum() / table[:, 1].sum())


METRICS: dict[str, Metric] = {
    "perplexity": Metric(("logprob",), lambda table: math.exp(-float(table.mean())), higher_is_better=False),
    "correlation": Metric(("predicted", "right"), _correlation),
    "bits_per_byte": Metric(("bits", "bytes"), _of_sums, higher_is_better=False),
    "byte_perplexity": Metric(("bits", "bytes"), lambda table: 2 ** _of_sums(table), higher_is_better=False),
    "word_perplexity": Metric(("bits", "words"), lambda table: 2 ** _of_sums(table), higher_is_better=False),
}
"""Those that are not the mean of a value of the same name."""
