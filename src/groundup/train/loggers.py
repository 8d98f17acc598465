"""Metrics for other programs: TensorBoard, Weights & Biases, trackio, MLflow.

The run's own metrics.jsonl is complete without them. Each logger has a thread and a queue of its own: one that is
slow, full, broken or gone costs the training nothing, loses lines, and is reported in the run's events.
"""

import hashlib
import importlib
import importlib.util
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from groundup.errors import SettingsError
from groundup.settings import Table, flatten
from groundup.train.settings import Logger, MLflow, TensorBoard, Trackio, WeightsAndBiases

Line = dict[str, Any]
MAX_WAITING = 10_000
"""Lines that wait for a logger; more are dropped, and counted."""
MAX_FAILURES = 20
"""Failures in a row, after which a logger is not tried again."""
SECONDS_TO_CLOSE = 10.0
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}
"""Kind, which is also the name of the optional extra → the package that it needs."""


class Writer(Protocol):
    """What writes for one kind of logger. It may be slow and may raise: it is called from a thread of its own."""

    def write(self, step: int, numbers: dict[str, float], text: str | None) -> None:
        """Hand over one line of metrics.jsonl: its finite numbers, and the sample that the model wrote, if any."""

    def close(self) -> None:
        """Finish, with all that was handed over."""


def refuse_missing(loggers: Iterable[Logger], table: str) -> None:
    """
    Raises:
        SettingsError: a logger whose package is not installed, with the command that installs it.
    """
    for logger in loggers:
        package = PACKAGES[logger.kind]
        if importlib.util.find_spec(package) is None:
            raise SettingsError(
                f"{table}.loggers names {logger.kind}, which needs the package {package}, and that is not installed: "
                f"pip install 'groundup[{logger.kind}]', or leave the logger out (metrics.jsonl is written in any case)"
            )


class Loggers:
    """All loggers of a run."""

    def __init__(self, settings: Iterable[Logger], work: Path, recorded: Table) -> None:
        """
        Args:
            work: the directory of the run's metrics.
            recorded: the settings, which some loggers show beside the curves.
        """
        self._feeds = [_Feed(logger.kind, partial(open_writer, logger, work, recorded)) for logger in settings]

    def send(self, lines: list[Line]) -> list[dict[str, Any]]:
        """Hand lines over; never waits, never raises. Returns events about loggers that are newly in trouble."""
        events = []
        for feed in self._feeds:
            feed.send(lines)
            if (feed.error or feed.dropped) and not feed.reported:
                feed.reported = True
                trouble = {"dropped": feed.dropped, "error": feed.error}
                events.append({"kind": "logger in trouble", "logger": feed.kind, **trouble})
        return events

    def close(self) -> list[dict[str, Any]]:
        """Let the loggers finish, for a bounded time. Returns an event for each: how many lines it got."""
        until = time.monotonic() + SECONDS_TO_CLOSE
        for feed in self._feeds:
            feed.waiting.put(None)
        events = []
        for feed in self._feeds:
            feed.thread.join(max(0.0, until - time.monotonic()))
            left = feed.waiting.qsize() - 1 if feed.thread.is_alive() else 0  # the end, too, waits
            event = {"kind": "logger closed", "logger": feed.kind, "written": feed.written}
            events.append(event | {"dropped": feed.dropped + left} | ({"error": feed.error} if feed.error else {}))
        return events


class _Feed:
    """One logger, its queue and its thread."""

    def __init__(self, kind: str, make: Callable[[], Writer]) -> None:
        self.kind = kind
        self.waiting: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        """Lines in order, then None for the end."""
        self.written = self.dropped = 0
        self.error = ""
        self.reported = False
        self._make = make
        # A daemon: one that hangs must not keep the process from ending.
        self.thread = threading.Thread(target=self._work, name=f"logger {kind}", daemon=True)
        self.thread.start()

    def send(self, lines: list[Line]) -> None:
        for line in lines:
            if self.waiting.qsize() < MAX_WAITING:
                self.waiting.put(line)
            else:
                self.dropped += 1

    def _work(self) -> None:
        writer, failures = None, 0
        for line in iter(self.waiting.get, None):
            if failures >= MAX_FAILURES:
                self.dropped += 1
                continue
            try:
                writer = writer or self._make()
                writer.write(int(line["step"]), _finite_numbers(line), line.get("sample"))
                self.written, failures = self.written + 1, 0
            except Exception as error:  # whatever a foreign program does
                self.error, failures = _in_words(error), failures + 1
                self.dropped += 1
        try:
            if writer is not None:
                writer.close()
        except Exception as error:
            self.error = _in_words(error)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _finite_numbers(line: Line) -> dict[str, float]:
    numbers = {name: value for name, value in line.items() if type(value) in (int, float) and name != "step"}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def open_writer(settings: Logger, work: Path, recorded: Table) -> Writer:
    """The writer for one kind of logger."""
    name = work.parent.name
    match settings:
        case TensorBoard():
            return _TensorBoard(work / "tensorboard")
        case WeightsAndBiases():  # a resumed run goes on as the same one, known by its directory
            identity = hashlib.sha256(str(work.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
            return _Run(settings, name, recorded, id=identity, mode=settings.mode, dir=str(work))
        case Trackio():
            return _Run(settings, name, flatten(recorded), embed=False)
        case MLflow():
            return _MLflow(settings, name, recorded)


class _TensorBoard:
    def __init__(self, directory: Path) -> None:
        self._writer = importlib.import_module("tensorboardX").SummaryWriter(str(directory), flush_secs=10)

    def write(self, step: int, numbers: dict[str, float], text: str | None) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        if text is not None:
            self._writer.add_text("sample", text, step)

    def close(self) -> None:
        self._writer.close()


class _Run:
    """A run of Weights & Biases, or of trackio, which has the same interface."""

    def __init__(self, settings: WeightsAndBiases | Trackio, name: str, recorded: Table, **options: Any) -> None:
        init = importlib.import_module(PACKAGES[settings.kind]).init
        self._run = init(project=settings.project, name=name, config=recorded, resume="allow", **options)

    def write(self, step: int, numbers: dict[str, float], text: str | None) -> None:
        self._run.log(numbers if text is None else {**numbers, "sample": text}, step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """Each process is a run of its own there."""

    def __init__(self, settings: MLflow, name: str, recorded: Table) -> None:
        self._mlflow = importlib.import_module("mlflow")
        self._client = self._mlflow.MlflowClient(tracking_uri=settings.tracking_uri)
        experiment = self._client.get_experiment_by_name(settings.experiment)
        identity = experiment.experiment_id if experiment else self._client.create_experiment(settings.experiment)
        self._run = self._client.create_run(identity, run_name=name).info.run_id
        for setting, value in flatten(recorded).items():
            self._client.log_param(self._run, setting, str(value)[:500])

    def write(self, step: int, numbers: dict[str, float], text: str | None) -> None:
        now = int(time.time() * 1000)
        metric = self._mlflow.entities.Metric
        self._client.log_batch(self._run, [metric(name, value, now, step) for name, value in numbers.items()])
        if text is not None:
            self._client.log_text(self._run, text, f"samples/step-{step:08}.txt")

    def close(self) -> None:
        self._client.set_terminated(self._run)
