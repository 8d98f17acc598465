"""The card of a model: what its manifests say, no empty heading, and nothing of another run."""

import re
import shutil
from pathlib import Path

import pytest

from groundup.artifacts import read_manifest
from groundup.export.card import read_facts, write_card
from groundup.export.settings import ExportSettings
from groundup.export.subject import Subject
from groundup.pages.render import scientific


@pytest.fixture
def run(finished_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_home / "runs" / "tiny", tmp_path / "my-model"))


def card(model: Path, **settings: str) -> str:
    return write_card(
        Subject.read(model), read_facts(model), "huggingface", ExportSettings.from_table(settings, "test")
    )


def sections(text: str) -> dict[str, str]:
    return dict(re.findall(r"^## (\w+)\n\n(.*?)(?=\n## |\Z)", text, re.M | re.S))


def test_it_tells_what_the_manifests_of_the_run_say(run: Path) -> None:
    text = card(run / "model", licence="cc-by-4.0")
    told = sections(text)
    corpus, model, evals = (read_manifest(run / name) for name in ("corpus", "model", "evals"))
    assert text.startswith("---\nlicense: cc-by-4.0\n") and "# my-model\n" in text
    assert f"train {corpus.statistics['train']['documents']:,} documents" in told["Data"]
    assert "`tales/00.txt`" in told["Data"] and "and 30 more" in told["Data"]
    assert f"{model.statistics['tokens']:,} tokens in 40 steps" in told["Training"]
    assert f"{scientific(model.statistics['training_flops'])} floating-point operations" in told["Training"]
    assert model.made["machine"] in told["Training"]
    test = evals.statistics["test"]
    assert test["standard_error"] is None  # of one document there is none
    assert f"{test['bits_per_byte']:.4f} bits per byte on 1 document" in told["Evaluation"]
    assert told["Licence"].strip() == "cc-by-4.0." and model.digest in told["Origin"]
    assert "320 ids, of which" in told["Tokenizer"]


def test_what_is_not_known_is_said_in_a_line(run: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(run / "model", tmp_path / "alone"))
    (alone / "manifest.json").unlink()
    told = sections(card(alone))
    assert told.keys() == {"Use", "Data", "Tokenizer", "Training", "Evaluation", "Licence", "Origin"}
    assert all(len(text.strip()) > 20 for text in told.values())
    assert told["Data"].strip() == "What it learned from is not recorded beside it."
    assert "not recorded" in told["Training"] and "No score" in told["Evaluation"] and "Not stated" in told["Licence"]


def test_a_score_or_corpus_of_another_model_is_not_told(run: Path, finished_home: Path) -> None:
    manifest = run / "evals" / "manifest.json"
    there = read_manifest(run / "evals")
    manifest.unlink()
    shutil.rmtree(run / "corpus")
    assert there.inputs["model"] == read_manifest(run / "model").digest
    told = sections(card(run / "model"))
    assert "No score" in told["Evaluation"] and "not recorded" in told["Data"] and "40 steps" in told["Training"]


def test_the_code_of_the_card_runs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from groundup.export.run import export

    export(run, tmp_path / "out", ExportSettings())
    monkeypatch.chdir(tmp_path / "out")
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.S)
    exec(code, {})  # the card's own
