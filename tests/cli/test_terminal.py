"""How commands are named to a person, so that they can be typed again."""

import sys
from pathlib import Path

import pytest

from groundup.cli.terminal import command, own_name


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that is found by its name."""
    path = tmp_path / "bin" / "groundup"
    path.parent.mkdir()
    path.touch(0o755)
    monkeypatch.setenv("PATH", str(path.parent))
    monkeypatch.chdir(tmp_path)
    return path


@pytest.mark.parametrize(
    ("called", "named"),
    [
        ("bin/groundup", "groundup"),
        ("other/groundup", "other/groundup"),  # is not there, or no longer: the name alone would call another
        ("src/groundup/__main__.py", "python -m groundup"),
    ],
)
def test_a_program_is_named_as_one_would_type_it(
    called: str, named: str, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (called, str(program.parents[1] / called)):
        monkeypatch.setattr(sys, "argv", [path])
        assert own_name() == named
    assert command("build", "a recipe.toml") == f"{named} build 'a recipe.toml'"
