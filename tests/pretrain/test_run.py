"""The pretraining stage: stopped, changed or without a disk at any moment, it goes on as if it had not been."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from groundup.batch import Batch
from groundup.building import Built, build
from groundup.errors import ResourceError, SavedAndStopped, SettingsError
from groundup.evals.score import HeldOut
from groundup.pretrain import run as pretrain_run
from groundup.train import checkpoint, loader

RARELY = ["pretrain.checkpoint_every=15", "pretrain.validate_every=10", "pretrain.sample_every=20"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, settle: Callable[[Path], Path]) -> Path:
    """The texts, the recipe, and in `runs/ready` what a training needs."""
    recipe = settle(tmp_path_factory.mktemp("resume"))
    for stage in ("corpus", "tokenizer", "pack"):
        build(recipe, RARELY, run=recipe.parent / "runs" / "ready", only=stage, say=lambda text: None)
    return recipe.parent


@pytest.fixture(scope="module")
def unbroken(home: Path) -> Path:
    return train(home, "unbroken").run


def train(home: Path, name: str, *overrides: str, say: Callable[[str], None] = lambda text: None) -> Built:
    """Up to the model, or on from where it was."""
    run = home / "runs" / name
    if not run.exists():
        shutil.copytree(home / "runs" / "ready", run)
    return build(home / "tiny.toml", [*RARELY, *overrides], run=run, only="pretrain", say=say)


def lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock and the process say."""
    read = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "memory_bytes")} for line in read]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (run / "pretrain" / "events.jsonl").read_text().splitlines()]
    return [event for event in read if event["event"] == kind]


def assert_the_same(run: Path, unbroken: Path) -> None:
    assert lines(run) == lines(unbroken)
    weights = [(each / "model" / "model.safetensors").read_bytes() for each in (run, unbroken)]
    assert weights[0] == weights[1]


def before_batch(monkeypatch: pytest.MonkeyPatch, happens: dict[int, Callable[[], object]]) -> None:
    """Something happens before the so-manieth batch that this process draws, counted from 0."""
    draw = pretrain_run.batches

    def drawn(*arguments: Any) -> Iterator[Batch]:
        for number, batch in enumerate(draw(*arguments)):
            happens.get(number, lambda: None)()
            yield batch

    monkeypatch.setattr(pretrain_run, "batches", drawn)


def before_call(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, happens: Callable[[], object]) -> None:
    """Something happens at the second call of a function."""
    function, calls = getattr(module, name), []

    def called(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == 2:
            happens()
        return function(*arguments, **options)

    monkeypatch.setattr(module, name, called)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("place", "step"),
    [("the first step", 0), ("a step", 8), ("an evaluation", 20), ("a sample", 40), ("a save", None)],
)
def test_asked_to_stop_anywhere_it_saves_once_and_goes_on(
    home: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch, place: str, step: int | None
) -> None:
    """Fault C3."""
    name = place.replace(" ", "-")
    with monkeypatch.context() as patched:
        match place:
            case "the first step":
                before_batch(patched, {0: stop})
            case "a step":
                before_batch(patched, {7: stop})
            case "an evaluation":
                before_call(patched, HeldOut, "score", stop)
            case "a sample":
                before_call(patched, pretrain_run, "stream", stop)
            case "a save":
                before_call(patched, checkpoint, "save", stop)  # in the thread that writes
        with pytest.raises(SavedAndStopped, match="saved at step"):
            train(home, name)
    run = home / "runs" / name
    (stopped,) = events(run, "stopped")
    assert stopped["signal"] == "SIGTERM"
    assert step in (stopped["step"], None)
    if stopped["step"]:
        assert checkpoint.step_of(checkpoint.list_checkpoints(run / "pretrain" / "checkpoints")[-1]) == stopped["step"]
    train(home, name)
    assert_the_same(run, unbroken)


