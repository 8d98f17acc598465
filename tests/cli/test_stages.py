"""Commands that write or take a recipe: what they print, and what a full or read-only disk does."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_build_tells_stages_quality_samples_and_what_to_try(run: Run, built: Path) -> None:
    done = run("build", "tiny.toml", cwd=built)
    assert done.returncode == 0
    for word in (
        "corpus",
        "tokenizer",
        "pack",
        "pretrain",
        "eval",
        "report",
        "up to date",
        "bits per byte",
        "“Tale",
        "Try next:",
        "generate runs/tiny",
    ):
        assert word in done.stdout
    assert done.stderr == ""


def test_eval_writes_a_corpus_with_perplexities(run: Run, built: Path) -> None:
    done = run("eval", "runs/tiny", "--corpus", "runs/tiny/corpus", "--out", "scored", "--json", cwd=built)
    table = pq.read_table(built / "scored" / "test.parquet")
    assert json.loads(done.stdout)["documents"] >= len(table) > 0
    assert all(json.loads(metadata)["perplexity"] > 1 for metadata in table.column("metadata").to_pylist())
    refused = run("eval", "runs/tiny", "--corpus", "runs/tiny/corpus", cwd=built)
    assert refused.returncode == 2 and "--corpus takes a model and --out" in refused.stderr


def test_eval_on_the_recipe_and_on_any_file(run: Run, built: Path) -> None:
    of_recipe = run("eval", "tiny.toml", "--json", cwd=built)
    assert json.loads(of_recipe.stdout) == json.loads((built / "runs" / "tiny" / "evals" / "test.json").read_text())
    on_file = run("eval", "runs/tiny", "tales/03.txt", "tales/04.txt", "--json", cwd=built)
    result = json.loads(on_file.stdout)
    assert result["documents"] == 2
    assert result["bytes"] == sum(len((built / "tales" / f"0{n}.txt").read_text().strip()) for n in (3, 4))
    assert "bits per byte" in run("eval", "runs/tiny", cwd=built).stdout
    assert "name the files to score" in run("eval", "runs/tiny/model", cwd=built).stderr


@pytest.mark.slow
def test_from_texts_to_a_conversation_in_three_commands(run: Run, built: Path) -> None:
    """As a new user would; the recipe made here is the proposed one, in seconds."""
    new = run("new", "own", "--from", "tales", "--minutes", "0.05", cwd=built)
    assert new.returncode == 0, new.stderr
    for word in ("40 .txt: 40 documents", "100.0% Latin", "Wrote own.toml", "build own.toml", "chat runs/own"):
        assert word in new.stdout
    assert run("build", "own.toml", cwd=built).returncode == 0
    assert run("chat", "runs/own", cwd=built, stdin="Tale 3\n").stdout.strip()
    assert run("new", "own", "--from", "tales", cwd=built).returncode == 2


def test_new_says_what_it_leaves_out_and_as_json_the_same(run: Run, built: Path) -> None:
    folder = built / "mixed"
    shutil.copytree(built / "tales", folder)
    for name, content in {"a.png": b"\x89PNG", "b.rar": b"Rar", "c.txt": b"", "d.md": b"\xc3\x28" * 60}.items():
        (folder / name).write_bytes(content)
    shutil.copy(folder / "00.txt", folder / "copy.txt")
    plain = run("new", "mixed", "--from", "mixed", cwd=built).stdout
    left_out = "1 × .png (mixed/a.png), 1 × .rar (mixed/b.rar): read are .txt, .md, .jsonl"
    for word in (left_out, "1 × empty", "1 × exact duplicate", "1 × not utf-8 (mixed/d.md: invalid continuation byte"):
        assert word in plain
    told = json.loads(run("new", "mixed2", "--from", "mixed", "--json", cwd=built).stdout)
    assert told["left_out"] == {".png": 1, ".rar": 1}
    assert told["documents"] == 40
    assert (built / told["recipe"]).is_file()


def test_a_full_disk_ends_in_4_and_the_run_can_go_on(run: Run, built: Path, small_disk: Path) -> None:
    full = run("build", "tiny.toml", "model.d_model=64", "model.d_ff=512", "--run", small_disk / "run", cwd=built)
    assert full.returncode == 4
    assert "disk: " in full.stderr and "needed for checkpoints and model" in full.stderr  # said before the first step
    assert not list((small_disk / "run").rglob("*.partial"))
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    again = run("build", "tiny.toml", "model.d_model=64", "model.d_ff=512", "--run", small_disk / "run", cwd=built)
    assert again.returncode == 0, again.stderr


def test_a_read_only_place_ends_in_4(run: Run, built: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    done = run("build", "tiny.toml", "--run", small_disk / "run", cwd=built)
    assert done.returncode == 4
    assert "cannot write" in done.stderr
    assert "Read-only" in done.stderr
