"""A training by two ranks that is killed, stopped or hangs, and is started again, is the one that nobody touched."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from groundup.artifacts import lock, lock_note
from groundup.building import build
from groundup.files import read_lines

RECIPE = """
name = "tiny"
[corpus]
sources = ["tales"]
[tokenizer]
vocab_size = 320
[model]
context_length = 32
d_model = 32
n_layers = 2
n_heads = 2
dropout = 0.1
[pretrain]
steps = 120
batch_tokens = 128
micro_batch_rows = 1
device = "cpu"
precision = "float32"
compile = false
validate_every = 20
sample_every = 40
sample_tokens = 4
checkpoint_every = 3
keep_best = true
[parallel]
shard = 2
timeout_seconds = 60
"""
LIMIT = 600
"""Seconds for each wait: a bound on a hang, not a claim about speed."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, settle: Callable[[Path], Path]) -> Path:
    """A recipe, and in `packed` what its trainings begin with."""
    folder = tmp_path_factory.mktemp("killed")
    settle(folder)
    (folder / "tiny.toml").write_text(RECIPE)
    build(folder / "tiny.toml", run=folder / "packed", last="pack", ranks=2, say=lambda text: None)
    return folder


@pytest.fixture(scope="module")
def unbroken(home: Path) -> Path:
    """The training that is not touched."""
    code, said = finish(start(home, "unbroken"))
    assert code == 0 and "started again" not in said, said
    return home / "unbroken"


def start(home: Path, name: str, *words: str) -> "subprocess.Popen[str]":
    """Train, or go on, with two ranks, in a session of processes of its own."""
    if not (home / name).exists():
        shutil.copytree(home / "packed", home / name)
    command = [sys.executable, "-m", "groundup", "pretrain", "tiny.toml", "--run", name, "--ranks", "2", *words]
    return subprocess.Popen(
        command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and what was said, when the process and all that it started are gone."""
    out, err = process.communicate(timeout=LIMIT)
    wait_for(lambda: not processes_of(process))
    return process.returncode, out + err


def wait_for(happened: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LIMIT
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def processes_of(process: "subprocess.Popen[str]") -> dict[int, str]:
    """What runs in the session of a process: id → command."""
    found = {}
    for each in Path("/proc").glob("[0-9]*"):
        try:
            state, *rest = (each / "stat").read_text().rpartition(")")[2].split()
            if int(rest[2]) == process.pid and state != "Z":
                found[int(each.name)] = (each / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def ranks_of(process: "subprocess.Popen[str]") -> list[int]:
    return [number for number, command in processes_of(process).items() if "spawn_main" in command]


def losses(run: Path) -> list[tuple[int, float]]:
    lines = read_lines(run / "pretrain" / "metrics.jsonl")
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def trains_until(run: Path, process: "subprocess.Popen[str]", step: int) -> None:
    """Wait until the process has logged a step."""

    def logged() -> bool:
        return process.poll() is not None or (len(losses(run)) >= step and len(ranks_of(process)) == 2)

    wait_for(logged)
    assert process.poll() is None, process.communicate()


def assert_same(run: Path, unbroken: Path) -> None:
    """The same bits in the weights, the same losses, rows and measurements step by step, and nothing half-written."""

    def measured(run: Path) -> list[dict[str, Any]]:
        of_the_clock = {"seconds", "memory_bytes", "ranks"}
        lines = read_lines(run / "pretrain" / "metrics.jsonl")
        return [{name: line[name] for name in line.keys() - of_the_clock} for line in lines if "ranks" not in line]

    assert measured(run) == measured(unbroken)
    weights = Path("model/model.safetensors")
    assert (run / weights).read_bytes() == (unbroken / weights).read_bytes()
    one, two = (each / "pretrain" / "checkpoints" for each in (run, unbroken))
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    newest = max(path.name for path in one.iterdir())
    states = [json.loads((each / newest / "state.json").read_text()) for each in (one, two)]
    assert states[0]["next_row"] == states[1]["next_row"]


@pytest.mark.slow
def test_killed_five_times_it_is_the_unbroken_one(home: Path, unbroken: Path) -> None:
    """One rank, both, or the process that started them, at random moments, of which many are in a save."""
    draw = random.Random(0)
    run, process = home / "killed", start(home, "killed")
    goals = sorted(draw.sample(range(1, 70), 5))
    for goal, who in zip(goals, draw.sample(["one", "one", "both", "starter", "both"], 5), strict=True):
        trains_until(run, process, goal)
        time.sleep(draw.random() * 0.1)
        ranks = ranks_of(process)
        for number in {"one": [draw.choice(ranks)], "both": ranks, "starter": [process.pid]}[who]:
            os.kill(number, signal.SIGKILL)
        if who == "starter":
            assert finish(process)[0] == -signal.SIGKILL
            process = start(home, "killed")
        else:
            wait_for(lambda gone=ranks, ended=process: not set(gone) & set(ranks_of(ended)))
    code, said = finish(process)
    if code == 4:  # killed once more than it starts again
        assert "after 3 new starts" in said
        code, said = finish(start(home, "killed"))
    assert code == 0, said
    assert_same(run, unbroken)


@pytest.mark.slow
def test_stopped_and_hung_it_is_the_unbroken_one(home: Path, unbroken: Path) -> None:
    """SIGTERM to the process that started the ranks, then Ctrl-C to all, then a rank that stops answering."""
    run = home / "stopped"
    for number, goal in ((signal.SIGTERM, 10), (signal.SIGINT, 40)):
        process = start(home, "stopped")
        trains_until(run, process, goal)
        os.kill(process.pid, number)
        code, said = finish(process)
        newest = max(path.name for path in (run / "pretrain" / "checkpoints").iterdir())
        assert (code, said.count("saved at step")) == (75, 1), said
        assert f"saved at step {int(newest.split('-')[1])} of 120" in said
    process = start(home, "stopped", "parallel.timeout_seconds=6")
    trains_until(run, process, 70)
    os.kill(max(ranks_of(process)), signal.SIGSTOP)
    code, said = finish(process)
    assert code == 4
    assert "has hung at step" in said and "it does not answer" in said
    code, said = finish(start(home, "stopped"))
    assert code == 0, said
    assert_same(run, unbroken)


@pytest.mark.slow
def test_ranks_that_outlive_who_started_them_are_not_joined_by_others(home: Path) -> None:
    """Two trainings in one directory would write over each other. Here this process stands for such a rank."""
    process = start(home, "orphans")
    trains_until(home / "orphans", process, 1)
    assert lock_note(home / "orphans" / "pretrain")[1], "a rank holds it, besides who started it"
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process)[0] == 75
    with lock(home / "orphans" / "pretrain"):
        code, said = finish(start(home, "orphans"))
    assert code == 4 and f"orphans/pretrain is in use by process {os.getpid()}" in said, said
