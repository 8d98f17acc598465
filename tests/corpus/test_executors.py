"""Whatever makes the parts of a corpus, its bytes are the same."""

import importlib.util
import json
from pathlib import Path

import pytest

from groundup.artifacts import read_manifest
from groundup.building import build, make_part
from groundup.errors import SettingsError

RECIPE = """name = "tales"
corpus.sources = ["in"]
tokenizer.vocab_size = 320
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for file in range(5):
        texts = [f"Tale {number} of the {file} geese that went to the old mill. " * 4 for number in range(file, 40)]
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / "in" / f"{file}.jsonl").write_text("".join(lines))
    (tmp_path / "tales.toml").write_text(RECIPE)
    return tmp_path / "tales.toml"


def made(recipe: Path, run: Path, executor: str = "processes") -> str:
    build(recipe, run=run, only="corpus", executor=executor, say=lambda text: None)
    return read_manifest(run / "corpus").digest


def test_jobs_that_each_make_a_part_leave_what_one_machine_makes(recipe: Path, tmp_path: Path) -> None:
    assert sorted(make_part(recipe, part=(k, 3), run=tmp_path / "many") for k in (2, 3, 1)) == [1, 2, 2]
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "many" / ".corpus.parts").glob("*.all")}
    assert len(parts) == 5
    assert made(recipe, tmp_path / "many") == made(recipe, tmp_path / "one")


@pytest.mark.parametrize("part", [(0, 3), (4, 3)])
def test_a_part_that_there_is_not_is_refused(recipe: Path, tmp_path: Path, part: tuple[int, int]) -> None:
    with pytest.raises(SettingsError, match="should be one of 1 to 3"):
        make_part(recipe, part=part, run=tmp_path / "run")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install 'groundup[ray]'")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_leaves_what_one_machine_makes(recipe: Path, tmp_path: Path) -> None:
    assert made(recipe, tmp_path / "ray", "ray") == made(recipe, tmp_path / "one")
