"""Bits per byte as a ratio of sums over documents, and how sure it is. Without torch."""

import math

import numpy as np
import numpy.typing as npt


def ratio(bits: npt.NDArray[np.float64], n_bytes: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Σ bits / Σ bytes, and its standard error over documents by linearisation (Cochran 1977, eq. 2.45).

    With the bits that one model needs less the bits that another needs for the same documents, it is their paired
    difference. The error of one document is NaN.
    """
    total, n = float(n_bytes.sum()), len(bits)
    value = float(bits.sum()) / total
    spread = float(((bits - value * n_bytes) ** 2).sum()) * n / (n - 1) if n > 1 else math.nan
    return value, math.sqrt(spread) / total
