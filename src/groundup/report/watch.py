"""`groundup watch`: the training of runs as a live page, read from the files that they write.

The page asks; nothing is read that nobody looks at. What it shows is in the run's own files, so that this program can
end and begin again at any time, and so can the run.
"""

import hashlib
import math
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson

from groundup.artifacts import is_made, lock_note, read_manifest
from groundup.errors import DataError, GroundupError
from groundup.files import require_path
from groundup.pages.render import render
from groundup.report.curves import Axis, Curves, EventLog, HealthMaps, X, clip_text, is_number
from groundup.report.facts import differing_settings
from groundup.settings import Table, read_toml
from groundup.words import plural

if TYPE_CHECKING:
    from fastapi import FastAPI

ASSETS = ("style.css", "board.css", "chart.js", "heat.js", "board.js", "watch.js", "icon.svg")
MAX_RUNS = 500
DEPTH = 3
"""Levels of folders below the one named in which runs are looked for."""
SECONDS_A_READ = 0.25
"""Spent on reading before a question is answered; a page of a long run fills as it is read."""
QUIET_SECONDS = 300
"""After as long without a line, a run that goes on is called quiet."""
State = Literal["waiting", "running", "quiet", "finished", "stopped", "diverged", "killed", "gone"]


@dataclass
class WatchedRun:
    """A run, as far as its files were read."""

    directory: Path
    """Absolute."""
    name: str
    """Its label, unique among the runs."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.name = os.fsencode(self.name).decode("utf-8", "replace")
        self.id = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:12]
        """It stays the same when this program is started again, so that bookmarks stay valid."""
        logs = self.directory / "pretrain"
        self.curves = Curves(logs / "metrics.jsonl")
        self.events = EventLog(logs / "events.jsonl")
        self.health = HealthMaps(logs / "health.jsonl")
        self._stale_note = ""

    def read(self, seconds: float = SECONDS_A_READ) -> None:
        """Take in what is new, for about that long at most."""
        until = time.monotonic() + seconds
        while self.curves.read() and time.monotonic() < until:
            pass
        self.events.read()
        self.health.read()

    def status(self) -> dict[str, Any]:
        try:
            quiet = max(0.0, time.time() - self.curves.tail.path.stat().st_mtime)
        except OSError:
            quiet = None
        state = self._state()
        if state == "running" and (quiet or 0) > QUIET_SECONDS:
            state = "quiet"
        return {"id": self.id, "name": self.name, "state": state, "seconds_since_a_line": quiet}

    def _state(self) -> State:
        if not self.directory.is_dir():
            return "gone"
        note, held = self._holder()
        if held:
            return "running"
        if is_made(self.directory / "model"):
            return "finished"
        with self.lock:
            self.events.read()
        match self.events.events[-1:]:
            case []:
                return "waiting"
            case [{"event": "diverged"}]:
                return "diverged"
            case [{"event": "stopped"}]:
                return "stopped"
        return "killed" if note else "stopped"

    def _holder(self) -> tuple[str, bool]:
        """Who wrote into the lock, and whether they hold it.

        A note whose writer does not hold the lock any more is not tried again: trying takes the lock for a moment, and
        that moment could be the one in which the run is started again.
        """
        try:
            note = (self.directory / "lock").read_text(encoding="utf-8")[:200].strip()
        except (OSError, UnicodeDecodeError):
            return "", False
        if not note or note == self._stale_note:
            return note, False
        note, held = lock_note(self.directory)
        self._stale_note = "" if held else note
        return note, held

    @cached_property
    def bits_per_nat(self) -> float | None:
        """What a loss of one nat a token is in bits per byte of the training text; None if that is not known."""
        try:
            train = read_manifest(self.directory / "shards").statistics["train"]
            return float(train["tokens"] / train["bytes"] / math.log(2))
        except (GroundupError, KeyError, TypeError, ZeroDivisionError):
            return None

    def curves_between(
        self, axis: Axis, low: float | None, high: float | None, width: int, logarithmic: bool
    ) -> dict[str, Any]:
        """The curves of a part of `axis` as JSON values; an event has the position of its step as `x`."""
        metrics = self.curves.between(axis, low, high, width, logarithmic)
        steps = [event["step"] if is_number(event.get("step")) else math.nan for event in self.events.events]
        positions = self.curves.interpolated(axis, steps)
        return {
            "id": self.id,
            "version": self.curves.tail.version,
            "share_read": self.curves.tail.share_read,
            "last": self.curves.last_x,
            "metrics": metrics,
            "training_bits_per_byte": self._training_bits_per_byte(metrics),
            "events": [{**event, "x": x} for event, x in zip(self.events.events, positions, strict=True)],
            "ranks": self.curves.ranks.summary(self.recipe(), self.events.events),
        }

    def _training_bits_per_byte(self, metrics: dict[str, Any]) -> dict[str, Any] | None:
        """The curve of training to set beside validation: the next token's part of the loss."""
        curve = metrics.get("next_token", metrics.get("loss"))
        if curve is None or self.bits_per_nat is None:
            return None
        mean = [None if value is None else float(f"{value * self.bits_per_nat:.6g}") for value in curve["mean"]]
        return {"x": curve["x"], "mean": mean}

    def samples_and_health(self) -> dict[str, Any]:
        return {"samples": self.curves.samples, "health": {"steps": self.health.steps, "maps": self.health.maps}}

    def recipe(self) -> Table:
        try:
            return read_toml(self.directory / "recipe.toml")
        except GroundupError:
            return {}


