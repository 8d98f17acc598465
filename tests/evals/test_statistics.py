"""Bits per byte and its error, on paper."""

import math

import numpy as np
import pytest

from groundup.evals.statistics import bootstrap, holm, mcnemar, mean_error, paired_difference, ratio, share_interval


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


@pytest.mark.parametrize(("n", "p"), [(100, 0.05), (100, 0.5), (164, 0.95), (1000, 0.3)])
def test_intervals_of_shares_hold_the_truth_in_95_of_100_cases(n: int, p: float) -> None:
    rng = np.random.default_rng(n)
    held = 0
    for _ in range(TRIALS):
        low, high = share_interval((rng.random(n) < p).astype(float))
        held += low <= p <= high
    assert abs(held / TRIALS - 0.95) < 0.01 + 3 * math.sqrt(0.95 * 0.05 / TRIALS)


TRIALS = 600


def test_an_interval_lies_about_the_share_and_reaches_the_ends_where_all_are_alike() -> None:
    assert share_interval(np.zeros(100))[0] == 0.0 and share_interval(np.ones(100))[1] == 1.0
    low, high = share_interval(np.repeat([0.0, 1.0], 500))
    assert 0.46 < low < 0.5 < high < 0.54


def test_mcnemar_equals_counting_every_outcome() -> None:
    for better, worse in ((8, 2), (3, 0), (5, 5), (1, 9)):
        n = better + worse
        as_far = [k for k in range(n + 1) if abs(k - n / 2) >= abs(better - n / 2)]
        assert mcnemar(better, worse) == pytest.approx(sum(math.comb(n, k) for k in as_far) / 2**n)


def test_paired_tests_see_a_difference_and_are_calm_without_one() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(300, 1))
    better = first + rng.normal(0.3, 1, size=(300, 1))
    same = first + rng.normal(0.0, 1, size=(300, 1))
    mean = lambda drawn: float(drawn.mean())  # noqa: E731 (the aggregate under test)
    found, none = (paired_difference(first, other, mean) for other in (better, same))
    assert found.p < 0.01 and found.interval[0] > 0
    assert none.p > 0.05 and none.interval[0] < 0 < none.interval[1]
    assert found.value == pytest.approx(float((better - first).mean()))


def test_the_bootstrap_of_a_mean_has_the_mean_s_error() -> None:
    values = np.random.default_rng(1).normal(size=500)
    error, (low, high) = bootstrap(values, lambda drawn: float(drawn.mean()))
    assert error == pytest.approx(mean_error(values), rel=0.1)
    assert high - low == pytest.approx(2 * 1.96 * mean_error(values), rel=0.1)


def test_holm_s_correction_is_never_below_the_p_and_keeps_the_order() -> None:
    p = {"a": 0.001, "b": 0.02, "c": 0.04, "d": 0.9}
    adjusted = holm(p)
    assert adjusted == {"a": 0.004, "b": 0.06, "c": 0.08, "d": 0.9}
