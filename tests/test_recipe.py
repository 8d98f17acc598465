"""Recipes: mistakes are answered; each shipped one says where it ran, loads, and builds at reduced size."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from groundup.building import build
from groundup.errors import SettingsError
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


def test_shipped_recipe_survives_the_round_trip(tmp_path: Path) -> None:
    recipe = Recipe.load(Path("recipes/storybook.toml"))
    (tmp_path / "again.toml").write_text(recipe.to_toml())
    assert Recipe.load(tmp_path / "again.toml") == recipe


def test_overriding_a_kind_with_itself_drops_nothing() -> None:
    recipe = Recipe.load(Path("recipes/storybook.toml"), ["model.position.base=500.0", "model.position.kind=rotary"])
    assert recipe.model.position.base == 500.0


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        (
            "pretrain.optimizer.learning_rat=1",
            "unknown setting pretrain.optimizer.learning_rat; did you mean learning_",
        ),
        ("tokenizer.vocab_size=200", "nearest: 320"),
        ("tokenizer.vocab_size=5000", "nearest: 4992"),
        ("model.n_heads=5", "n_heads = 5 does not divide d_model = 192"),
        ("model.n_kv_heads=2", "n_kv_heads = 2 does not divide n_heads = 3"),
        ("model.vocab_size=512", "set tokenizer.vocab_size instead"),
        ("corpus.sources=[]", "names no file or folder"),
        ("corpus.encoding=klingon", "'klingon' is not an encoding"),
        ("name=../up", "'../up' cannot be the name of a folder"),
        (
            "pretrain.batch_ramp={start_tokens=100, steps=5}",
            "pretrain.batch_ramp.start_tokens = 100 is not a multiple of model.context_length = 256; nearest: 256",
        ),
        (
            "pretrain.batch_ramp={start_tokens=999936, steps=5}",
            "batch_ramp.start_tokens = 999,936 is not less than batch_tokens = ",
        ),
        ("pretrain={steps=9, compile=true, batch_ramp={start_tokens=256, steps=5}}", "each would be compiled anew"),
        ("pretrain={steps=9, base_width=64}\nmodel.block.norm=after", "no norm stands before the head"),
        (
            "pretrain.schedule={kind='warmup_stable_decay', decay_steps=999999}",
            "schedule.decay_steps = 999,999, but after the warm-up only",
        ),
        ("pretrain.batch_tokens=1000", "is not a multiple of model.context_length = 256; nearest: 768, 1,024"),
        ("evals.sampling.seed=99999999999999999999", "evals.sampling.seed is 99999999999999999999"),
        ("corpus.unicode=3", "corpus.unicode is 3; it should be a table"),
        ("corpus.unicode=nfx", "corpus.unicode.kind is 'nfx'"),
        ("shards.width=2", "unknown setting shards.width; nothing can be set here"),
        ("pretrain.steps=1e309", "pretrain.steps is inf"),
        ("pretrain.precision=fp8", "pretrain.precision.kind is 'fp8'"),
        ("pretrain.loss={kind='multi_token', extra_tokens=256}", "extra_tokens = 256, but rows have 256 tokens"),
        ("model.head.kind=scalar", "model.head.kind = 'scalar', but pretraining predicts tokens"),
    ],
)
def test_recipe_mistakes_are_answered(override: str, answer: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Recipe.load(Path("recipes/storybook.toml"), override.split("\n"))
    assert answer in str(caught.value)
