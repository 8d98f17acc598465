"""Inspection: each thing says what it is; damage is named, the rest still told; nothing is run, no torch imported."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from groundup.artifacts import damage, read_manifest, write_manifest
from groundup.errors import DataError, SettingsError
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tools.inspect import Findings, inspect
from groundup.weights.gguf import write_gguf


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, finished_home: Path) -> Path:
    return Path(shutil.copytree(finished_home, tmp_path_factory.mktemp("built") / "home"))


@pytest.fixture
def run(built: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may spoil."""
    shutil.copytree(built / "runs" / "tiny", tmp_path / "tiny")
    return tmp_path / "tiny"


def spoil(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(raw)


def test_a_finished_run_tells_stages_sizes_and_what_can_be_done(run: Path) -> None:
    found = inspect(run)
    assert (found.what, found.damage) == ("a finished run", [])
    assert all(text.startswith("whole, 20") for text in found.facts["stages"].values())
    assert found.facts["newest_checkpoint"].startswith("step-00000040, whole, step 40 of 40, 20")
    assert found.facts["parameters"] == 320 * 16 + 4 * 16 * 16 + 3 * 16 * 32 + 3 * 16
    assert found.facts["bits_per_byte"] == json.loads((run / "evals" / "test.json").read_text())["bits_per_byte"]
    assert found.next[0].startswith(f"groundup generate {run}")


def test_every_artifact_of_a_run_says_what_made_it_and_from_what(run: Path) -> None:
    for name, what in {
        "corpus": "a corpus",
        "tokenizer": "a tokenizer",
        "shards": "documents as one stream",
        "model": "a model",
        "evals": "an evaluation",
        "pretrain/checkpoints/step-00000040": "a checkpoint",
    }.items():
        found = inspect(run / name)
        manifest = read_manifest(run / name)
        assert found.what.startswith(what)
        assert found.damage == []
        assert found.facts["digest"] == manifest.digest
        assert found.facts["command"] == manifest.made["command"]
        assert "every byte is as it was written" in found.facts["files"]
        for source in {"corpus", "tokenizer", "shards", "model"} & manifest.inputs.keys():
            assert found.facts["inputs"][source] == f"{manifest.inputs[source][:12]}, which stands there"
        assert found.next


def test_counts_are_those_of_what_is_there(run: Path) -> None:
    import torch
    from safetensors.torch import load_file

    weights = load_file(run / "model" / "model.safetensors")
    facts = inspect(run / "model").facts
    assert facts["parameters"] == sum(weight.numel() for weight in weights.values())
    assert facts["tensors"] == len(weights)
    facts = inspect(run / "shards").facts
    assert facts["train"]["tokens"] == len(np.load(run / "shards" / "train.npy"))
    facts = inspect(run / "pretrain" / "checkpoints" / "step-00000040").facts
    assert (facts["step"], facts["tokens"]) == ("40 of 40", 40 * 64)
    assert torch.float32 == weights["embed.weight"].dtype


@pytest.mark.parametrize(
    "name",
    [
        "corpus/train.parquet",
        "tokenizer/tokenizer.json",
        "shards/train.npy",
        "model/model.safetensors",
        "evals/test.json",
        "pretrain/checkpoints/step-00000040/state.json",
    ],
)
def test_a_changed_byte_is_named_in_run_and_artifact_and_the_rest_is_told(run: Path, name: str) -> None:
    file = run / name
    spoil(file)
    for place in (run, file.parent):
        found = inspect(place)
        assert any(f"the sha256 of {file.name} is not the one that was written" in why for why in found.damage)
        assert found.next[0].endswith("--replace") or "checkpoint" in name  # the one before is taken
        assert len(found.facts) > 5
    assert list(damage(file.parent, read_manifest(file.parent))) == inspect(file.parent).damage[:1]


def test_all_that_is_missing_is_named_not_only_the_first(run: Path) -> None:
    (run / "shards" / "train.npy").unlink()
    (run / "shards" / "test.npy").write_bytes(b"")
    told = "; ".join(inspect(run / "shards").damage)
    assert "train.npy is missing" in told
    assert "test.npy has 0 bytes" in told
    (run / "corpus" / "manifest.json").write_text("{")
    found = inspect(run / "corpus")
    assert "manifest.json is damaged" in found.damage[0]
    assert "train.parquet" in found.facts["files"]


def test_a_manifest_that_no_groundup_wrote_ends_in_words(run: Path) -> None:
    path = run / "shards" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["made"]["seal"]
    for change in (
        {"made": 3},
        {"inputs": {"corpus": 5}},
        {"files": {"train.npy": ["x"]}},
        {"statistics": {"train": 1}},
        {"kind": ["a"]},
        {"format": 9},
    ):
        path.write_text(json.dumps({**manifest, **change}))
        assert inspect(run / "shards").damage, change
        assert inspect(run).damage, change
    (run / "recipe.toml").write_text("name = ")
    assert inspect(run).next == [f"groundup build RECIPE --run {run} --replace"]


def test_a_half_done_run_names_what_is_missing_and_the_next_command(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model", "evals"):
        shutil.rmtree(run / name)
    found = inspect(run)
    assert found.what == "a run that is not finished"
    assert found.facts["stages"]["pretrain"] == "not made yet"
    assert found.facts["newest_checkpoint"].startswith("step-00000040, whole")
    own = f"groundup build {run}/recipe.toml --run {run}"
    assert found.next == [own], "the corpus is made, and does without its texts"
    shutil.rmtree(run / "corpus")
    assert inspect(run).next == [f"groundup build RECIPE --run {run}"], "its own copy finds no texts from here"
    (tmp_path / "tales").mkdir()
    (tmp_path / "tales" / "one.txt").write_text("a tale")
    monkeypatch.chdir(tmp_path)
    assert inspect(run).next == [f"groundup build {run / 'recipe.toml'} --run {run}"]


def test_an_input_that_was_made_again_is_noticed(run: Path) -> None:
    write_manifest(run / "tokenizer", replace(read_manifest(run / "tokenizer"), settings={"vocab_size": 384}))
    assert "but another stands there now" in inspect(run / "shards").facts["inputs"]["tokenizer"]
    assert "made from what is no longer there" in inspect(run).facts["stages"]["pack"]


def test_a_run_that_is_held_and_one_whose_process_was_killed_are_told_apart(run: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom groundup.artifacts import lock\n"
        "with lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert f"at work now: process {holder.pid} on" in inspect(run).what
    holder.kill()
    holder.wait()
    for stream in (holder.stdin, holder.stdout):
        assert stream is not None
        stream.close()
    found = inspect(run)
    assert found.what == "a finished run"
    assert f"left by process {holder.pid} on" in found.facts["lock"]


@pytest.fixture
def hugging_face(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    folder = tmp_path / "theirs"
    folder.mkdir()
    config = {
        "model_type": "llama",
        "vocab_size": 320,
        "max_position_embeddings": 24,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float16)}, folder / "model.safetensors"
    )  # only their headers are read
    tokenizer.save(folder / "tokenizer.json")
    return folder


def test_a_hugging_face_directory_is_read_without_its_tensors(hugging_face: Path) -> None:
    found = inspect(hugging_face)
    assert found.facts["architecture"] == "known here"
    assert found.facts["sizes"]["d_model"] == 8
    assert (found.facts["tensors"], found.facts["parameters"]) == (2, 17)
    assert found.facts["tokenizer"]["vocab_size"] == 320
    assert inspect(hugging_face / "config.json").facts == found.facts
    assert inspect(hugging_face / "model.safetensors").facts["first"] == {"a": "[3, 4]", "b": "[5]"}


def _config(folder: Path, **change: object) -> None:
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**table, **change}))


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (lambda folder: _config(folder, model_type="mamba"), "has model_type 'mamba'; known are groundup, gpt2"),
        (lambda folder: _config(folder, hidden_size="many"), "hidden_size = 'many'"),
        (lambda folder: _config(folder, hidden_act="sinus"), "hidden_act = 'sinus'"),
        (lambda folder: _config(folder, num_attention_heads=3), "describes a model that cannot be"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 9), "not a whole safetensors file"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "only in pytorch_model.bin, a pickle",
        ),
        (lambda folder: (folder / "model.safetensors").rename(folder / "x"), "none; ask for model.safetensors"),
        (lambda folder: (folder / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}'), "it has no 'vocab'"),
    ],
)
def test_what_is_wrong_with_a_foreign_model_is_said(
    hugging_face: Path, change: Callable[[Path], object], answer: str
) -> None:
    change(hugging_face)
    found = inspect(hugging_face)
    assert answer in json.dumps(found.facts) + " ".join(found.damage)
    assert len(found.facts) >= 3, "the rest is told"


