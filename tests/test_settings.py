"""Settings: what is written is what is read, and mistakes are answered."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from groundup.errors import DataError, SettingsError
from groundup.recipe import Recipe
from groundup.settings import Settings, describe, differences


class Circle(Settings):
    kind: Literal["circle"] = "circle"
    radius: float = 1.0


class Box(Settings):
    kind: Literal["box"] = "box"
    width: int = 2
    height: int | None = None


class Drawing(Settings):
    name: str
    shape: Annotated[Circle | Box, Field(discriminator="kind")] = Circle()
    more: tuple[Annotated[Circle | Box, Field(discriminator="kind")], ...] = ()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "drawing.toml"
    path.write_text('name = "a"\nmore = [{ kind = "box", width = 3 }]\n[shape]\nkind = "box"\nheight = 5\n')
    return path


def test_toml_round_trip_is_the_identity(file: Path, tmp_path: Path) -> None:
    drawing = Drawing.load(file)
    (tmp_path / "again.toml").write_text(drawing.to_toml())
    assert Drawing.load(tmp_path / "again.toml") == drawing


def test_shipped_recipe_survives_the_round_trip(tmp_path: Path) -> None:
    recipe = Recipe.load(Path("recipes/storybook.toml"))
    (tmp_path / "again.toml").write_text(recipe.to_toml())
    assert Recipe.load(tmp_path / "again.toml") == recipe


def test_overrides_win_and_bare_words_are_strings(file: Path) -> None:
    drawing = Drawing.load(file, ["name=moon", "shape.width=7"])
    assert (drawing.name, drawing.shape) == ("moon", Box(width=7, height=5))


def test_a_new_kind_drops_the_other_arms_fields(file: Path) -> None:
    assert Drawing.load(file, ["shape.kind=circle", "shape.radius=2.5"]).shape == Circle(radius=2.5)


def test_a_table_without_kind_means_the_default_arm() -> None:
    assert Drawing.from_table({"name": "a", "shape": {"radius": 3.0}}).shape == Circle(radius=3.0)


def test_settings_are_frozen(file: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        Drawing.load(file).name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("shape.widht=1", "unknown setting shape.widht; did you mean width?"),
        ("nmae=x", "unknown setting nmae; did you mean name?"),
        ("shape.kind=circel", "shape.kind is 'circel'; did you mean circle?"),
        ("shape.width=wide", "shape.width is 'wide'; it should be a valid integer"),
        ("shape.width=1.5", "shape.width is 1.5"),
        ("shape.width='3'", "shape.width is '3'"),
        ("shape.kind.x=1", "kind is the value 'box', not a table"),
        ("shape.kind", "is not of the form dotted.key=value"),
        ("shape.height=inf", "shape.height is inf; it must be a finite number"),
    ],
)
def test_a_mistake_is_named_with_its_path_value_and_remedy(file: Path, override: str, answer: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Drawing.load(file, [override])
    assert answer in str(caught.value)


def test_a_mistake_inside_a_list_is_named(file: Path) -> None:
    file.write_text('name = "a"\nmore = [{ kind = "box", widht = 3 }]')
    with pytest.raises(SettingsError, match=r"unknown setting more\.0\.widht; did you mean width"):
        Drawing.load(file)


def test_broken_toml_and_missing_files_are_answered(file: Path, tmp_path: Path) -> None:
    file.write_text("name = ")
    with pytest.raises(SettingsError, match="not valid TOML"):
        Drawing.load(file)
    with pytest.raises(DataError, match=r"no recipe file .*drawing\.toml"):
        Drawing.load(tmp_path / "missing.toml")


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
        ("name=../up", "name is '../up'"),
        ("pretrain.batch_tokens=1000", "is not a multiple of model.context_length = 256; nearest: 768, 1,024"),
        ("evals.sampling.seed=99999999999999999999", "evals.sampling.seed is 99999999999999999999"),
        ("corpus.unicode=none", "corpus.unicode is 'none'; it should be a table"),
        ("shards.width=2", "unknown setting shards.width; nothing can be set here"),
        ("pretrain.steps=1e309", "pretrain.steps is inf"),
        ("pretrain.precision=fp8", "pretrain.precision is 'fp8'"),
    ],
)
def test_recipe_mistakes_are_answered(override: str, answer: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Recipe.load(Path("recipes/storybook.toml"), [override])
    assert answer in str(caught.value)


def test_differences_name_what_changed_with_both_values() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 3}}) == {"a.c": (2, None), "a.d": (None, 3)}


def test_every_setting_of_a_recipe_is_described_in_a_sentence() -> None:
    rows = list(describe(Recipe))
    names = [name for name, _, _ in rows]
    assert {"corpus.sources", "model.position.kind", "model.position.base", "pretrain.optimizer.learning_rate"} <= {
        *names
    }
    assert [name for name, _, text in rows if not text.endswith(".")] == []


def test_described_defaults_are_the_defaults() -> None:
    shown = {name: default for name, default, _ in describe(Drawing)}
    assert shown["shape.kind"] == '"circle"'
    assert shown["shape.radius"] == "1.0"
    assert shown["name"] == ""
