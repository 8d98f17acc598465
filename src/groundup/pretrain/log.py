"""The log of a run: metrics.jsonl, what each step did, cut back on resume; events.jsonl, what happened, never cut."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from groundup.files import naming_the_place, read_lines, write_text
from groundup.train.fit import Step


class RunLog:
    def __init__(self, directory: Path) -> None:
        with naming_the_place(directory):
            directory.mkdir(parents=True, exist_ok=True)
        self._metrics = directory / "metrics.jsonl"
        self._events = directory / "events.jsonl"
        self._waiting: list[Callable[[], dict[str, Any]]] = []
        self._last: dict[str, Any] = {}

    def cut_after(self, step: int) -> None:
        """Forget lines of later steps, and a line that a killed process left half-written."""
        lines = [line for line in read_lines(self._metrics) if isinstance(line.get("step"), int)]
        kept = [line for line in lines if line["step"] <= step]
        write_text(self._metrics, "".join(json.dumps(line) + "\n" for line in kept))
        for line in kept:
            self._last |= line

    def step(self, step: Step, tokens: int, seconds: float, flops: int) -> None:
        self._waiting.append(
            lambda: {
                "step": step.number,
                "loss": step.loss.item(),
                **{name: part.item() for name, part in step.parts.items()},
                "grad_norm": step.grad_norm.item(),
                "learning_rate": step.learning_rate,
                "tokens": tokens,
                "seconds": round(seconds, 3),
                "flops": flops,
            }
        )

    def add(self, **line: Any) -> None:
        self._waiting.append(lambda: line)

    def flush(self) -> dict[str, Any] | None:
        """Write what waits. A step whose loss or gradient is not a finite number is not written but returned."""
        lines = [make() for make in self._waiting]
        self._waiting = []
        for number, line in enumerate(lines):
            if "loss" in line and not (math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"])):
                _append(self._metrics, lines[:number])
                return {"step": line["step"], "loss": str(line["loss"]), "grad_norm": str(line["grad_norm"])}
            self._last |= line
        _append(self._metrics, lines)
        return None

    def event(self, kind: str, **details: Any) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        _append(self._events, [{"at": at, "event": kind, **details}])

    def last(self, name: str) -> Any:
        return self._last.get(name)

    def summary(self) -> str:
        """A few words for the progress bar."""
        shown = {"loss": ("loss", ".3f"), "validation_bits_per_byte": ("validation bits/byte", ".3f")}
        return ", ".join(
            f"{label} {self._last[name]:{form}}" for name, (label, form) in shown.items() if name in self._last
        )


def _append(path: Path, lines: list[dict[str, Any]]) -> None:
    with naming_the_place(path), open(path, "a+b") as stream:
        if stream.tell() and (stream.seek(-1, os.SEEK_END), stream.read(1))[1] != b"\n":
            stream.write(b"\n")  # a killed process left half a line; it must not swallow the next
        stream.write("".join(json.dumps(line) + "\n" for line in lines).encode())
