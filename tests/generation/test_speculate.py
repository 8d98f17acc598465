"""Guesses change no answer, whoever makes them."""

import pytest

from groundup.errors import SettingsError
from groundup.generation.engine import Engine, Proposes, Request
from groundup.generation.settings import Sampling
from groundup.generation.speculate import Draft, PromptLookup, draft_for
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer


def answers(model: Transformer, proposer: Proposes | None, **sampling: object) -> tuple[list[list[int]], int]:
    """Those to three prompts, and the steps that they took."""
    engine, steps = Engine(model, proposer=proposer, cache_tokens=200), 0
    settings = Sampling.from_table({"max_tokens": 30, **sampling})
    requests = [engine.submit(ids, settings) for ids in ([5, 6, 7], [8, 9] * 6, [*range(15)])]
    while not engine.is_idle:
        engine.step()
        steps += 1
    assert engine.schedule.pages.held == 0
    return [request.answer for request in requests], steps


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 5, "seed": 3},
        {"temperature": 1.0, "repetition_penalty": 1.3, "frequency_penalty": 0.2},
    ],
)
def test_guesses_change_no_answer(config: ModelConfig, sampling: dict[str, object]) -> None:
    model = Transformer(config, seed=1).eval()
    plain, steps = answers(model, None, **sampling)
    for proposer in (PromptLookup(), Draft(model), Draft(Transformer(config, seed=2).eval(), most=2)):
        guessed, fewer = answers(model, proposer, **sampling)
        assert guessed == plain and fewer <= steps


def test_a_draft_that_is_right_saves_most_steps(config: ModelConfig) -> None:
    model = Transformer(config, seed=1).eval()
    (_, steps), (_, fewer) = (answers(model, each, temperature=0.0) for each in (None, Draft(model)))
    assert fewer < steps / 2


def test_what_came_before_is_looked_up() -> None:
    def guess(ids: list[int], most: int = 8) -> list[int]:
        return PromptLookup().propose([Request(ids)], [most])[0]

    assert guess([1, 2, 3, 9, 1, 2, 3, 4, 5, 2, 3]) == [4, 5, 2, 3], "the last time that it came, the longest match"
    assert guess([1, 2, 3, 9, 1, 2, 3]) == [9, 1, 2, 3]
    assert guess([1, 2, 3, 9, 1, 2, 3], most=2) == [9, 1] and guess([1, 1], most=0) == []
    assert guess([1, 2, 3]) == guess([1]) == []


def test_a_draft_with_another_vocabulary_is_refused(llama: ModelConfig) -> None:
    with pytest.raises(SettingsError, match="the draft has 320 ids, the model 97"):
        draft_for(Transformer(llama), Transformer(llama.with_vocabulary(320)))
