"""Processes that are killed: the next one goes on, and nobody could tell from the numbers."""

import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from groundup.artifacts import read_manifest, verify

STEPS = 100
LONGER = [
    f"pretrain.steps={STEPS}",
    "pretrain.checkpoint_every=15",
    "pretrain.validate_every=50",
    "pretrain.sample_every=50",
]
PATIENCE = 1200  # seconds; a bound on a hang, not a claim about speed
HAPPENING = """
import os, signal, sys
from groundup import artifacts
from groundup.train import checkpoint
from groundup.cli import app as cli
from groundup.pretrain import speed
from groundup.train import log
from groundup.tokenizer import tokenizer
from groundup.tokenizer.fast import count

def happens(asked, owner, name, when=lambda *given: True, times=1, after=False):
    # This process gets the signal when that function is called the so-manieth time with what `when` is true of.
    function, left = getattr(owner, name), times

    def called(*given, **options):
        nonlocal left
        hit = when(*given)
        left -= hit
        if hit and left == 0 and not after:
            os.kill(os.getpid(), asked)
        value = function(*given, **options)
        if hit and left == 0 and after:
            os.kill(os.getpid(), asked)
        return value

    setattr(owner, name, called)

"""
"""A process is asked to stop, or killed, by itself at a place of its work: a watcher may look too late."""


def at_step(number: int, asked: signal.Signals) -> str:
    return f"happens({asked:d}, log.RunLog, 'step', lambda log, step, *rest: step.number == {number})"


def start(home: Path, *arguments: str, happening: str = "", **environment: str) -> "subprocess.Popen[str]":
    program = ["-c", f"{HAPPENING}{happening}\ncli.main()"] if happening else ["-m", "groundup"]
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out + err


def wait_for(process: "subprocess.Popen[str]", happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"ended or hung before it happened: {finish(process)}")
        time.sleep(0.001)


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def steps_written(run: Path) -> int:
    path = run / "pretrain" / "metrics.jsonl"
    return path.read_bytes().count(b'"loss"') if path.is_file() else 0


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, settle: Callable[[Path], Path]) -> Path:
    """In a folder of its own, so that nobody shares its stages."""
    home = settle(tmp_path_factory.mktemp("home")).parent
    code, told = finish(start(home, "build", "tiny.toml", *LONGER, "--run", "unbroken"))
    assert code == 0, told
    return home / "unbroken"


def assert_the_same_run(run: Path, unbroken: Path) -> None:
    assert losses(run) == losses(unbroken)
    assert len(losses(run)) == STEPS
    for name in ("model", "evals"):
        assert verify(run / name).digest == read_manifest(unbroken / name).digest
    weights = Path("model/model.safetensors")
    assert (run / weights).read_bytes() == (unbroken / weights).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_killed_at_random_steps_the_run_is_the_unbroken_one(recipe: Path, precision: str) -> None:
    home, arguments = recipe.parent, ["build", "tiny.toml", *LONGER, f"pretrain.precision={precision}"]
    code, told = finish(start(home, *arguments, "--run", "unbroken"))
    assert code == 0, told
    draw = random.Random()  # another moment in every test run
    for number in sorted(draw.sample(range(16, STEPS), 3)):
        process = start(home, *arguments, "--run", "killed", happening=at_step(number, signal.SIGKILL))
        assert finish(process)[0] == -signal.SIGKILL
    code, told = finish(start(home, *arguments, "--run", "killed"))
    assert code == 0, told
    assert "going on from step" in told
    assert_the_same_run(home / "killed", home / "unbroken")


@pytest.mark.slow
def test_killed_while_it_writes_a_checkpoint(recipe: Path, unbroken: Path) -> None:
    home, run = recipe.parent, recipe.parent / "killed"
    checkpoints = run / "pretrain" / "checkpoints"
    second = f"happens({signal.SIGKILL:d}, checkpoint, 'write_tensors', times=2, after=True)"
    for _ in range(3):
        process = start(home, "build", "tiny.toml", *LONGER, "--run", "killed", happening=second)
        assert finish(process)[0] == -signal.SIGKILL
        assert len(list(checkpoints.glob(".step-*.partial"))) == 1
    code, told = finish(start(home, "build", "tiny.toml", *LONGER, "--run", "killed"))
    assert code == 0, told
    assert not list(checkpoints.glob(".*"))
    assert_the_same_run(run, unbroken)


@pytest.mark.slow
def test_killed_at_any_place_of_a_save_the_run_is_the_unbroken_one(tmp_path: Path) -> None:
    """Faults C1 and C2; `bench/kills.py` does the same at fifty moments."""
    kills = runpy.run_path(str(Path(__file__).parents[1] / "bench" / "kills.py"))
    hits = kills["kill_and_compare"](tmp_path, 8, 100, "float32", random.Random())
    assert hits.total() == 8


@pytest.mark.slow
def test_asked_to_stop_while_precisions_are_timed(recipe: Path) -> None:
    """Fault C3: in the warm-up there is nothing to save, so it ends at once."""
    home, run = recipe.parent, recipe.parent / "early"
    recipe.write_text(recipe.read_text().replace('precision = "float32"\n', ""))
    timed = f"happens({signal.SIGTERM:d}, speed, 'time_steps')"
    code, told = finish(start(home, "build", "tiny.toml", "--run", "early", happening=timed))
    assert code == 75, told
    assert not (run / "pretrain" / "metrics.jsonl").exists()
    assert "Traceback" not in told
    code, told = finish(start(home, "build", "tiny.toml", "--run", "early"))
    assert code == 0, told


