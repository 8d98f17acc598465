"""Words of `generate` and `chat`: what is a prompt, what sets how to sample, and what is neither."""

import pytest

from groundup.errors import SettingsError
from groundup.tools.generate import probability_rows, prompt_and_settings, settings_only


def test_words_are_a_prompt_and_settings() -> None:
    assert prompt_and_settings(["top_k=3", "The king"]) == ("The king", ["top_k=3"])
    assert prompt_and_settings([]) == (None, [])
    assert prompt_and_settings(["1 + 1 = 2"]) == ("1 + 1 = 2", []), "no name stands before the sign"


def test_words_that_are_neither_are_refused() -> None:
    with pytest.raises(SettingsError, match="two prompts are given, 'The' and 'king': put one in quotes"):
        prompt_and_settings(["The", "king"])
    with pytest.raises(SettingsError, match="no option --colour"):
        prompt_and_settings(["--colour"])
    with pytest.raises(SettingsError, match="'hello' is not of the form key=value"):
        settings_only(["seed=1", "hello"])


def test_a_row_has_a_token_and_the_others_it_might_have_been() -> None:
    token = {"text": " a", "probability": 0.5, "instead": [{"text": "\n", "probability": 0.25}]}
    assert probability_rows([token]) == [(" 50.0%", '" a"', '"\\n" 25.0%')]
