"""The tokenizer that a path stands for."""

from pathlib import Path

import pytest

from groundup.errors import DataError, SettingsError
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tools.tokens import load_tokenizer


def test_a_run_stands_for_its_tokenizer(finished_home: Path) -> None:
    run = finished_home / "runs" / "tiny"
    assert load_tokenizer(run).tokens == Tokenizer.load(run / "tokenizer").tokens


def test_what_has_no_tokenizer_is_answered(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").touch()
    with pytest.raises(SettingsError, match=r"recipe.toml is a recipe; name what `groundup tokenizer"):
        load_tokenizer(tmp_path / "recipe.toml")
    with pytest.raises(DataError, match="has no tokenizer yet: go on with the command that began it"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "gone")
