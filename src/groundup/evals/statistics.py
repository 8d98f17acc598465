"""Means and ratios over items and documents: their errors, intervals, and tests of differences. Without torch."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


def ratio(bits: npt.NDArray[np.float64], n_bytes: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Σ bits / Σ bytes, and its standard error over documents by linearisation (Cochran 1977, eq. 2.45).

    Of the differences of two models' bits for the same documents it gives the paired difference. The error of
    a single document is NaN.
    """
    total, n = float(n_bytes.sum()), len(bits)
    value = float(bits.sum()) / total
    spread = float(((bits - value * n_bytes) ** 2).sum()) * n / (n - 1) if n > 1 else math.nan
    return value, math.sqrt(spread) / total


RESAMPLES = 1000
"""Enough for the ends of a 95 % interval to two digits."""
FEWEST_DOCUMENTS = 10
"""Resampling fewer says too little about other documents."""


def interval(above: npt.NDArray[np.int64], below: npt.NDArray[np.int64]) -> tuple[float, float] | None:
    """Ends of the 95 % interval of Σ above / Σ below, by resampling documents with replacement (Efron 1979, the
    percentile method). The draws are always the same. None for fewer than `FEWEST_DOCUMENTS`.
    """
    n = len(above)
    if n < FEWEST_DOCUMENTS:
        return None
    random = np.random.default_rng(0)
    ratios = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        drawn = random.integers(0, n, n)
        ratios[number] = above[drawn].sum() / below[drawn].sum()
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def mean_error(values: Values) -> float:
    """The standard error of the mean of independent items: standard deviation / √n; NaN for a single one."""
    if len(values) < 2:
        return math.nan
    squares = np.add.accumulate((values - values.mean()) ** 2)  # in turn, to the last digit of lm-evaluation-harness
    return math.sqrt(float(squares[-1]) / (len(values) - 1)) / math.sqrt(len(values))


def share_interval(outcomes: Values) -> tuple[float, float]:
    """Ends of the 95 % interval of the probability of a 1, of (n,) outcomes that are 0 or 1.

    The exact interval of Stevens 1950 (Biometrika 37): of the possible ends for so many successes, which lie at most
    one success apart, a draw chooses, so that it holds the truth in 95 % of cases; without it, no interval can at
    every n and p. The draw is made from the order of the outcomes, so it is always the same for the same ones.
    """
    n, successes = len(outcomes), int(outcomes.sum())
    draw = int.from_bytes(hashlib.sha256(outcomes.astype(np.int8).tobytes()).digest()[:6], "big") / (1 << 48)
    low, high = (_end(n, successes, draw, tail) for tail in (0.975, 0.025))
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)


def _end(n: int, successes: int, draw: float, tail: float) -> float:
    """The probability at which fewer successes than these, and a share `draw` of as many, together have `tail`."""
    log_ways = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(successes + 1)]
    k, ways = np.arange(successes + 1), np.array(log_ways)
    weights = np.ones(successes + 1)
    weights[-1] = draw
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        below = float(np.exp(ways + k * math.log(middle) + (n - k) * math.log1p(-middle)) @ weights)
        low, high = (middle, high) if below > tail else (low, middle)
    return (low + high) / 2


def bootstrap(values: Values, aggregate: Callable[[Values], float]) -> tuple[float, tuple[float, float]]:
    """Standard error, and ends of the 95 % interval, of what `aggregate` makes of (n, …) values of independent items,
    by resampling them (Efron 1979); the draws are always the same."""
    random, n = np.random.default_rng(0), len(values)
    resampled = np.array([aggregate(values[random.integers(0, n, n)]) for _ in range(RESAMPLES)])
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(resampled.std(ddof=1)), (float(low), float(high))


@dataclass(frozen=True)
class Difference:
    """The paired difference of two models on the same items."""

    value: float
    """Of the second's mean less the first's."""
    interval: tuple[float, float]
    """Ends of its 95 % interval."""
    p: float
    """Probability of one as large, either way, were the models equally good."""


def paired_difference(
    first: Values, second: Values, aggregate: Callable[[Values], float], is_mean: bool = True
) -> Difference:
    """Compare what `aggregate` makes of two models' (n, values) on the same n items, in the same order.

    p is of McNemar's exact test where the values are a mean of outcomes 0 and 1; else of a permutation test that
    exchanges the models' values of items at random. The interval is by resampling items, both models' together.
    """
    value = aggregate(second) - aggregate(first)
    width = first.shape[1]
    both = np.hstack([first, second])

    def difference(drawn: Values) -> float:
        return aggregate(drawn[:, width:]) - aggregate(drawn[:, :width])

    if is_mean and np.isin(both, (0, 1)).all():
        gained = (second - first)[:, 0]
        p = mcnemar(int((gained > 0).sum()), int((gained < 0).sum()))
    else:
        random, exchanged = np.random.default_rng(0), np.hstack([second, first])
        swaps = (random.random((len(both), 1)) < 0.5 for _ in range(RESAMPLES))
        at_least = sum(abs(difference(np.where(swap, exchanged, both))) >= abs(value) * (1 - 1e-9) for swap in swaps)
        p = (1 + at_least) / (1 + RESAMPLES)
    return Difference(value, bootstrap(both, difference)[1], float(p))


def mcnemar(better: int, worse: int) -> float:
    """Two-sided p of McNemar's exact test: of the items on which two models differ, one is better on so many.

    >>> mcnemar(8, 2), mcnemar(5, 5)
    (0.109375, 1.0)
    """
    n = better + worse
    tail = sum(math.comb(n, k) for k in range(min(better, worse) + 1))
    return min(1.0, float(2 * tail / 2**n))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p of each test when all are looked at together (Holm 1979): none that is true is refused, in 95 % of cases, if
    only those below 0.05 are believed.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted, least = dict[str, float](), 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda pair: pair[1])):
        least = max(least, min(1.0, p * (len(p_values) - rank)))
        adjusted[name] = least
    return adjusted
