"""Bits per byte and its error, on paper."""

import math

import numpy as np
import pytest

from groundup.evals.statistics import ratio


def test_two_documents_on_paper() -> None:
    """1 and 3 bits a byte, 10 bytes each: the mean is 2; √(2/1 · (10² + 10²)) / 20 = 1."""
    assert ratio(np.array([10.0, 30.0]), np.array([10, 10])) == (2.0, 1.0)


def test_for_documents_of_one_size_it_is_the_error_of_a_mean() -> None:
    bits = np.random.default_rng(0).normal(100, 20, 50)
    value, error = ratio(bits, np.full(50, 40))
    assert value == pytest.approx(bits.mean() / 40)
    assert error == pytest.approx(bits.std(ddof=1) / math.sqrt(50) / 40)


def test_a_difference_in_proportion_to_size_has_no_error() -> None:
    sizes = np.array([3, 50, 700])
    value, error = ratio(-0.25 * sizes, sizes)
    assert (value, error) == (-0.25, 0.0)


def test_one_document_has_no_error() -> None:
    assert math.isnan(ratio(np.array([8.0]), np.array([4]))[1])
