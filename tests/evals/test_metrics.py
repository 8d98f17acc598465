"""Metrics against values worked out by hand."""

import math

import numpy as np
import pytest

from groundup.evals.items import Choice, Likelihood, Passage, grade_choice, grade_passage
from groundup.evals.metrics import measure


def found(*logprobs: float) -> list[Likelihood]:
    return [Likelihood(each, each > -1) for each in logprobs]


def test_each_metric_picks_by_its_own_rule() -> None:
    ask = Choice(("c",) * 3, ("ab", "äbcdef", "a"), (1,))
    values = grade_choice(ask, found(-3.0, -6.0, -2.0), found(-3.5, -9.0, -2.0))
    assert values["accuracy"] == 0.0, "the third is likeliest"
    assert values["accuracy_per_character"] == 1.0, "-6 / 6 characters is more than -3 / 2 and -2 / 1"
    assert values["accuracy_per_byte"] == 1.0
    assert values["accuracy_over_prior"] == 1.0, "its context gains it 3"
    shares = [math.exp(-3), math.exp(-6), math.exp(-2)]
    assert values["right_share"] == pytest.approx(shares[1] / sum(shares))


def test_of_equal_scores_the_first_counts() -> None:
    tie = Choice(("c", "c"), ("x", "y"), (0,))
    assert grade_choice(tie, found(-1.0, -1.0))["accuracy"] == 1.0


def test_passages_are_counted_by_the_original() -> None:
    values = [grade_passage(Passage("a b", "a  bé"), found(-math.log(2), -2 * math.log(2)))]
    assert values[0] == {"bits": pytest.approx(3.0), "bytes": 6, "words": 2}
    per_byte, per_word = measure("bits_per_byte", values), measure("word_perplexity", values)
    assert per_byte and per_word
    assert (per_byte.value, per_word.value) == (pytest.approx(0.5), pytest.approx(2**1.5))
    assert per_byte.interval is None, "of a single item there is none"


def test_correlation_equals_matthews_formula() -> None:
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, 200)
    predicted = np.where(rng.random(200) < 0.7, right, 1 - right)
    tp, tn = int((right & predicted).sum()), int(((1 - right) & (1 - predicted)).sum())
    fp, fn = int(((1 - right) & predicted).sum()), int((right & (1 - predicted)).sum())
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    values = [{"predicted": float(p), "right": float(r)} for p, r in zip(predicted, right, strict=True)]
    measured = measure("correlation", values)
    assert measured and measured.value == pytest.approx(expected)
    assert measured.interval and measured.interval[0] < expected < measured.interval[1]


def test_without_a_value_there_is_no_metric() -> None:
    assert measure("accuracy", [{}, {}]) is None