def test_tokenizers_alone_are_read_or_refused_with_the_reason(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = tokenizer.to_hugging_face()["model"]
    (tmp_path / "encoder.json").write_text(json.dumps({**file["vocab"], "<|endoftext|>": len(file["vocab"])}))
    (tmp_path / "vocab.bpe").write_text("\n".join(" ".join(pair) for pair in file["merges"]))
    for place in (tmp_path, tmp_path / "encoder.json", tmp_path / "vocab.bpe"):
        found = inspect(place)
        assert (found.what, found.facts["merges"]) == ("a tokenizer", len(tokenizer.merges))
    (tmp_path / "vocab.bpe").write_text("h e\n")
    assert "the list of merges is cut short" in inspect(tmp_path).damage[0]


def test_a_llama2c_file_and_one_that_is_cut(tmp_path: Path) -> None:
    header = (8, 16, 1, 2, 2, 20, 4)
    weights, angles = 20 * 8 + 8 + 4 * 64 + 8 + 3 * 128 + 8, 2 * 4 * 2
    path = tmp_path / "tiny.bin"
    path.write_bytes(struct.pack("<7i", *header) + bytes(4 * (weights + angles)))
    found = inspect(path)
    assert (found.what, found.facts["parameters"], found.facts["sizes"]["d_ff"]) == ("a model of llama2.c", weights, 16)
    path.write_bytes(path.read_bytes()[:-4])
    assert "pickle" in inspect(path).what
    assert "llama2.c that is not whole" in inspect(path).facts["or"]


def test_a_gguf_file_and_one_that_is_cut(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "tiny.gguf"
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, d_model=16, n_layers=1))
    write_gguf(path, model.config, dict(model.named_parameters()), tokenizer, kind="f16", template="{{ messages }}")
    found = inspect(path)
    assert (found.what, found.facts["parameters"]) == ("a model in GGUF, for llama.cpp", model.config.parameters)
    assert (found.facts["tokenizer"]["vocab_size"], found.facts["chat"]) == (tokenizer.vocab_size, "template")
    assert found.next[0] == f"groundup import {path}" and not found.damage
    path.write_bytes(path.read_bytes()[:-100])
    assert "is no whole GGUF file: blk.0.ffn_down.weight should end at byte" in inspect(path).damage[0]


