"""Ratios of sums over documents, such as bits per byte, and their errors. Without torch."""

import math

import numpy as np
import numpy.typing as npt


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
