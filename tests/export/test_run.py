"""An export has its name only when it was written, read back and found equal; killed or refused it leaves none."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from groundup.artifacts import read_manifest, verify
from groundup.building import build
from groundup.errors import DamagedError, DataError, ResourceError, SettingsError
from groundup.export import huggingface
from groundup.export.run import export
from groundup.export.settings import ExportSettings
from groundup.export.subject import Agreement
from groundup.recipe import Recipe
from groundup.tools.inspect import inspect
from groundup.weights.load import load_with_tokenizer

TO_HUGGING_FACE = ExportSettings(to=("huggingface",), licence="apache-2.0")


@pytest.fixture
def run(finished_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_home / "runs" / "tiny", tmp_path / "tiny"))


def test_an_export_is_an_artifact_that_names_its_model_and_says_how_far_it_is_from_it(
    run: Path, tmp_path: Path
) -> None:
    export(run, tmp_path / "out", TO_HUGGING_FACE)
    manifest = verify(tmp_path / "out", "export")
    assert manifest.inputs == {"model": read_manifest(run / "model").digest}
    assert manifest.statistics["read_back"]["huggingface"]["words"] == "the same logits at 16 positions"
    findings = inspect(tmp_path / "out")
    assert (findings.what, findings.damage) == ("a model exported for other programs", [])
    assert findings.facts["read_back"] == {"huggingface": "the same logits at 16 positions"}
    model, tokenizer = load_with_tokenizer(tmp_path / "out", "cpu")
    ids = torch.tensor([tokenizer.encode("Tale 3")])
    assert torch.equal(model(ids), load_with_tokenizer(run, "cpu")[0](ids))


def test_what_is_in_the_way_is_left_as_it_is(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(SettingsError, match="exists and is left as it is"):
        export(run, tmp_path / "out", TO_HUGGING_FACE)
    assert not any((tmp_path / "out").iterdir())


def test_a_model_of_which_a_byte_changed_is_not_exported(run: Path, tmp_path: Path) -> None:
    file = run / "model" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(DamagedError, match=r"the sha256 of model.safetensors is not the one that was written"):
        export(run, tmp_path / "out", TO_HUGGING_FACE)
    assert not (tmp_path / "out").exists()


def test_what_reads_back_as_another_model_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rightly = huggingface.to_published
    monkeypatch.setattr(
        huggingface, "to_published",
        lambda *given: {name: tensor * (1.01 if "q_proj" in name else 1) for name, tensor in rightly(*given).items()},
    )  # fmt: skip
    with pytest.raises(DamagedError, match=r"the model, read back, has another blocks.0.attention.query.weight"):
        export(run, tmp_path / "out", TO_HUGGING_FACE)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny"}


KILLED = """
import os, signal, sys
from pathlib import Path
from groundup.export import huggingface
from groundup.export.run import export
from groundup.export.settings import ExportSettings
setattr(huggingface, sys.argv[1], lambda *given: os.kill(os.getpid(), signal.SIGKILL))
export(Path(sys.argv[2]), Path(sys.argv[3]), ExportSettings())
"""


@pytest.mark.parametrize("place", ["write_shards", "_write_tokenizer", "_read_back"])
def test_an_export_that_is_killed_has_no_name_and_the_next_one_succeeds(place: str, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, place, run, out]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not out.exists() and (tmp_path / ".out.partial").exists()
    export(run, out, TO_HUGGING_FACE)
    assert verify(out, "export") and not (tmp_path / ".out.partial").exists()


def test_a_full_disk_ends_in_exit_code_4_and_leaves_nothing(run: Path, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(1_000_000))
    with pytest.raises(ResourceError, match="disk is full|No space left") as error:
        export(run, small_disk / "out", TO_HUGGING_FACE)
    assert error.value.exit_code == 4
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_agreement_refuses_numbers_that_are_none() -> None:
    logits = torch.zeros(1, 2, 3)
    with pytest.raises(DamagedError, match="differ by up to nan"):
        Agreement.between(logits, logits + torch.nan).refuse_unequal(1.0, "it")


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ({"to": "onx"}, "to.0 is 'onx'; it should be 'huggingface', 'gguf' or 'onnx'"),
        ({"to": []}, "name each format once"),
        ({"to": ["gguf", "gguf"]}, "name each format once"),
        ({"quantize": "q8_0"}, "only gguf is quantized"),
        ({"to": "gguf", "quantize": "q9"}, "quantize is 'q9'"),
        ({"to": "gguf", "quantize": "q8_0", "dtype": "float16"}, "set one"),
        ({"to": "onnx", "dtype": "bfloat16"}, "onnx is written in float32"),
        ({"license": "mit"}, "unknown setting license; did you mean licence"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(table: dict[str, object], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        ExportSettings.from_table(table, "export")


def quietly(home: Path, *arguments: object, **options: object) -> dict[str, str]:
    built = build(home / "tiny.toml", *arguments, run=home / "runs" / "tiny", say=lambda text: None, **options)  # type: ignore[arg-type]
    return {row.stage: row.what for row in built.rows}


def test_a_recipe_exports_only_if_it_says_so_and_only_once(finished_home: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(finished_home, tmp_path / "home"))
    export_of = home / "runs" / "tiny" / "export"
    assert "export" not in quietly(home) and not export_of.exists()
    with pytest.raises(SettingsError, match=r"no table \[export\]"):
        quietly(home, only="export")
    wanted = ["export.to=huggingface"]
    assert quietly(home, wanted)["export"] == "made"
    assert quietly(home, wanted)["export"] == "up to date"
    findings = inspect(home / "runs" / "tiny")
    assert findings.damage == [] and findings.facts["stages"]["export"].startswith("whole")
    card = export_of / "huggingface" / "README.md"
    card.write_text(card.read_text().replace("tiny", "Tiny"))
    (damage,) = inspect(home / "runs" / "tiny").damage
    assert damage == "export: the sha256 of huggingface/README.md is not the one that was written"
    assert quietly(home, wanted, replace=True)["export"] == "made"
    with pytest.raises(SettingsError, match=r"stale: export \(its settings changed\)"):
        quietly(home, [*wanted, "export.licence=mit"])
    assert quietly(home, [*wanted, "export.licence=mit"], replace=True)["export"] == "made"
    assert "license: mit" in (export_of / "huggingface" / "README.md").read_text()
    rows = quietly(home, [*wanted, "export.licence=mit", "evals.prompts=['A']"], replace=True)
    assert (rows["pretrain"], rows["eval"], rows["export"]) == (
        "up to date",
        "made",
        "made",
    )  # its card tells the score
    assert Recipe.load(home / "runs" / "tiny" / "recipe.toml").export == ExportSettings(licence="mit")


def test_a_model_that_cannot_be_exported_is_refused_before_it_is_trained(recipe: Path) -> None:
    changes = ["export.to=huggingface", "model.attention.kind=latent", "model.attention.d_latent=8"]
    with pytest.raises(SettingsError, match="the model cannot be written as"):
        build(recipe, [*changes, "model.attention.d_rotary=4"], run=recipe.parent / "run", say=lambda text: None)
    assert not (recipe.parent / "run" / "corpus").exists()


def test_a_directory_without_a_tokenizer_is_refused(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(run / "model", bare, ignore=shutil.ignore_patterns("tokenizer.json", "manifest.json"))
    with pytest.raises(DataError, match="has no tokenizer"):
        export(bare, tmp_path / "out", TO_HUGGING_FACE)


def test_the_command_says_what_it_wrote(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "groundup", "export", str(run), "--to", "huggingface", "--out", "out"]
    told = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(told.stdout)["words"] == "the same logits at 16 positions"
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "out exists and is left as it is" in again.stderr
