"""Advice on a vocabulary: for the model of a recipe, or for one of a size."""

from pathlib import Path

import pytest

from groundup.errors import SettingsError
from groundup.files import no_progress
from groundup.recipe import Recipe
from groundup.tools.advise import advise_on


def test_the_advice_is_for_the_recipes_model(finished_home: Path) -> None:
    recipe = finished_home / "tiny.toml"
    advice = advise_on([str(finished_home / "tales")], recipe=recipe, size=None, largest=512, progress=no_progress)
    assert advice.model == Recipe.load(recipe).model.with_vocabulary(advice.vocab_size)


def test_a_recipe_and_a_size_are_refused_together() -> None:
    with pytest.raises(SettingsError, match="both set the size: give one of them"):
        advise_on(["tales"], recipe=Path("tiny.toml"), size="3M", largest=512, progress=no_progress)