def test_a_pickle_is_named_and_not_opened(tmp_path: Path) -> None:
    import pickle
    import zipfile

    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "pwned"),)

    (tmp_path / "innocent.model").write_bytes(pickle.dumps(Harm()))
    with zipfile.ZipFile(tmp_path / "zipped.model", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Harm()))
    (tmp_path / "weights.pt").write_bytes(b"anything")
    for name in ("innocent.model", "zipped.model", "weights.pt"):
        assert "a pickle, which can run any program" in inspect(tmp_path / name).what
    assert not (tmp_path / "pwned").exists()


def test_a_file_of_a_run_stands_for_the_whole_that_it_belongs_to(run: Path) -> None:
    for part, whole in {
        "corpus/train.parquet": run / "corpus",
        "shards/train.npy": run / "shards",
        "model/config.json": run / "model",
        "pretrain/checkpoints/step-00000040/state.json": run / "pretrain" / "checkpoints" / "step-00000040",
        "pretrain/metrics.jsonl": run,
        "pretrain": run,
    }.items():
        assert inspect(run / part) == inspect(whole)


def test_a_recipe_tells_its_sizes_and_sources(built: Path, run: Path) -> None:
    found = inspect(built / "tiny.toml")
    assert found.facts["training"] == "40 steps of 64 tokens: 2,560"
    assert "tales: 40 files" in found.facts["sources"]
    (run / "wrong.toml").write_text("nmae = 1")
    with pytest.raises(SettingsError, match="line 1: unknown setting nmae; did you mean name"):
        inspect(run / "wrong.toml")


@pytest.mark.parametrize(
    ("name", "content", "answer"),
    [
        ("notes.txt", b"hello", "a file of 5 bytes; to learn from its text, name it in a recipe"),
        ("empty", b"", "is empty"),
        ("image.png", b"\x89PNG\r\n\x1a\n\0\0", "a file of 10 bytes. Known here"),
        ("documents.jsonl", b'{"text": "a"}\n', "a file of 14 bytes; to learn from its text"),
    ],
)
def test_what_is_not_known_is_described_with_what_is(tmp_path: Path, name: str, content: bytes, answer: str) -> None:
    with pytest.raises(DataError, match="is an empty folder. Known here: runs"):
        inspect(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        inspect(tmp_path / name)
    assert answer in str(caught.value)
    with pytest.raises(DataError, match="a folder of 1 file[.;]"):
        inspect(tmp_path)
    with pytest.raises(DataError, match="no file or folder at .*nowhere$"):
        inspect(tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"; did you mean {tmp_path / name}\\?"):
        inspect(tmp_path / f"{name}x")


def test_a_folder_of_runs_lists_them(built: Path) -> None:
    found = inspect(built / "runs")
    assert (found.what, found.facts) == ("a folder of runs: 1", {"runs": {"tiny": "finished"}})


def test_the_command_prints_plain_facts_or_json_and_imports_no_torch(built: Path) -> None:
    def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
        code = (
            f"import sys; sys.argv = ['groundup', *{arguments!r}]\n"
            "from groundup.cli import app as cli\ntry: cli.main()\n"
            "finally: print('torch' in sys.modules, file=sys.stderr)"
        )
        return subprocess.run([sys.executable, "-c", code], cwd=built, capture_output=True, text=True, check=False)

    plain = command("inspect", "runs/tiny")
    assert (plain.returncode, plain.stderr) == (0, "False\n")
    assert plain.stdout.startswith("runs/tiny: a finished run\n\nstages")
    assert "\n\nTry next:\n  groundup generate runs/tiny" in plain.stdout
    found = Findings(**json.loads(command("inspect", "runs/tiny", "--json").stdout))
    assert found.facts == json.loads(json.dumps(inspect(built / "runs" / "tiny").facts)) | {
        "report": "runs/tiny/report.html"
    }
    shutil.copytree(built / "runs" / "tiny", built / "spoilt")
    spoil(built / "spoilt" / "model" / "model.safetensors")
    spoilt = command("inspect", "spoilt")
    assert spoilt.returncode == 3
    assert "spoilt is not whole:\n  model: the sha256 of model.safetensors is not" in spoilt.stderr
    assert "Try next: groundup build spoilt/recipe.toml --run spoilt --replace" in spoilt.stderr
    assert "shards" not in spoilt.stderr
