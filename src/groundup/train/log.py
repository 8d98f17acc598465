"""The log of a run: metrics.jsonl and health.jsonl, which are cut back on resume, and events.jsonl, which never is.
Every line is JSON: a number that is not finite is null, and a word beside it says what it was."""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from groundup.errors import ResourceError
from groundup.files import explaining_write_errors, read_lines, write_text
from groundup.machine import peak_memory
from groundup.train.fit import Step
from groundup.train.loggers import Loggers


@dataclass
class RunLog:
    """The log of one run; leaving its context closes the loggers of other programs."""

    directory: Path
    loggers: Loggers | None = None
    """Get the lines of metrics once they are written."""
    flops_per_token: int = 0
    peak_flops: float | None = None
    """FLOPs a second of this machine at best, where they were measured."""
    writes: bool = True
    """Whether this process writes the files; of many ranks one does, and the others only remember."""

    def __post_init__(self) -> None:
        with explaining_write_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        self._metrics = self.directory / "metrics.jsonl"
        self._health = self.directory / "health.jsonl"
        self._events = self.directory / "events.jsonl"
        self._waiting: list[Callable[[], dict[str, Any]]] = []
        self._unwritten: dict[Path, list[dict[str, Any]]] = {}
        self._last: dict[str, tuple[int, Any]] = {}
        """Name → the step at which a value was last written under it, and the value."""
        self._flushed: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._note(self.loggers.close() if self.loggers else [])

    def cut_after(self, step: int) -> None:
        """Forget lines of later steps, and a line that a killed process left half-written."""
        self._waiting, self._last, self._flushed = [], {}, {}
        for path in (self._metrics, self._health):
            self._unwritten.pop(path, None)
            kept = [line for line in read_lines(path) if isinstance(line.get("step"), int) and line["step"] <= step]
            if self.writes and (kept or path.exists()):
                write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
            if path == self._metrics:
                for line in kept:
                    self._remember(line)

    def at(self, step: int, name: str) -> Any:
        """What was written under that name at just this step; None if nothing was."""
        written, value = self._last.get(name, (None, None))
        return value if written == step else None

    def step(self, step: Step, tokens: int, seconds: float) -> None:
        self._waiting.append(
            lambda: {
                "step": step.number,
                "loss": step.loss.item(),
                **({name: part.item() for name, part in step.parts.items()} if len(step.parts) > 1 else {}),
                "grad_norm": step.grad_norm.item(),
                "learning_rate": step.learning_rate,
                "tokens": tokens,
                "seconds": round(seconds, 3),
                "flops": self.flops_per_token * tokens,
                **({} if step.accepted else {"accepted": False}),
            }
        )

    def add(self, **line: Any) -> None:
        self._waiting.append(lambda: line)

    def flush(self) -> dict[str, Any] | None:
        """Write what waits. A step that was taken with a loss or gradient that is not a finite number is not written
        but returned.

        What the disk does not take is kept, and tried again with the next lines; `check` says whether there is any.
        """
        lines = [make() for make in self._waiting]
        for line in [line for line in lines if "loss" in line][-1:]:
            line["memory_bytes"] = peak_memory(torch.device("cuda") if torch.cuda.is_initialized() else None)
            if self.peak_flops and self._flushed and line["seconds"] > self._flushed["seconds"]:
                done = line["flops"] - self._flushed["flops"]
                taken = line["seconds"] - self._flushed["seconds"]
                line["share_of_peak"] = round(done / taken / self.peak_flops, 4)
            self._flushed = line
        self._waiting = []
        for number, line in enumerate(lines):
            taken = "loss" in line and line.get("accepted", True)
            if taken and not (math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"])):
                self._write(self._metrics, lines[:number])
                return {"step": line["step"], "loss": str(line["loss"]), "grad_norm": str(line["grad_norm"])}
            self._remember(line)
        self._write(self._metrics, lines)
        self._note(self.loggers.send(lines) if self.loggers else [])
        return None

    def _note(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            self.event(**event)

    def _remember(self, line: dict[str, Any]) -> None:
        if line.get("accepted", True):
            self._last |= {name: (line["step"], value) for name, value in line.items()}

    def event(self, kind: str, **details: Any) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._write(self._events, [{"at": at, "event": kind, **details}])

    def check(self) -> None:
        """
        Raises:
            ResourceError: when there are lines that the disk does not take.
        """
        for path in list(self._unwritten):
            _append(path, self._unwritten[path])
            del self._unwritten[path]

    def _write(self, path: Path, lines: list[dict[str, Any]]) -> None:
        for line in lines if self.writes else ():
            self._unwritten.setdefault(path, []).append(line)
        with contextlib.suppress(ResourceError):
            self.check()

    def health(self, line: dict[str, Any]) -> None:
        self._write(self._health, [line])

    def last(self, name: str) -> Any:
        return self._last.get(name, (None, None))[1]

    def summary(self) -> str:
        """A few words for the progress bar."""
        labels = {"loss": "loss", "validation_bits_per_byte": "validation bits/byte"}
        return ", ".join(f"{label} {self.last(name):.3f}" for name, label in labels.items() if name in self._last)


def _append(path: Path, lines: list[dict[str, Any]]) -> None:
    """All of the lines or none."""
    with explaining_write_errors(path), open(path, "a+b", buffering=0) as stream:
        end = stream.seek(0, os.SEEK_END)
        text = "".join(json.dumps(as_json(line), allow_nan=False) + "\n" for line in lines).encode()
        if end and (stream.seek(-1, os.SEEK_END), stream.read(1))[1] != b"\n":
            text = b"\n" + text  # a killed process left half a line; it must not swallow the next
        try:
            while text:
                text = text[stream.write(text) :]
        except OSError:
            stream.truncate(end)
            raise


def as_json(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by null; in an object, keep the word in `NAME_was`.

    >>> as_json({"loss": float("nan"), "layers": [float("inf"), 1.0]})
    {'loss': None, 'loss_was': 'nan', 'layers': [None, 1.0]}
    """
    match value:
        case dict():
            plain = {}
            for name, inner in value.items():
                plain[name] = as_json(inner)
                if isinstance(inner, float) and plain[name] is None:
                    plain[f"{name}_was"] = str(inner)
            return plain
        case list() | tuple():
            return [as_json(inner) for inner in value]
        case float() if not math.isfinite(value):
            return None
    return value