class Runs:
    """The runs in some folders, new ones as they come; each is known by its id, never by a path."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """
        Raises:
            DataError: a folder that is not there, or is a file.
        """
        for folder in folders:
            require_path(folder, "run or folder of runs")
            if not folder.is_dir():
                raise DataError(f"{folder} is a file; name a run, or a folder of runs, such as runs/")
        self._folders = [folder.absolute() for folder in folders]
        self._lock = threading.Lock()
        self._runs: dict[Path, WatchedRun] = {}
        self._looked = -math.inf

    def all(self) -> list[WatchedRun]:
        with self._lock:
            if time.monotonic() - self._looked > 1.0:
                self._find_new()
            return list(self._runs.values())

    def find(self, id: str) -> WatchedRun | None:
        return next((run for run in self.all() if run.id == id), None)

    def _find_new(self) -> None:
        for folder in self._folders:
            for directory in _runs_in(folder, DEPTH):
                if directory not in self._runs and len(self._runs) < MAX_RUNS:
                    name = directory.name if directory == folder else str(directory.relative_to(folder))
                    self._runs[directory] = WatchedRun(directory, name)
        self._looked = time.monotonic()


def _runs_in(directory: Path, depth: int) -> Iterator[Path]:
    if (directory / "recipe.toml").is_file() or (directory / "pretrain").is_dir():
        yield directory
    elif depth:
        try:
            inner = [entry.path for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
        except OSError:
            return
        for path in sorted(inner, key=_by_numbers):
            yield from _runs_in(Path(path), depth - 1)


def _by_numbers(path: str) -> list[tuple[int, str]]:
    """
    >>> sorted(["run-10", "run-9", "run-a"], key=_by_numbers)
    ['run-9', 'run-10', 'run-a']
    """
    return [(int(part), "") if part.isascii() and part.isdigit() else (-1, part) for part in re.split("([0-9]+)", path)]


def freeze(directory: Path, points: int = 600) -> Table:
    """The training of a finished run, for a page that draws it as the live page did.

    Returns:
        as `curves_between` over steps, with `knots`: the other axes at some steps, to be interpolated between.
    """
    run = WatchedRun(directory.absolute(), directory.resolve().name)
    run.read(seconds=math.inf)
    curves = run.curves_between("step", None, None, points, False)
    steps = sorted({step for curve in curves["metrics"].values() for step in curve["x"]})
    steps = [*steps[:: max(1, len(steps) // 200)], *steps[-1:]]
    return {
        "name": run.name,
        "metrics": curves["metrics"],
        "training_bits_per_byte": curves["training_bits_per_byte"],
        "events": curves["events"],
        "ranks": curves["ranks"],
        "knots": {axis: run.curves.interpolated(axis, steps) for axis in X},
        "health": run.samples_and_health()["health"],
    }


def make_app(runs: Runs) -> "FastAPI":
    """The page and what it asks for."""
    from fastapi import FastAPI, HTTPException, Query, Response

    from groundup.pages import app as pages

    app: FastAPI = pages.make_app(render("watch.html"), ASSETS)
    began = f"{time.time_ns():x}"

    def answer(value: Any) -> Response:
        return Response(orjson.dumps(value), media_type="application/json")

    def known(id: str) -> WatchedRun:
        run = runs.find(id)
        if run is None:
            raise HTTPException(404, "no such run")
        return run

    @app.get("/api/runs")
    def list_runs() -> Response:
        return answer({"began": began, "runs": [run.status() for run in runs.all()]})

    @app.get("/api/curves/{id}")
    def curves(
        id: str,
        axis: Axis = "step",
        low: Annotated[float | None, Query(allow_inf_nan=False)] = None,
        high: Annotated[float | None, Query(allow_inf_nan=False)] = None,
        width: Annotated[int, Query(ge=10, le=4000)] = 800,
        logarithmic: bool = False,
        since: Annotated[str, Query(max_length=60)] = "",
    ) -> Response:
        run = known(id)
        with run.lock:
            run.read()
            if since == run.curves.tail.version:
                return answer({"id": id, "version": since})
            return answer(run.curves_between(axis, low, high, width, logarithmic))

    @app.get("/api/more/{id}")
    def more(id: str, since: Annotated[str, Query(max_length=60)] = "") -> Response:
        """Samples and maps, which change seldom."""
        run = known(id)
        with run.lock:
            version = f"{run.curves.tail.generation}.{len(run.curves.samples)}.{run.health.tail.version}"
            if since == version:
                return answer({"id": id, "version": version})
            return answer({"id": id, "version": version, **run.samples_and_health()})

    @app.get("/api/differences")
    def list_differences(ids: Annotated[str, Query(max_length=2000)] = "") -> Response:
        differing = [run for id in ids.split(",")[:100] if (run := runs.find(id)) is not None]
        settings = differing_settings([run.recipe() for run in differing])
        words = {
            clip_text(name): [None if value is None else clip_text(str(value)) for value in values]
            for name, values in settings.items()
            if name != "name"
        }
        return answer({"ids": [run.id for run in differing], "settings": words})

    return app


def watch(folders: Sequence[Path], port: int, open_browser: bool) -> None:
    """Serve the page until a signal comes.

    Raises:
        DataError: a folder that is not there.
        ResourceError: the port is taken.
    """
    from groundup.pages import app as pages

    runs = Runs(folders)
    listening = pages.listen(port)
    address = pages.address(listening)
    print(f"watching {plural(len(runs.all()), 'run')}: {address}  (Ctrl-C ends the watching, not the runs)", flush=True)
    if open_browser:
        import webbrowser

        webbrowser.open(address)
    pages.serve(make_app(runs), listening)