def test_changed_settings_are_applied_from_the_checkpoint_on_and_told(
    home: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault C7: no row is read twice or left out, whatever the batch is."""
    with monkeypatch.context() as patched:
        before_batch(patched, {12: stop})
        with pytest.raises(SavedAndStopped, match="saved at step 13 of 40"):
            train(home, "changed")
    run, told, read = home / "runs" / "changed", [], []
    rows = loader.rows
    monkeypatch.setattr(
        loader, "rows", lambda *given: (read.extend(range(given[3], given[3] + given[4])), rows(*given))[1]
    )
    train(
        home,
        "changed",
        "pretrain.steps=30",
        "pretrain.batch_tokens=128",
        "pretrain.optimizer.learning_rate=5e-4",
        "pretrain.schedule={kind='cosine', warmup_steps=0, final=1.0}",
        say=told.append,
    )
    assert read == list(range(13 * 4, 13 * 4 + 17 * 8))
    steps = [line for line in lines(run) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 31))
    assert steps[:13] == [line for line in lines(unbroken) if "loss" in line][:13]
    assert [line["tokens"] for line in steps[12:15]] == [13 * 64, 13 * 64 + 128, 13 * 64 + 256]
    assert {line["learning_rate"] for line in steps[13:]} == {5e-4}
    assert "from there on pretrain.steps: 40 → 30" in told
    (event,) = events(run, "settings changed")
    assert event["step"] == 13
    assert event["changed"]["pretrain.batch_tokens"] == [64, 128]
    with pytest.raises(SettingsError, match=r"stale: pretrain"):
        train(home, "changed", "pretrain.steps=50")  # it is finished now


def test_a_change_of_shape_or_data_is_refused_with_the_difference(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        before_batch(patched, {12: stop})
        with pytest.raises(SavedAndStopped):
            train(home, "refused")
    for change, told in (
        ("model.n_layers=2", "model.n_layers: 1 → 2"),
        ("pretrain.seed=5", "pretrain.seed: 0 → 5"),
        ("pretrain.precision='bfloat16'", "pretrain.precision.kind: .float32. → .bfloat16."),
    ):
        with pytest.raises(SettingsError, match=told):
            train(home, "refused", change, "pretrain.steps=50")
    with pytest.raises(SettingsError, match=r"pretrain.steps = 12, but this training is at step 13 already"):
        train(home, "refused", "pretrain.steps=12")
    assert events(home / "runs" / "refused", "settings changed") == []


def test_the_scale_of_float16_goes_on_where_it_was(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    growing = "pretrain.precision={kind='float16', initial_scale=64.0, growth_steps=7}"
    train(home, "half", growing)
    with monkeypatch.context() as patched:
        before_batch(patched, {18: stop})
        with pytest.raises(SavedAndStopped):
            train(home, "half-stopped", growing)
    run = home / "runs" / "half-stopped"
    newest = checkpoint.list_checkpoints(run / "pretrain" / "checkpoints")[-1]
    scaler = json.loads((newest / "state.json").read_text())["scaler"]
    assert (scaler["scale"], scaler["_growth_tracker"]) == (256, 5), "doubled after steps 7 and 14"
    train(home, "half-stopped", growing)
    assert_the_same(run, home / "runs" / "half")
    states = [
        json.loads((home / "runs" / name / "pretrain/checkpoints/step-00000040/state.json").read_text())["scaler"]
        for name in ("half", "half-stopped")
    ]
    assert states[0] == states[1]


@pytest.fixture
def small_home(home: Path, small_disk: Path) -> Path:
    """The same texts, and runs on a disk of a megabyte."""
    shutil.copytree(home / "tales", small_disk / "tales")
    shutil.copytree(home / "runs" / "ready", small_disk / "runs" / "ready")
    shutil.copy(home / "tiny.toml", small_disk)
    return small_disk


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(b"x" * 100)
        except OSError:
            pass


def mount_nothing(place: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], check=True)


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_without_a_disk_the_training_goes_on_and_saves_when_it_is_back(
    unbroken: Path, small_home: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """Fault C8: the checkpoint that was there stays, the log has every line in the end."""
    checkpoints = small_home / "runs" / "one" / "pretrain" / "checkpoints"
    begins, ends = {
        "full": (lambda: fill(small_home), (small_home / "filler").unlink),
        "read-only": (lambda: mount_nothing(checkpoints), lambda: subprocess.run(["umount", checkpoints], check=True)),
    }[trouble]
    told: list[str] = []
    with monkeypatch.context() as patched:
        before_batch(patched, {11: begins, 33: ends})
        train(small_home, "one", "pretrain.checkpoint_every=10", say=told.append)
    run = small_home / "runs" / "one"
    assert_the_same(run, unbroken)
    assert [(event["step"], event["in_a_row"]) for event in events(run, "save failed")] == [(20, 1), (30, 2)]
    assert [event["step"] for event in events(run, "saved")] == [10, 40]
    assert sum("could not be saved, training goes on" in line for line in told) == 2


def test_a_disk_that_stays_full_ends_the_training_in_4(
    unbroken: Path, small_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        before_batch(patched, {7: lambda: fill(small_home)})
        with pytest.raises(ResourceError, match="3 checkpoints in a row .*newest whole one is step-00000005: no room"):
            train(small_home, "one", "pretrain.checkpoint_every=5")
    (small_home / "filler").unlink()
    train(small_home, "one", "pretrain.checkpoint_every=5")
    assert_the_same(small_home / "runs" / "one", unbroken)


def test_a_stop_that_cannot_save_does_not_say_that_it_did(
    unbroken: Path, small_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        before_batch(patched, {17: lambda: (fill(small_home), stop())})
        with pytest.raises(ResourceError, match="the last checkpoint could not be written.*is step-00000015"):
            train(small_home, "one")
    (small_home / "filler").unlink()
    train(small_home, "one")
    assert_the_same(small_home / "runs" / "one", unbroken)
