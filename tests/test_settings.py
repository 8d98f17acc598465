"""Settings: what is written is what is read, and mistakes are answered."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from groundup.cli.help import describe
from groundup.errors import DataError, SettingsError
from groundup.model.settings import GroupedQuery, ModelConfig
from groundup.optim.settings import AdamW
from groundup.recipe import Recipe
from groundup.settings import Settings, differences


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
        ("shape.height=inf", "shape.height is inf; it should be a valid integer"),
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


BASE = 'name = "x"\n\n[corpus]\nsources = ["a"]\n\n[tokenizer]\nvocab_size = 320\n'  # seven lines
DEEP = 5_000

POISON = {
    "an unknown key": (BASE + "[pretrain]\nstepz = 3", "line 9: unknown setting pretrain.stepz; did you mean steps?"),
    "a key of another table": (
        "steps = 5\n" + BASE,
        "line 1: unknown setting steps; did you mean pretrain.steps?",
    ),
    "a wrong type": (BASE + '[pretrain]\n\nsteps = "many"', "line 10: pretrain.steps is 'many'"),
    "inside a list": (BASE + '[[corpus.filters]]\nkind = "length"\nmax = 1', "line 10: unknown setting corpus.filters"),
    "a negative": (BASE + "[pretrain]\nsteps = -3", "line 9: pretrain.steps is -3; it should be greater than or equal"),
    "1e309": (BASE + "[pretrain]\nclip = 1e309", "line 9: pretrain.clip is inf; it should be a finite number"),
    "nan": (BASE + "[pretrain.optimizer]\nbeta1 = nan", "line 9: pretrain.optimizer.beta1 is nan"),
    "inf in a list": (
        BASE + "[[corpus.filters]]\nkind = 'length'\nminimum = inf",
        "line 10: corpus.filters.0.minimum is inf",
    ),
    "a date": (
        BASE + "[model]\nn_heads = 2020-01-01",
        "line 9: model.n_heads is 2020-01-01; it should be",
    ),
    "an unknown kind": (BASE + "[model]\nposition.kind = 'rotory'", "line 9: model.position.kind is 'rotory'; did you"),
    "a rule over two": (BASE + "[model]\nd_model = 64\nn_heads = 3", "line 10: model: n_heads = 3 does not divide"),
    "too long a warm-up": (
        BASE + "[pretrain]\nsteps = 40\nschedule = { warmup_steps = 40 }",
        "line 10: pretrain: schedule.warmup_steps = 40, but there are only 40 steps",
    ),
    "nothing in a table": ("[corpus]\n[tokenizer]\nvocab_size = 320", "line 1: corpus.sources is not set"),
    "a name that climbs": (
        BASE.replace('"x"', '"../../etc"'),
        "line 1: name: '../../etc' cannot be the name of a folder",
    ),
    "a name that steers": (BASE.replace('"x"', '"a\\u001b[31m"'), r"name: 'a\x1b[31m' cannot be"),
    "control characters": (BASE + '[evals]\nprompts = ["\x07"]', "line 9, illegal character"),
    "no quotes": (BASE + "[pretrain]\ndevice = cpu", "line 9, invalid value: device = cpu (words stand in quotes)"),
    "a key twice": (BASE + "name = 'y'\n[corpus]", "line 9, cannot declare ('corpus',) twice: [corpus]"),
    "a value and a table": (
        BASE + "[pretrain]\noptimizer = 3\n[pretrain.optimizer]\nbeta1 = 0.5",
        "line 10, cannot overwrite a value: [pretrain.optimizer]",
    ),
    "deep arrays": (BASE + "x = " + "[" * DEEP + "]" * DEEP, "nested too deeply"),
    "rather deep arrays": (BASE + "x = " + "[" * 60 + "]" * 60, "line 8: unknown setting tokenizer.x; known here"),
    "deep tables": (BASE + "x" + ".a" * DEEP + " = 1", "line 8: unknown setting tokenizer.x; known here"),
    "deep inline tables": (BASE + "x = " + "{a=" * DEEP + "1" + "}" * DEEP, "nested too deeply"),
    "endless digits": (BASE + "[pretrain]\nsteps = " + "9" * 5_000, "a number of thousands of digits"),
    "YAML": ("name: !!python/object/apply:os.system [touch pwned]", "is not valid TOML: line 1, expected '='"),
    "another encoding": (BASE + "# \udcfc", "line 8 is not UTF-8"),
}


@pytest.mark.parametrize("what", POISON)
def test_a_poisoned_recipe_is_answered_with_its_key_and_line(tmp_path: Path, what: str) -> None:
    text, answer = POISON[what]
    (tmp_path / "recipe.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SettingsError) as caught:
        Recipe.load(tmp_path / "recipe.toml")
    assert answer in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"], "nothing was executed"


def test_a_recipe_of_nothing_but_mistakes_is_answered_quickly_and_shortly(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(BASE + "".join(f"key{number} = {number}\n" for number in range(10_000)))
    with pytest.raises(SettingsError, match=r"line 8: unknown setting tokenizer\.key0") as caught:
        Recipe.load(tmp_path / "recipe.toml")
    assert str(caught.value).endswith("\n  and 9,980 more")


def test_a_huge_recipe_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    with open(tmp_path / "recipe.toml", "wb") as stream:
        stream.truncate(100_000_000)
    with pytest.raises(SettingsError, match=r"has 100,000,000 bytes; a recipe is a few kilobytes"):
        Recipe.load(tmp_path / "recipe.toml")


@pytest.mark.parametrize(("name", "language"), [("recipe.yaml", "YAML"), ("recipe.json", "JSON")])
def test_other_languages_are_named(tmp_path: Path, name: str, language: str) -> None:
    (tmp_path / name).write_text('{"name": "x"}')
    with pytest.raises(SettingsError, match=f"By its name it is {language}; a recipe is TOML"):
        Recipe.load(tmp_path / name)


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("pretrain.steps=1e309", "override pretrain.steps=1e309: pretrain.steps is inf"),
        ("model.n_heads=5", "override model.n_heads=5: model: n_heads = 5"),
        ("a" + ".b" * DEEP + "=1", "unknown setting a; known here"),
        ("name=" + "[" * DEEP, "nested too deeply"),
        ("pretrain.steps=" + "9" * DEEP, "it should be a valid integer"),
    ],
)
def test_of_a_mistake_on_the_command_line_the_override_is_named(override: str, answer: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Recipe.load(Path("recipes/storybook.toml"), ["pretrain.seed=1", override, "model.d_ff=512"])
    assert answer in str(caught.value)
    assert "line " not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_warm_up_is_a_tenth_of_the_steps_and_at_most_100_if_not_set() -> None:
    from groundup.optim.schedule import make_schedule
    from groundup.optim.settings import Cosine

    for steps, warmup in ((9, 0), (40, 4), (1000, 100), (50_000, 100)):
        chosen, named = make_schedule(Cosine(), steps), make_schedule(Cosine(warmup_steps=warmup), steps)
        assert [chosen(step) for step in range(0, steps, 7)] == [named(step) for step in range(0, steps, 7)]


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


def test_a_bare_word_is_the_kind_with_its_defaults() -> None:
    rotary = ModelConfig.from_table({"position": "rotary"})
    assert rotary == ModelConfig.from_table({"position": {"kind": "rotary"}})
    assert rotary.override(["position=alibi"]).position.kind == "alibi"


@pytest.mark.parametrize(
    ("make", "answer"),
    [
        (lambda: ModelConfig(nheads=2), "ModelConfig:\n  unknown setting nheads; did you mean n_heads?"),
        (lambda: ModelConfig(d_model="64"), "d_model is '64'; it should be a valid integer"),
        (lambda: ModelConfig(n_heads=5), "n_heads = 5 does not divide d_model = 256; nearest number of heads: 4"),
        (lambda: ModelConfig(embedding_scale=float("nan")), "embedding_scale is nan; it should be a finite number"),
        (lambda: ModelConfig(position="rotary"), "position is 'rotary'; it should be a table, such as [position] (in"),
        (lambda: ModelConfig(attention=GroupedQuery), "(in Python GroupedQuery() or Latent())"),
        (lambda: ModelConfig(feedforward=GroupedQuery()), "feedforward.kind is 'grouped_query'; known here: experts, "),
        (
            lambda: ModelConfig(position={"kind": "rotary", "bse": 1.0}),
            "unknown setting position.bse; did you mean base?",
        ),
        (
            lambda: ModelConfig().model_copy(update={"nheads": 2}),
            "ModelConfig: unknown setting nheads; did you mean n_heads?",
        ),
        (lambda: AdamW(lr=1e-3), "AdamW:\n  unknown setting lr; "),
        (lambda: AdamW(beta1=1.0), "beta1 is 1.0; it should be less than 1"),
        (lambda: Drawing(), "name is not set and has no default"),
        (
            lambda: Drawing(name="a", more=[Box()]),
            "more is [Box(kind='box', width=2, height=None)]; it should be a valid",
        ),
        (lambda: Drawing(name="a", more=(Box(), 3)), "more.1 is 3; it should be a table"),
        (
            lambda: Drawing.from_table({"name": "a", "more": [{"radius": 1.0}]}),
            "more.0.kind is not set; known here: circle",
        ),
        (lambda: Drawing(name="lat\udce9"), "Drawing:\n  name is not UTF-8: lat\\xe9"),
        (lambda: Drawing(name="\ud800"), "name is not UTF-8: \\ud800"),
        (lambda: Drawing(name="a", shape={"kind": "lat\udce9"}), "shape.kind is 'lat"),
        (lambda: Drawing.from_table({"name": "lat\udce9"}), "settings:\n  name is not UTF-8: lat\\xe9"),
        (
            lambda: Drawing.from_table({"name": "a", "lat\udce9": 1}),
            "settings:\n  a name is 'lat\\udce9'; it should be a valid string",
        ),
        (
            lambda: Drawing.from_table({"name": "a", "more": [{"kind": "b\udcff"}]}),
            "more.0.kind is 'b",
        ),
        (
            lambda: Drawing(name="a").override(["name=lat\udce9"]),
            "override name=lat\\xe9: name is not UTF-8: lat\\xe9",
        ),
    ],
)
def test_a_mistake_in_python_is_answered_like_one_in_a_file(make: Callable[[], object], answer: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make()
    assert answer in str(caught.value)
    str(caught.value).encode()


def test_a_table_in_a_table_is_read_as_strictly_as_before() -> None:
    """JSON's arrays are tuples and its objects settings, at any depth; in Python a list is no tuple."""
    read = Drawing.from_table(
        {"name": "é 😀", "more": [{"kind": "box", "width": 3}, {"kind": "circle", "radius": 2.0}]}
    )
    assert read == Drawing(name="é 😀", more=(Box(width=3), Circle(radius=2.0)))
    recipe = Recipe.load(Path("recipes/storybook.toml"))
    assert Recipe.from_table(recipe.table()) == recipe