@pytest.mark.parametrize("asked", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_asked_to_stop_it_saves_says_so_and_goes_on(recipe: Path, unbroken: Path, asked: signal.Signals) -> None:
    home, run = recipe.parent, recipe.parent / "stopped"
    happening = at_step(23, asked)
    code, told = finish(start(home, "build", "tiny.toml", *LONGER, "--run", "stopped", happening=happening))
    assert code == 75, told
    assert "saved at step" in told
    assert "Go on with: " in told
    events = [json.loads(line) for line in (run / "pretrain" / "events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "stopped"
    assert events[-1]["signal"] == asked.name
    code, told = finish(start(home, "build", "tiny.toml", *LONGER, "--run", "stopped"))
    assert code == 0, told
    assert f"going on from step {events[-1]['step']}" in told
    assert_the_same_run(run, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["corpus", "tokenizer", "shards", "evals"])
def test_killed_in_any_other_stage_the_next_build_completes(recipe: Path, stage: str) -> None:
    home, run = recipe.parent, recipe.parent / "killed"
    text = recipe.read_text().replace('"tales"', '"groundup:storybook"').replace("max_tokens = 8", "max_tokens = 400")
    recipe.write_text(text)
    arguments = ["build", "tiny.toml", "tokenizer.vocab_size=2048", "pretrain.steps=5", "--run", "killed"]
    place = random.choice(["Draft", "_finish_files"])  # at its beginning, or when all but the manifest is written
    killed = f"happens({signal.SIGKILL:d}, artifacts, '{place}', lambda path, *rest: path.name == '.{stage}.partial')"
    assert finish(start(home, *arguments, happening=killed))[0] == -signal.SIGKILL
    assert (run / f".{stage}.partial").is_dir()
    assert not (run / stage).exists(), "nothing half-written is taken for whole"
    code, told = finish(start(home, *arguments))
    assert code == 0, told
    for name in ("corpus", "tokenizer", "shards", "model", "evals"):
        verify(run / name)
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


def test_ctrl_c_in_another_stage_keeps_what_was_finished(recipe: Path) -> None:
    home, run = recipe.parent, recipe.parent / "stopped"
    learning = f"happens({signal.SIGINT:d}, tokenizer, 'learn_merges')"
    code, told = finish(start(home, "build", "tiny.toml", "--run", "stopped", happening=learning))
    assert code == 75, told
    assert "Go on with: " in told
    assert "Traceback" not in told
    verify(run / "corpus")
    assert not (run / ".tokenizer.partial").exists()


def test_two_runs_in_one_directory_the_second_is_refused(recipe: Path) -> None:
    home = recipe.parent
    first = start(home, "build", "tiny.toml", "pretrain.steps=100000")
    wait_for(first, lambda: steps_written(home / "runs" / "tiny") > 0)
    code, told = finish(start(home, "build", "tiny.toml", "pretrain.steps=100000"))
    first.kill()
    finish(first)
    assert code == 4
    assert f"in use by process {first.pid}" in told


@pytest.mark.slow
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(recipe: Path, unbroken: Path) -> None:
    home, run = recipe.parent, recipe.parent / "killed"
    happening = at_step(73, signal.SIGKILL)
    finish(start(home, "build", "tiny.toml", *LONGER, "--run", "killed", happening=happening))
    newest = sorted((run / "pretrain" / "checkpoints").glob("step-*"))[-1]
    weights = newest / "model-00001-of-00001.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 3] ^= 1
    weights.write_bytes(raw)
    code, told = finish(start(home, "build", "tiny.toml", *LONGER, "--run", "killed"))
    assert code == 0, told
    assert f"passed over {newest.name}" in told
    assert_the_same_run(run, unbroken)


@pytest.mark.slow
def test_killed_while_learning_the_same_vocabulary_comes_out(recipe: Path) -> None:
    """Fault B5: killed when everything is counted, with another number of cores, with another PYTHONHASHSEED."""
    home = recipe.parent
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randrange(2, 12))) for _ in range(20_000)]
    texts = [" ".join(draw.choices(words, k=2000)) for _ in range(500)]  # more than 5 MB, from where loops are compiled
    (home / "much.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    recipe.write_text(recipe.read_text().replace('"tales"', '"much.jsonl"'))
    learn = ("tokenizer", "tiny.toml", "tokenizer.vocab_size=16384")
    assert finish(start(home, "corpus", "tiny.toml", "--run", "whole"))[0] == 0
    shutil.copytree(home / "whole", home / "apart" / "killed")  # apart, or it would share what the other makes
    assert finish(start(home, *learn, "--run", "whole"))[0] == 0
    counted = f"happens({signal.SIGKILL:d}, count.PreTokenCounter, 'save', after=True)"
    assert finish(start(home, *learn, "--run", "apart/killed", happening=counted))[0] == -signal.SIGKILL
    assert (home / "apart" / "killed" / ".tokenizer.counts" / "counted.json").is_file()
    assert not (home / "apart" / "killed" / "tokenizer").exists()
    process = start(home, *learn, "--run", "apart/killed", PYTHONHASHSEED="7")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, [min(os.sched_getaffinity(0))])
    code, told = finish(process)
    assert code == 0, told
    assert not (home / "apart" / "killed" / ".tokenizer.counts").exists()
    vocabularies = [(home / run / "tokenizer" / "tokenizer.json").read_bytes() for run in ("apart/killed", "whole")]
    assert vocabularies[0] == vocabularies[1]
