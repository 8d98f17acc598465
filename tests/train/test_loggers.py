"""Loggers: each gets the lines in its own program's words, and none can slow, stop or spoil a training."""

import importlib
import json
import math
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from groundup.building import build
from groundup.errors import SettingsError
from groundup.pretrain.settings import PretrainSettings
from groundup.train import loggers
from groundup.train.loggers import Loggers, refuse_missing
from groundup.train.settings import MLflow, TensorBoard, Trackio, WeightsAndBiases

LINES: list[dict[str, Any]] = [
    {"step": 1, "loss": 2.5, "tokens": 64, "accepted": False},
    {"step": 1, "sample": "Once upon"},
    {"step": 2, "loss": math.nan, "grad_norm": 0.5, "loss_was": "nan"},
]
DESCRIBED = {"model": {"n_layers": 2}, "pretrain": {"optimizer": {"learning_rate": 0.001}}}


class Recorder:
    """Remembers every call of it and of what is made by it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> "Recorder":
            self.calls.append((name, *args, *sorted(kwargs.items())))
            return self

        return call


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A logger that works is waited for, however busy the machine."""
    monkeypatch.setattr(loggers, "SECONDS_TO_CLOSE", 600.0)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a module of that name in the place of the real one."""

    def put(name: str, **contents: Any) -> None:
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)

    return put


def send(settings: Any, work: Path) -> dict[str, Any]:
    """Hand over the lines; the event that tells what became of them."""
    opened = Loggers([settings], work, DESCRIBED)
    opened.send(LINES)
    (closed,) = opened.close()
    return closed


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    closed = send(TensorBoard(), tmp_path / "run" / "pretrain")
    (path,) = (tmp_path / "run" / "pretrain" / "tensorboard").iterdir()
    raw, found, texts = path.read_bytes(), [], []
    while raw:  # TFRecord: length, its checksum, the event, its checksum
        length = int.from_bytes(raw[:8], "little")
        assert masked_crc32c(raw[12 : 12 + length]) == int.from_bytes(raw[12 + length : 16 + length], "little")
        event = Event.FromString(raw[12 : 12 + length])
        for value in event.summary.value:
            if value.HasField("tensor"):
                texts.append((event.step, value.tensor.string_val[0]))
            else:
                found.append((event.step, value.tag, value.simple_value))
        raw = raw[16 + length :]
    assert found == [(1, "loss", 2.5), (1, "tokens", 64), (2, "grad_norm", 0.5)]
    assert texts == [(1, b"Once upon")]
    assert closed == {"kind": "logger closed", "logger": "tensorboard", "written": 3, "dropped": 0}


def test_weights_and_biases_goes_on_with_the_same_run(install: Callable[..., None], tmp_path: Path) -> None:
    made, run = Recorder(), Recorder()
    install("wandb", init=lambda **kwargs: made.calls.append(tuple(sorted(kwargs.items()))) or run)
    for _ in range(2):
        send(WeightsAndBiases(project="tales"), tmp_path / "run" / "pretrain")
    first, second = (dict(call) for call in made.calls)
    assert first == second
    assert first["project"] == "tales"
    assert first["name"] == "run"
    assert first["resume"] == "allow"
    assert first["mode"] == "offline"
    assert first["config"] == DESCRIBED
    assert run.calls[:4] == [
        ("log", {"loss": 2.5, "tokens": 64.0}, ("step", 1)),
        ("log", {"sample": "Once upon"}, ("step", 1)),
        ("log", {"grad_norm": 0.5}, ("step", 2)),
        ("finish",),
    ]


def test_trackio_is_told_the_run_and_its_lines(install: Callable[..., None], tmp_path: Path) -> None:
    run = Recorder()
    install("trackio", init=lambda **kwargs: run.calls.append(("init", kwargs)) or run)
    send(Trackio(), tmp_path / "run" / "pretrain")
    started = run.calls[0][1]
    assert started["project"] == "groundup"
    assert started["name"] == "run"
    assert started["config"] == {"model.n_layers": 2, "pretrain.optimizer.learning_rate": 0.001}
    assert run.calls[2] == ("log", {"sample": "Once upon"}, ("step", 1))
    assert run.calls[-1] == ("finish",)


def test_mlflow_is_told_the_run_and_its_lines(install: Callable[..., None], tmp_path: Path) -> None:
    client = Recorder()

    class Client:
        def __init__(self, tracking_uri: str | None) -> None:
            client.calls.append(("client", tracking_uri))

        def get_experiment_by_name(self, name: str) -> None:
            return None

        def create_experiment(self, name: str) -> str:
            return f"of {name}"

        def create_run(self, experiment: str, run_name: str) -> Any:
            client.calls.append((experiment, run_name))
            return SimpleNamespace(info=SimpleNamespace(run_id="7"))

        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

    metric = lambda key, value, timestamp, step: (key, value, step)  # noqa: E731
    install("mlflow", MlflowClient=Client, entities=SimpleNamespace(Metric=metric))
    send(MLflow(tracking_uri="http://localhost:5000"), tmp_path / "run" / "pretrain")
    assert client.calls[:3] == [
        ("client", "http://localhost:5000"), ("of groundup", "run"), ("log_param", "7", "model.n_layers", "2"),
    ]  # fmt: skip
    assert ("log_batch", "7", [("loss", 2.5, 1), ("tokens", 64.0, 1)]) in client.calls
    assert ("log_text", "7", "Once upon", "samples/step-00000001.txt") in client.calls
    assert client.calls[-1] == ("set_terminated", "7")


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_logger_that_fails_is_reported_and_nothing_else(
    install: Callable[..., None], tmp_path: Path, where: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("no network")

    run = Recorder()
    if where != "init":
        setattr(run, where, fail)
    install("trackio", init=fail if where == "init" else lambda **kwargs: run)
    closed = send(Trackio(), tmp_path)
    assert closed["kind"] == "logger closed"
    assert closed["error"] == "ConnectionError: no network"
    assert closed["dropped"] == (0 if where == "finish" else 3)


def test_a_broken_logger_is_given_up_and_reported_once(install: Callable[..., None], tmp_path: Path) -> None:
    tries: list[int] = []
    given_up = threading.Event()

    def fail(**kwargs: Any) -> Any:
        tries.append(1)
        if len(tries) == loggers.MAX_FAILURES:
            given_up.set()
        raise OSError("disk full")

    install("trackio", init=fail)
    opened = Loggers([Trackio()], tmp_path, DESCRIBED)
    events = opened.send([LINES[0]] * 50)
    assert given_up.wait(600)
    events += opened.send([LINES[0]] * 50) + opened.send([LINES[0]] * 50) + opened.close()
    assert len(tries) == loggers.MAX_FAILURES
    assert [event["kind"] for event in events] == ["logger in trouble", "logger closed"]
    assert events[-1]["dropped"] == 150


def test_a_logger_that_hangs_costs_no_time_and_its_lines_are_counted(
    install: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(loggers, "MAX_WAITING", 50)
    monkeypatch.setattr(loggers, "SECONDS_TO_CLOSE", 0.2)
    install("trackio", init=lambda **kwargs: go_on.wait(600) or Recorder())
    opened = Loggers([Trackio()], tmp_path, DESCRIBED)
    for _ in range(100):
        opened.send([LINES[0]] * 10)
    (closed,) = opened.close()
    go_on.set()  # by now it was left behind: else its lines were written
    assert (closed["kind"], closed["written"]) == ("logger closed", 0)
    assert 998 <= closed["dropped"] <= 1000  # one is in the logger's hands


@pytest.mark.parametrize("settings", [TensorBoard(), WeightsAndBiases(), Trackio(), MLflow()])
def test_a_package_that_is_missing_is_named_before_anything_begins(
    settings: Any, monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=rf"pip install 'groundup\[{settings.kind}\]'"):
        refuse_missing(PretrainSettings(loggers=(settings,)).loggers, "pretrain")
    with pytest.raises(SettingsError, match="needs the package"):
        build(recipe, [f'pretrain.loggers=[{{kind="{settings.kind}"}}]'], run=recipe.parent / "run")
    assert not (recipe.parent / "run").exists()


def test_a_run_is_the_same_with_a_logger_that_fails(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def metrics(name: str, settings: list[str]) -> list[dict[str, Any]]:
        run = build(recipe, ["pretrain.steps=20", *settings], run=recipe.parent / name, say=lambda text: None).run
        lines = map(json.loads, (run / "pretrain" / "metrics.jsonl").read_text().splitlines())
        return [{key: value for key, value in line.items() if key not in ("seconds", "memory_bytes")} for line in lines]

    fake = ModuleType("trackio")
    fake.init = lambda **kwargs: 1 / 0  # type: ignore[attr-defined]
    fake.__spec__ = importlib.util.spec_from_loader("trackio", None)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    assert metrics("plain", []) == metrics("fed", ['pretrain.loggers=[{kind="trackio"}]'])
    events = [
        json.loads(line) for line in (recipe.parent / "fed" / "pretrain" / "events.jsonl").read_text().splitlines()
    ]
    (closed,) = (event for event in events if event["event"] == "logger closed")
    assert closed["dropped"] == len(metrics("fed", ['pretrain.loggers=[{kind="trackio"}]']))


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("logger "):
            thread.join(600)
            assert not thread.is_alive()
