"""The guard: what is no number and what stands far out is bad; noise, progress and a falling loss are not."""

import json
import math
import random

import pytest

from groundup.train.guard import Guard, Trouble
from groundup.train.settings import SkipAndRollBack

SETTINGS = SkipAndRollBack(window=32, warmup_steps=16, patience=3)


def after(n: int, settings: SkipAndRollBack = SETTINGS, noise: float = 0.05) -> Guard:
    guard, draw = Guard(settings), random.Random(0)
    for _ in range(n):
        assert guard.judge(3 + draw.gauss(0, noise), math.exp(draw.gauss(0, 0.2))) is None
    return guard


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_bad_from_the_first_step_on(value: float) -> None:
    assert Guard(SETTINGS).judge(value, 1.0) == Trouble(f"the loss is {value}", value, 1.0, None, None) or math.isnan(
        value
    )
    trouble = Guard(SETTINGS).judge(3.0, value)
    assert trouble is not None
    assert trouble.seen == f"the gradient norm is {value}"


def test_a_spike_is_named_with_how_far_it_stands_out() -> None:
    guard = after(40)
    trouble = guard.judge(5.0, 1.0)
    assert trouble is not None
    assert trouble.seen.startswith("the loss is 5, ")
    assert trouble.loss_deviations == pytest.approx(2 / 0.05, rel=0.5)  # a deviation from 32 draws is rough
    norm = after(40).judge(3.0, 100.0)
    assert norm is not None
    assert norm.seen.startswith("the gradient norm is 100, ")
    both = after(40).judge(5.0, 100.0)
    assert both is not None
    assert " and the gradient norm is 100" in both.seen


def test_nothing_finite_is_a_spike_while_it_warms_up() -> None:
    guard = after(15)
    assert guard.judge(50.0, 1e6) is None
    assert after(16).judge(50.0, 1e6) is not None


def test_falling_is_never_a_spike() -> None:
    guard = after(40)
    assert guard.judge(0.1, 1e-9) is None
    assert guard.judge(-3.0, 0.0) is None


@pytest.mark.parametrize("seed", range(5))
def test_noise_and_progress_are_let_through(seed: int) -> None:
    """A loss that falls as 1/√step with normal noise; norms that vary log-normally and rise twofold."""
    guard, draw = Guard(SkipAndRollBack()), random.Random(seed)
    for step in range(1, 3000):
        loss = 2 + 5 / math.sqrt(step) + draw.gauss(0, 0.04)
        assert guard.judge(loss, math.exp(draw.gauss(0, 0.3) + 0.7 * step / 3000)) is None


def test_a_text_known_by_heart_may_move_a_little() -> None:
    guard = Guard(SETTINGS)
    for _ in range(40):
        guard.judge(2.0, 1.0)
    assert guard.judge(2.1, 2.0) is None
    assert guard.judge(2.3, 1.0) is not None


def test_bad_steps_do_not_count_among_the_good() -> None:
    guard = after(40)
    for n in range(1, 4):
        assert not guard.out_of_patience
        assert guard.judge(9.0, 1.0) is not None
        assert guard.bad_in_a_row == n
    assert guard.out_of_patience
    assert guard.judge(3.0, 1.0) is None
    assert guard.bad_in_a_row == 0


def test_an_overflow_of_a_scaled_loss_is_neither_good_nor_bad() -> None:
    guard = after(40)
    before = guard.state()
    assert guard.judge(3.0, math.inf, scaled=True) is None
    assert guard.judge(3.0, math.nan, scaled=True) is None
    assert guard.state() == before
    assert guard.judge(math.nan, 1.0, scaled=True) is not None


def test_one_that_is_read_back_judges_the_same() -> None:
    guard = after(40)
    guard.judge(9.0, 1.0)
    guard.rollbacks = 2
    again = Guard(SETTINGS)
    again.load(json.loads(json.dumps(guard.state())))
    assert again.state() == guard.state()
    for loss in (3.01, 3.5, 9.0, 2.9):
        assert again.judge(loss, 1.1) == guard.judge(loss, 1.1)
    again.load({})
    assert again.state() == Guard(SETTINGS).state()
