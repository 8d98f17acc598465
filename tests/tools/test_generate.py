"""Words of `generate` and `chat`: what is a prompt, what sets how to sample, and what is neither."""

import pytest

from groundup.errors import SettingsError
from groundup.generation.settings import Sampling
from groundup.tools.generate import probability_rows, prompt_and_settings, sampling_with


def test_words_are_a_prompt_and_settings() -> None:
    assert prompt_and_settings(["top_k=3", "The king"]) == ("The king", ["top_k=3"])
    assert prompt_and_settings([]) == (None, [])
    for prompt in ("1 + 1 = 2", "x=3", "name=Ada", "def f(seed=1):"):
        assert prompt_and_settings([prompt, "seed=1"]) == (prompt, ["seed=1"]), "no setting is called so"


def test_every_stop_counts() -> None:
    stops = ["--stop", "END", "--stop=the king", 'stop=["\\n", "."]']
    sampling = sampling_with(Sampling(stop=("its own",)), prompt_and_settings(stops)[1])
    assert sampling.stop == ("END", "the king", "\n", ".")
    assert sampling_with(Sampling(stop=("its own",)), ["seed=3"]) == Sampling(stop=("its own",), seed=3)


def test_words_that_are_neither_are_refused() -> None:
    with pytest.raises(SettingsError, match="two prompts are given, 'The' and 'king': put one in quotes"):
        prompt_and_settings(["The", "king"])
    with pytest.raises(SettingsError, match="no option --colour"):
        prompt_and_settings(["--colour"])
    with pytest.raises(SettingsError, match=r"unknown setting temprature; did you mean temperature\? A prompt that"):
        prompt_and_settings(["temprature=1"])


def test_a_row_has_a_token_and_the_others_it_might_have_been() -> None:
    token = {"text": " a", "probability": 0.5, "instead": [{"text": "\n", "probability": 0.25}]}
    assert probability_rows([token]) == [(" 50.0%", '" a"', '"\\n" 25.0%')]
