"""The terminal: how commands are named to a person, and how a program ends that cannot go on."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from groundup.cli.terminal import command, own_name

Run = Callable[..., "subprocess.CompletedProcess[str]"]


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


def test_debug_shows_the_traceback_in_any_place(run: Run, built: Path) -> None:
    for words in (["--debug", "build", "missing.toml"], ["build", "missing.toml", "--debug"]):
        done = run(*words, cwd=built)
        assert done.returncode == 3
        assert "Traceback" in done.stderr
        assert done.stderr.endswith("recipes there: " + ", ".join(sorted(p.name for p in built.glob("*.toml"))) + "\n")


def test_on_windows_it_says_where_it_runs_instead() -> None:
    code = "import sys\nfrom groundup.cli import app as cli\nsys.platform = 'win32'\ncli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "run it under WSL 2" in done.stderr
