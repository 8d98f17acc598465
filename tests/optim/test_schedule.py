"""Every schedule is the drawn one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.optim.schedule import make_schedule
from groundup.optim.settings import (
    Constant,
    Cosine,
    InverseSquareRoot,
    Linear,
    Schedule,
    WarmupStableDecay,
    warmup_steps,
)


@pytest.mark.parametrize(("warmup", "steps", "final"), [(10, 100, 0.1), (0, 7, 0.0), (5, 5, 0.5)])
def test_schedule_warms_up_linearly_and_falls_as_half_a_cosine(warmup: int, steps: int, final: float) -> None:
    schedule = make_schedule(Cosine(warmup_steps=warmup, final=final), steps)
    for step in range(warmup):
        assert schedule(step) == pytest.approx((step + 1) / warmup)
    for step in range(warmup, steps):
        along = (step - warmup) / (steps - warmup)
        assert schedule(step) == pytest.approx(final + (1 - final) * (1 + math.cos(math.pi * along)) / 2)


KINDS: list[type[Schedule]] = [Constant, Cosine, Linear, WarmupStableDecay, InverseSquareRoot]


@given(kind=st.sampled_from(KINDS), steps=st.integers(1, 300), data=st.data())
def test_every_schedule_rises_to_one_and_never_leaves_what_is_between(
    kind: type[Schedule], steps: int, data: st.DataObject
) -> None:
    warmup = data.draw(st.none() | st.integers(0, steps - 1))
    options: dict[str, object] = {"warmup_steps": warmup}
    if "final" in kind.model_fields:
        options["final"] = data.draw(st.floats(0, 1))
    schedule = make_schedule(kind(**options), steps)
    factors = [schedule(step) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    top = min(100, steps // 10) if warmup is None else warmup
    assert all(earlier < later for earlier, later in zip(factors[: top - 1], factors[1:top], strict=False))
    assert all(earlier >= later for earlier, later in zip(factors[top:], factors[top + 1 :], strict=False))
    if top:
        assert factors[top - 1] == 1


@given(kind=st.sampled_from(KINDS), steps=st.integers(1, 300), beyond=st.integers(0, 10**7), data=st.data())
def test_past_its_end_a_schedule_stays_where_it_ended(
    kind: type[Schedule], steps: int, beyond: int, data: st.DataObject
) -> None:
    options: dict[str, object] = {"warmup_steps": data.draw(st.none() | st.integers(0, steps))}
    if "final" in kind.model_fields:
        options["final"] = data.draw(st.floats(0, 1))
    if kind is WarmupStableDecay:
        options["decay_steps"] = data.draw(st.none() | st.integers(0, steps))
    schedule = make_schedule(kind(**options), steps)
    end = options.get("final", 1.0)
    if kind is InverseSquareRoot:
        end = math.sqrt(max(1, warmup_steps(kind(**options), steps)) / (steps + beyond + 1))
    assert schedule(steps + beyond) == pytest.approx(end, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_warmup_longer_than_the_training_ends_with_it(kind: type[Schedule]) -> None:
    schedule = make_schedule(kind(warmup_steps=40), 10)
    assert [schedule(step) for step in (0, 9, 10, 39, 40, 41, 10**6)] == [1 / 40, *[10 / 40] * 6]


@pytest.mark.parametrize("kind", KINDS)
def test_a_negative_step_is_refused(kind: type[Schedule]) -> None:
    with pytest.raises(ValueError, match="step = -1; .* 0 or more"):
        make_schedule(kind(), 10)(-1)
    with pytest.raises(ValueError, match="steps = -5; .* 0 steps or more"):
        make_schedule(kind(), -5)


def test_a_stable_schedule_falls_in_its_last_fifth_if_not_told_when() -> None:
    schedule = make_schedule(WarmupStableDecay(warmup_steps=10, final=0.2), 100)
    assert [schedule(step) for step in range(9, 81)] == [1.0] * 72
    assert schedule(85) == pytest.approx(0.2 + 0.8 * (1 - math.sqrt(5 / 20)))


def test_inverse_square_root_is_vaswanis_but_for_the_unit() -> None:
    """lrate = d_model^−0.5 · min(step^−0.5, step · warmup^−1.5), steps counted from 1 (2017, eq. 3)."""
    warmup = 40
    schedule = make_schedule(InverseSquareRoot(warmup_steps=warmup), 1000)
    top = warmup**-0.5
    for step in range(1, 1001):
        assert schedule(step - 1) == pytest.approx(min(step**-0.5, step * warmup**-1.5) / top)
