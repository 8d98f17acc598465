"""The shipped recipes: each says where it ran, loads, and builds at reduced size."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from groundup.building import build
from groundup.model.presets import PRESETS
from groundup.model.settings import ModelConfig
from groundup.recipe import Recipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
REDUCED = [
    "corpus.sources=['tales']", "tokenizer.kind=learned", "tokenizer.vocab_size=320", "model.context_length=16",
    "model.d_model=18", "model.n_layers=1", "model.d_ff=32", "pretrain.steps=2", "pretrain.batch_tokens=64",
    "pretrain.schedule.warmup_steps=1", "pretrain.precision=float32", "pretrain.device=cpu", "pretrain.sample_tokens=2",
    "pretrain.sample_prompt=a", "evals.prompts=['a']", "evals.sampling.max_tokens=2",
]  # fmt: skip


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_says_how_it_is_run_and_what_came_of_it(path: Path) -> None:
    header = path.read_text().split("name =")[0]
    for line in ("command   groundup build recipes/" + path.name, "machine   ", "time      ", "reached   "):
        assert f"#   {line}" in header
    if "GPU" in header:
        assert header.lower().count("not yet run") == 3


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_builds_at_reduced_size(
    path: Path, tmp_path: Path, settle: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(tmp_path)
    monkeypatch.chdir(tmp_path)
    whole = Recipe.load(path)
    heads = [f"model.n_heads={whole.model.n_heads}", f"model.n_kv_heads={whole.model.kv_heads}", "model.d_head=4"]
    built = build(path, [*REDUCED, *heads])
    assert [row.what for row in built.rows] == ["made"] * 6
    assert (built.run / "report.html").is_file()


@pytest.mark.parametrize(("recipe", "preset"), [("gpt2-124m", "gpt2"), ("smollm2-135m", "smollm2-135m")])
def test_a_published_size_is_that_of_the_preset(recipe: str, preset: str) -> None:
    ours = Recipe.load(RECIPES[0].with_name(f"{recipe}.toml")).model
    theirs = PRESETS[preset].model
    assert ours == theirs.model_copy(update={"vocab_size": None, "context_length": ours.context_length})
    assert isinstance(ours, ModelConfig)


def test_names_are_those_of_the_files() -> None:
    for path in RECIPES:
        assert re.search(r'^name = "(.*)"$', path.read_text(), re.MULTILINE)[1] == path.stem  # type: ignore[index]
