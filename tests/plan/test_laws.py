"""The laws against numbers that their papers print."""

import pytest

from groundup.plan import laws


@pytest.mark.parametrize(
    ("parameters", "tokens"),
    # Hoffmann et al. 2022, table 3: what is optimal for a budget, by their first approach
    [(400e6, 8.0e9), (1e9, 20.2e9), (10e9, 205.1e9)],
)
def test_twenty_tokens_a_parameter_is_the_papers_table(parameters: float, tokens: float) -> None:
    assert tokens / parameters == pytest.approx(laws.TOKENS_PER_PARAMETER, rel=0.05)


def test_the_best_size_for_a_budget_is_near_hoffmanns() -> None:
    """At the budget of table 3's 1B row, 1.21e20 operations, between two thirds and twice as large as theirs."""
    sizes = [1e9 * 1.05**n for n in range(-60, 60)]
    best = min(sizes, key=lambda size: laws.loss(size, 1.21e20 / 6 / size, float("inf")))
    assert 0.66e9 < best < 2e9


def test_four_readings_are_nearly_as_good_as_new_text_and_a_hundred_are_not() -> None:
    """Muennighoff et al. 2023, section 6."""
    assert laws.effective_tokens(4e6, 1e6) > 0.9 * 4e6
    assert laws.effective_tokens(100e6, 1e6) < 0.2 * 100e6
    assert laws.effective_tokens(0.5e6, 1e6) == 0.5e6


def test_batch_and_learning_rate_of_deepseek_7b() -> None:
    """DeepSeek LLM 2024, section 2.3: 7B on 2T tokens was trained with 2,304 rows of 4,096 and 4.2e-4."""
    flops = 6 * 6.9e9 * 2e12
    assert laws.batch_tokens(flops) == pytest.approx(2304 * 4096, rel=0.2)
    assert laws.learning_rate(flops) == pytest.approx(4.2e-4, rel=0.2)
