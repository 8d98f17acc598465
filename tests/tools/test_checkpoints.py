"""The commands on checkpoints: list, verify, diff, average."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from groundup.artifacts import read_manifest, verify
from groundup.building import build
from groundup.cli.app import app
from groundup.errors import DamagedError, DataError, SettingsError
from groundup.evals.score import score
from groundup.generation.text import generate
from groundup.shards import open_split
from groundup.tools import checkpoints
from groundup.train import checkpoint
from groundup.weights.load import load

KEEPING = ["pretrain.keep_checkpoints=2", "pretrain.keep_every_steps=20", "pretrain.validate_every=10"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, settle: Callable[[Path], Path]) -> Path:
    recipe = settle(tmp_path_factory.mktemp("checkpoints"))
    for stage in ("corpus", "tokenizer", "pack", "pretrain"):
        built = build(recipe, KEEPING, run=recipe.parent / "run", only=stage, say=lambda text: None)
    return built.run


def at(run: Path, step: int) -> Path:
    return run / "pretrain" / "checkpoints" / f"step-{step:08d}"


def told(*words: object) -> str:
    done = CliRunner().invoke(app, ["checkpoint", *map(str, words)])
    if done.exception:
        raise done.exception
    return done.stdout


def test_the_list_says_what_was_measured_and_why_each_is_kept(run: Path) -> None:
    found = checkpoints.list_checkpoints(run)
    assert [(each.step, each.kept) for each in found] == [
        (20, "every 20 steps"),
        (30, "newest 2"),
        (40, "newest 2, every 20 steps"),
    ]
    lines = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    for each in found:
        measured = {name: value for line in lines if line["step"] == each.step for name, value in line.items()}
        assert each.loss == measured["loss"]
        assert each.validation_bits_per_byte == measured["validation_bits_per_byte"]
        assert each.bytes == sum(file.stat().st_size for file in Path(each.path).iterdir())
        assert each.damage == []
    table = told("list", run)
    assert "newest 2, every 20 steps  whole" in table
    assert json.loads(told("list", at(run, 30), "--json"))[0]["step"] == 30


def test_damage_is_named_and_ends_in_3(run: Path) -> None:
    assert told("verify", run).count("whole") == 3
    weights = at(run, 20) / checkpoint.WEIGHTS
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    try:
        with pytest.raises(DamagedError, match=f"step-00000020: the sha256 of {checkpoint.WEIGHTS} is not"):
            told("verify", run)
        assert DamagedError.exit_code == 3
        assert "damaged: the sha256" in told("list", run)
        with pytest.raises(DamagedError):
            told("diff", at(run, 20), run)
        with pytest.raises(DamagedError):
            told("average", run, "--out", run / "never")
        assert not (run / "never").exists()
    finally:
        raw[-1] ^= 1
        weights.write_bytes(raw)


def test_the_difference_is_that_of_the_weights(run: Path) -> None:
    found = checkpoints.diff(at(run, 20), run)  # the run's newest
    one, two = (load_file(at(run, step) / checkpoint.WEIGHTS) for step in (20, 40))
    assert found.steps == (20, 40)
    assert found.settings == {}
    assert {each.name for each in found.tensors} == {name[6:] for name in one if name.startswith("model.")}
    for each in found.tensors:
        before, after = one[f"model.{each.name}"], two[f"model.{each.name}"]
        assert each.relative == pytest.approx((torch.linalg.norm(after - before) / torch.linalg.norm(before)).item())
    assert all(each.change == 0 for each in checkpoints.diff(run, run / "model").tensors), "the model is the last one"
    assert "embed.weight" in told("diff", at(run, 20), run)


def test_the_average_is_the_mean_and_a_model_like_any_other(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "mean"
    assert "the mean of step-00000030, step-00000040" in told("average", run, "--last", 2, "--out", out)
    one, two = (load_file(at(run, step) / checkpoint.WEIGHTS) for step in (30, 40))
    mean = load_file(out / "model.safetensors")
    for name, weight in mean.items():
        torch.testing.assert_close(weight, (one[f"model.{name}"] + two[f"model.{name}"]) / 2, rtol=1e-6, atol=1e-9)
    manifest = verify(out, "model")
    assert sorted(manifest.inputs.values()) == sorted(
        [*(read_manifest(at(run, step)).digest for step in (30, 40)), read_manifest(run / "tokenizer").digest]
    )
    model, tokenizer = load(out, device="cpu")
    assert tokenizer is not None
    assert generate(model, tokenizer, "Tale", max_tokens=3)
    assert 1 < score(model, open_split(run / "shards", "test")).bits_per_byte < 8
    with pytest.raises(SettingsError, match="exists and is left as it is"):
        told("average", run, "--out", out)
    with pytest.raises(SettingsError, match="name several"):
        told("average", at(run, 20), "--out", tmp_path / "one")


def test_what_has_no_checkpoint_is_answered(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no checkpoint and has none"):
        told("list", run / "corpus")
    with pytest.raises(DataError, match="no run or checkpoint at"):
        told("verify", tmp_path / "nothing")
