"""Benchmarks from the command line: asked, read again, compared; and what a mistake is answered with."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from groundup.artifacts import read_manifest
from groundup.cli.app import app
from groundup.errors import MissingError, SettingsError
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.write import save

DATA = Path(__file__).parents[2] / "../shared/data/evals"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the benchmarks' files of ../shared are not here")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two random models, a and b."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = Tokenizer.learn("the cat and the dog were seen by many of the people", vocab_size=320)
    for seed, name in enumerate("ab"):
        config = ModelConfig(vocab_size=tokenizer.vocab_size, context_length=256, d_model=32, n_layers=1)
        (folder / name).mkdir()
        save(folder / name, config, dict(Transformer(config, seed=seed).named_parameters()), tokenizer)
    return folder


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def ask(model: Path, *more: object) -> Result:
    return run("eval", model, "--tasks", "copa,lambada", "--data", DATA, "--limit", 20, *more)


@needs_data
def test_what_was_asked_is_shown_kept_and_not_asked_again(models: Path) -> None:
    shown = ask(models / "a")
    assert shown.exit_code == 0 and "20 of 100" in shown.output and "20 of 5,153" in shown.output
    kept = models / "a.benchmarks"
    made = read_manifest(kept / "copa").made
    [copa, lambada] = json.loads(ask(models / "a", "--json").output)
    assert read_manifest(kept / "copa").made == made
    assert (copa["chance"], lambada["metric"]) == (0.5, "greedy")
    low, high = copa["metrics"]["accuracy"]["interval"]
    assert low < copa["metrics"]["accuracy"]["value"] < high
    page = (kept / "report.html").read_text()
    assert "Benchmarks of a" in page and "copa" in page


@needs_data
def test_two_models_are_compared_task_by_task_and_more_are_spread(models: Path) -> None:
    for name in "ab":
        assert ask(models / name).exit_code == 0
    table = json.loads(run("compare", models / "a", models / "b", "--json").output)
    assert [each["task"] for each in table["tasks"]] == ["copa", "lambada"] and not table["task_notes"]
    assert {each["says"] for each in table["tasks"]} <= {"better", "worse", "no difference"}
    three = run("compare", models / "a", models / "b", models / "a")
    assert three.exit_code == 0 and "deviation" in three.output


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (["--tasks", "hellswag"], SettingsError, "no task 'hellswag'; did you mean hellaswag?"),
        (["--tasks", "hellaswag"], MissingError, "get it from"),
        (["--tasks", "blimp", "limt=3"], SettingsError, "limt"),
        (["--suite", "core", "--run", "x"], SettingsError, "take a model"),
    ],
)
def test_a_mistake_is_answered_before_a_model_is_loaded(
    tmp_path: Path, words: list[str], error: type[Exception], says: str
) -> None:
    failed = run("eval", tmp_path / "no-model", *words, "--data", tmp_path)
    assert isinstance(failed.exception, error) and says in str(failed.exception)


def test_a_model_without_results_says_how_to_get_some(models: Path, tmp_path: Path) -> None:
    (models / "a").rename(tmp_path / "c")
    failed = run("compare", tmp_path / "c", models / "b")
    (tmp_path / "c").rename(models / "a")
    assert "has no results: run `groundup eval" in str(failed.exception)
