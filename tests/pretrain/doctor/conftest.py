"""A recipe on real text, its first stages made by the doctor himself."""

from collections.abc import Callable
from pathlib import Path

import pytest

from groundup.building import examine
from groundup.pretrain.doctor import run as doctor
from groundup.pretrain.doctor.run import Subject
from groundup.recipe import Recipe

TALES = """
name = "tales"

[corpus]
sources = ["tales"]

[tokenizer]
vocab_size = 512

[model]
context_length = 32
d_model = 32
n_layers = 3
n_heads = 2
d_ff = 64
feedforward = "relu"

[pretrain]
steps = 400
batch_tokens = 512
device = "cpu"
precision = "float32"
optimizer = { learning_rate = 5e-3 }
"""


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, story_texts: list[str]) -> Path:
    place: Path = tmp_path_factory.mktemp("doctor")
    (place / "tales").mkdir()
    for number, text in enumerate(story_texts[:120]):
        (place / "tales" / f"{number:03}.txt").write_text(text[:1500])
    (place / "tales.toml").write_text(TALES)
    list(examine(place / "tales.toml", run=place / "run", only_quick=True, say=lambda told: None))
    return place


@pytest.fixture
def subject_of(home: Path) -> Callable[..., Subject]:
    """A function from overrides to what is examined."""

    def prepare(*overrides: str) -> Subject:
        chosen = Recipe.load(home / "tales.toml", overrides)
        return doctor.prepare(chosen.model, chosen.pretrain, home / "run")

    return prepare


@pytest.fixture
def subject(subject_of: Callable[..., Subject]) -> Subject:
    return subject_of()
