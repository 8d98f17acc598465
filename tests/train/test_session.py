"""Faults injected into a training: the guard leaves out, goes back and jumps over as it says, and names the rows."""

import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from groundup.artifacts import making
from groundup.batch import Batch
from groundup.corpus.document import Document, DocumentWriter, sources_of
from groundup.errors import DamagedError, DataError, DivergedError
from groundup.files import read_lines
from groundup.model.settings import ModelConfig
from groundup.pretrain import run as stage
from groundup.pretrain.run import pretrain
from groundup.pretrain.settings import PretrainSettings
from groundup.pretrain.setup import batches
from groundup.shards import open_split, pack
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train import session
from groundup.train.checkpoint import list_checkpoints, step_of
from groundup.train.loader import rows as loaded_rows

MODEL = ModelConfig.from_table({"context_length": 16, "d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32})
ROWS = 4
POISONED = 17  # the number of the document of random ids


def settings(**changed: Any) -> PretrainSettings:
    table = {
        "steps": 60,
        "batch_tokens": 16 * ROWS,
        "device": "cpu",
        "precision": "float32",
        "optimizer": {"learning_rate": 1e-2},
        "validate_every": 1000,
        "validation_tokens": 100,
        "sample_every": 1000,
        "sample_prompt": "the",
        "sample_tokens": 1,
        "checkpoint_every": 10,
        "health_every": 25,
        "guard": {"window": 32, "warmup_steps": 16, "patience": 3, "steps_back": 5, "rollbacks": 2},
    }
    return PretrainSettings.from_table({**table, **changed})


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """Corpus, tokenizer and shards of eighty short documents; one of them is noise."""
    home = tmp_path_factory.mktemp("text")
    sentence = "the king and the little fox went over the hill to find a golden apple"
    words = sentence.split()
    draw = random.Random(0)
    for split, n in {"train": 80, "validation": 3, "test": 3}.items():
        writer = DocumentWriter(home / "corpus" / f"{split}.parquet")
        for number in range(n):
            turned = words[number % len(words) :] + words[: number % len(words)]
            noise = "".join(chr(draw.randrange(0x400, 0x3000)) for _ in range(40))
            poisoned = split == "train" and number == POISONED
            writer.write(Document(noise if poisoned else " ".join(turned * 3), f"{split}/{number:02}.txt"))
        writer.close()
    (home / "tokenizer").mkdir()
    tokenizer.save(home / "tokenizer")
    with making(home / "shards", "shards", {}, {}) as draft:
        pack(home / "corpus", tokenizer, draft)
    return home


def run_with(work: Path, text: Path) -> Path:
    """A run directory that reads what is in another one."""
    work.mkdir(exist_ok=True)
    for made in text.iterdir():
        if not (work / made.name).exists():
            (work / made.name).symlink_to(made)
    return work


def train(text: Path, work: Path, chosen: PretrainSettings, dies_after: int | None = None) -> list[str]:
    """Train as the stage does; what was said. `dies_after` this step the process is lost."""
    said: list[str] = []

    def progress(done: int, total: int, note: str) -> None:
        if done == dies_after:
            raise KeyboardInterrupt

    pretrain(MODEL, chosen, run_with(work, text), {}, progress=progress, say=said.append)
    return said


def events(work: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_lines(work / "pretrain" / "events.jsonl") if event["event"] == kind]


def steps_of(work: Path) -> dict[int, dict[str, Any]]:
    return {line["step"]: line for line in read_lines(work / "pretrain" / "metrics.jsonl") if "flops" in line}


def state_of(work: Path) -> dict[str, Any]:
    newest = list_checkpoints(work / "pretrain" / "checkpoints")[-1]
    state: dict[str, Any] = json.loads((newest / "state.json").read_text())
    return state


def weights_of(work: Path) -> bytes:
    return (work / "model" / "model.safetensors").read_bytes()


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Makes the batches that read these rows give a loss that is no number."""

    def between(first_bad: int, last_bad: int) -> None:
        def spoiled(shards: Any, context: int, seed: int, rows: Iterable[int], first: int) -> Iterator[Batch]:
            for batch in batches(shards, context, seed, rows, first):
                inside = torch.arange(first, first + len(batch.weight))
                bad = (inside >= first_bad) & (inside < last_bad)
                yield replace(batch, weight=batch.weight.masked_fill(bad[:, None], math.nan))
                first += len(batch.weight)

        monkeypatch.setattr(stage, "batches", spoiled)

    return between


def test_a_batch_that_is_no_number_is_left_out_and_its_row_and_document_are_named(
    text: Path, tmp_path: Path, broken: Callable[[int, int], None]
) -> None:
    row = 24 * ROWS + 2
    broken(row, row + 1)
    said = train(text, tmp_path, settings())
    (event,) = events(tmp_path, "step skipped")
    assert (event["step"], event["seen"]) == (25, "the loss is nan")
    assert (event["loss"], event["loss_was"]) == (None, "nan")
    assert event["rows"] == [24 * ROWS, 25 * ROWS]
    batch = loaded_rows(open_split(text / "shards", "train"), 16, 0, row, 1)
    numbers = sorted(set(batch.document.flatten().tolist()))
    assert event["worst"][0]["row"] == row
    assert event["worst"][0]["documents"] == [{"number": n, "source": f"train/{n:02}.txt"} for n in numbers]
    assert set(numbers) <= set(event["documents"])
    (line,) = [line for line in said if line.startswith("step 25 left out: the loss is nan. It read rows 96 to 99;")]
    assert f"row {row}, loss nan, of document {numbers[0]} (train/{numbers[0]:02}.txt)" in line
    lines = steps_of(tmp_path)
    assert len(lines) == 60
    assert (lines[25]["accepted"], lines[25]["loss"], lines[25]["loss_was"]) == (False, None, "nan")
    assert lines[25]["learning_rate"] > 0
    assert all("accepted" not in line for number, line in lines.items() if number != 25)
    assert lines[60]["loss"] < lines[24]["loss"]
    assert state_of(tmp_path)["skipped"] == [[24 * ROWS, 25 * ROWS]]
    assert [line["step"] for line in read_lines(tmp_path / "pretrain" / "health.jsonl")] == [50]


def test_after_several_it_goes_back_and_jumps_over_the_rows(
    text: Path, tmp_path: Path, broken: Callable[[int, int], None]
) -> None:
    """Steps 35 to 37 are bad: the newest checkpoint five steps older is that of step 20."""
    broken(34 * ROWS, 37 * ROWS)
    said = train(text, tmp_path, settings(checkpoint_every=10))
    assert [event["step"] for event in events(tmp_path, "step skipped")] == [35, 36, 37]
    (event,) = events(tmp_path, "rolled back")
    goal = 20
    assert (event["step"], event["to"], event["rows"]) == (37, goal, [goal * ROWS, 37 * ROWS])
    assert any(f"went back to step {goal} and jumped over rows {goal * ROWS} to {37 * ROWS - 1}" in s for s in said)
    lines = steps_of(tmp_path)
    assert sorted(lines) == list(range(1, 61))
    assert all("accepted" not in line for line in lines.values())
    state = state_of(tmp_path)
    assert state["skipped"] == [[goal * ROWS, 37 * ROWS]]
    assert state["next_row"] == (60 + 37 - goal) * ROWS
    assert state["guard"]["rollbacks"] == 1


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "dies_after",
    [[22, 45], pytest.param([33], marks=SLOW), pytest.param([36], marks=SLOW), pytest.param([41], marks=SLOW)],
)
def test_killed_anywhere_around_it_the_run_is_the_unbroken_one(
    text: Path, tmp_path: Path, broken: Callable[[int, int], None], dies_after: list[int]
) -> None:
    """Before the fault, in the middle of it (never saved), and after it went back."""
    broken(34 * ROWS, 37 * ROWS)
    train(text, tmp_path / "unbroken", settings())
    for step in dies_after:
        with pytest.raises(KeyboardInterrupt):
            train(text, tmp_path / "killed", settings(), dies_after=step)
    train(text, tmp_path / "killed", settings())
    assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "unbroken")
    states = [state_of(tmp_path / name) for name in ("killed", "unbroken")]
    assert {**states[0], "seconds": 0} == {**states[1], "seconds": 0}
    losses = [[line["loss"] for line in steps_of(tmp_path / name).values()] for name in ("killed", "unbroken")]
    assert losses[0] == losses[1]


def test_with_no_checkpoint_it_goes_back_to_the_weights_it_began_with(
    text: Path, tmp_path: Path, broken: Callable[[int, int], None]
) -> None:
    """Then it is a training that began behind the bad rows."""
    broken(0, 3 * ROWS)
    train(text, tmp_path, settings(steps=8))
    (event,) = events(tmp_path, "rolled back")
    assert (event["step"], event["to"], event["rows"]) == (3, 0, [0, 3 * ROWS])
    again = tmp_path / "again"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            stage, "batches", lambda shards, context, seed, rows, first: batches(shards, context, seed, rows, 3 * ROWS)
        )
        train(text, again, settings(steps=8))
    assert weights_of(again) == weights_of(tmp_path)


def test_it_goes_back_only_so_often_and_then_tells_all_it_knows(
    text: Path, tmp_path: Path, broken: Callable[[int, int], None]
) -> None:
    broken(34 * ROWS, 10_000)
    with pytest.raises(
        DivergedError, match=r"3 bad steps in a row up to step 23, after 2 times back: training diverged"
    ):
        train(text, tmp_path, settings())
    assert [event["to"] for event in events(tmp_path, "rolled back")] == [20, 20]
    dump = json.loads((tmp_path / "pretrain" / "diverged.json").read_text())
    assert [step["step"] for step in dump["bad_steps"]] == [21, 22, 23]
    assert all(step["documents"] and step["rows"] for step in dump["bad_steps"])
    assert events(tmp_path, "diverged")[0]["step"] == 23
    assert [step_of(path) for path in list_checkpoints(tmp_path / "pretrain" / "checkpoints")][-1] == 20


@SLOW
def test_a_learning_rate_a_hundred_times_too_high_is_undone(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault C10: for five steps, once; the replayed steps have the right one."""
    passed: list[int] = []

    def schedule(step: int) -> float:
        passed.append(step)
        return 100.0 if 40 < len(passed) <= 45 else 1.0

    clean = tmp_path / "clean"
    monkeypatch.setattr(session, "make_schedule", lambda *_: lambda step: 1.0)
    train(text, clean, settings(steps=80))
    monkeypatch.setattr(session, "make_schedule", lambda *_: schedule)
    guard = {"window": 32, "warmup_steps": 16, "patience": 5, "steps_back": 5}
    train(text, tmp_path / "fault", settings(steps=80, guard=guard))
    (event,) = events(tmp_path / "fault", "rolled back")
    assert event["to"] == 30
    assert event["rows"][0] == 30 * ROWS
    left_out = {skipped["step"] for skipped in events(tmp_path / "fault", "step skipped")}  # the noise is among them
    assert left_out >= set(range(event["step"] - 4, event["step"] + 1))
    assert 46 <= event["step"] <= 47

    def end(name: str) -> float:
        return float(np.mean([line["loss"] for line in steps_of(tmp_path / name).values()][-10:]))

    assert end("fault") < end("clean") + 0.3
    unguarded = tmp_path / "unguarded"
    passed.clear()
    train(text, unguarded, settings(steps=80, guard="none"))
    assert end("unguarded") > end("fault") + 0.3, "the fault is one that matters"


def test_a_poisoned_document_is_named(text: Path, tmp_path: Path) -> None:
    """Random ids among words to which the model nearly overfits; one row of four is seen at four deviations."""
    guard = {"window": 32, "warmup_steps": 32, "loss_deviations": 4, "patience": 9}
    train(text, tmp_path, settings(steps=150, checkpoint_every=150, guard=guard))
    skipped = events(tmp_path, "step skipped")
    assert skipped
    assert all(POISONED in event["documents"] for event in skipped)
    worst = {document["number"] for event in skipped for document in event["worst"][0]["documents"]}
    assert POISONED in worst
    (source,) = {
        document["source"]
        for event in skipped
        for row in event["worst"]
        for document in row["documents"]
        if document["number"] == POISONED
    }
    assert source == f"train/{POISONED}.txt"


def test_without_a_guard_the_run_ends_at_the_first_number_that_is_none(
    text: Path, tmp_path: Path, broken: Callable[[int, int], None]
) -> None:
    broken(4 * ROWS, 5 * ROWS)
    with pytest.raises(DivergedError, match=r"the loss at step 5 is nan \(gradient norm nan\): training diverged"):
        train(text, tmp_path, settings(guard="none"))
    assert not events(tmp_path, "step skipped")


def test_overflow_in_float16_is_counted_and_is_no_divergence(text: Path, tmp_path: Path) -> None:
    chosen = settings(steps=40, precision={"kind": "float16", "initial_scale": 2.0**30})
    train(text, tmp_path, chosen)
    lines = steps_of(tmp_path)
    left_out = [number for number, line in lines.items() if not line.get("accepted", True)]
    assert left_out[:3] == [1, 2, 3]
    assert 3 < len(left_out) < 32
    assert lines[1]["grad_norm"] is None
    assert lines[1]["grad_norm_was"] in ("inf", "nan")
    assert lines[40]["loss"] < lines[1]["loss"]
    assert not events(tmp_path, "step skipped")
    assert sum(event["steps"] for event in events(tmp_path, "overflow")) == len(left_out)
    assert state_of(tmp_path)["scaler"]["scale"] == 2.0 ** (30 - len(left_out))


def test_a_float16_run_goes_on_with_the_scale_it_had(text: Path, tmp_path: Path) -> None:
    chosen = settings(steps=30, precision={"kind": "float16", "initial_scale": 2.0**24, "growth_steps": 7})
    train(text, tmp_path / "unbroken", chosen)
    with pytest.raises(KeyboardInterrupt):
        train(text, tmp_path / "killed", chosen, dies_after=23)
    train(text, tmp_path / "killed", chosen)
    assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "unbroken")


def test_overflow_without_end_is_divergence(text: Path, tmp_path: Path) -> None:
    chosen = settings(precision={"kind": "float16", "initial_scale": 2.0**100})
    with pytest.raises(DivergedError, match="the gradients overflowed float16 in 32 steps in a row up to step 32"):
        train(text, tmp_path, chosen)


@pytest.mark.parametrize("damage", ["overwritten", "cut short"])
def test_shards_damaged_under_a_running_training_are_named(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Fault C14: an id beyond the vocabulary would be a fault of the device, a file cut short a bus error."""
    there = np.load(text / "shards" / "train.npy")
    own = tmp_path / "shards"
    own.mkdir()
    for path in (text / "shards").iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    opened = np.load(own / "train.npy", mmap_mode="r+")

    def spoil(done: int, total: int, note: str) -> None:
        if done == 3 and damage == "overwritten":
            opened[200:] = 65_000
            opened.flush()
        elif done == 3:
            with open(own / "train.npy", "r+b") as stream:
                stream.truncate(128 + len(there))

    said = {
        "overwritten": r"rows \d+ to \d+ cannot be read: .*npy holds id 65,000 at position \d+, in document \d+;",
        "cut short": r"rows \d+ to \d+ cannot be read: .*train\.npy had .* bytes when it was opened and now has",
    }[damage]
    with pytest.raises(DamagedError, match=said) as caught:
        pretrain(MODEL, settings(), run_with(tmp_path, text), {}, progress=spoil, say=lambda _: None)
    assert caught.value.exit_code == 3


def test_evaluations_are_measured_when_they_are_due_and_after_the_last_step(text: Path, tmp_path: Path) -> None:
    asked = [{"task": "next_token_accuracy", "every": 4, "max_tokens": 50}, {"task": "calibration", "every": 100}]
    train(text, tmp_path, settings(steps=10, evaluations=asked))
    lines = read_lines(tmp_path / "pretrain" / "metrics.jsonl")
    assert [line["step"] for line in lines if "next_token_accuracy" in line] == [4, 8, 10]
    assert [line["step"] for line in lines if "calibration_error" in line] == [10]
    assert all(0 <= line["next_token_accuracy"] <= 1 for line in lines if "next_token_accuracy" in line)


def test_benchmarks_are_asked_when_they_are_due_and_after_the_last_step(text: Path, tmp_path: Path) -> None:
    data = Path(__file__).parents[2] / "../shared/data/evals"
    if not data.is_dir():
        pytest.skip("the benchmarks' files of ../shared are not here")
    asked = [{"task": "lambada", "data": str(data), "every": 4, "limit": 6}]
    train(text, tmp_path, settings(steps=6, benchmarks=asked))
    lines = read_lines(tmp_path / "pretrain" / "metrics.jsonl")
    measured = {line["step"]: line["lambada_perplexity"] for line in lines if "lambada_perplexity" in line}
    assert [*measured] == [4, 6] and measured[6] != measured[4] > 1


def test_a_clock_that_goes_back_an_hour_changes_no_number(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault C15: durations are of the monotonic clock, order is of steps."""
    hours, real = itertools.count(10**9, -3600), time.gmtime
    monkeypatch.setattr(time, "time", lambda: float(next(hours)))
    monkeypatch.setattr(time, "gmtime", lambda *given: real(next(hours)))
    train(text, tmp_path, settings(steps=12, checkpoint_every=5))
    seconds = [line["seconds"] for line in steps_of(tmp_path).values()]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0
    assert [step_of(path) for path in list_checkpoints(tmp_path / "pretrain" / "checkpoints")] == [10, 12]


def test_sources_of_documents_are_found_by_number(text: Path, tmp_path: Path) -> None:
    corpus = text / "corpus" / "train.parquet"
    assert sources_of(corpus, [79, 3, 3]) == {79: "train/79.txt", 3: "train/03.txt"}
    assert sources_of(corpus, [80]) == {}
    with pytest.raises(DataError, match="is damaged"):
        sources_of(tmp_path / "gone.parquet", [1])
