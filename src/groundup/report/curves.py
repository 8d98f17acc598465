"""The growing logs of a run, read as they come: any range of a curve at any width.

The lines of metrics.jsonl become columns of numbers, one entry a line. In a column, NaN means that the line does not
have the metric, and an infinity that it has it without a usable number (null, NaN, infinite).
"""

import itertools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np
import orjson

MAX_LINES = 1 << 20
"""Lines that are kept as they are; of a longer run, older ones are thinned."""
MAX_METRICS = 64
CHUNK_BYTES = 1 << 22
MAX_SAMPLES = 200
MAX_EVENTS = 1000
MAX_MEASUREMENTS = 512
"""Columns of a heat map; of more, every other one is dropped."""
MAX_TEXT = 4000
SPEED = "tokens_per_second"
Axis = Literal["step", "tokens", "seconds", "flops"]
X: tuple[Axis, ...] = ("step", "tokens", "seconds", "flops")
"""What curves can be drawn over. None of them falls within a run, its resumed parts included."""
Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]


class Tail:
    """The whole lines of a file that another process appends to, cuts back and replaces."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = 0
        """Bytes read so far; always the beginning of a line."""
        self.size = 0
        self._file_id: tuple[int, int] | None = None
        self._last = b""

    def read(self, limit: int = CHUNK_BYTES) -> tuple[bool, bytes]:
        """Whether the file was replaced or cut back, so that all read before is void; and the next whole lines.

        A last line without its end is left for later. A line longer than `limit` is skipped.
        """
        try:
            with open(self.path, "rb") as stream:
                status = os.fstat(stream.fileno())
                void = self._is_void(status, stream.fileno())
                if void:
                    self.at, self._last = 0, b""
                self._file_id, self.size = (status.st_dev, status.st_ino), status.st_size
                read = os.pread(stream.fileno(), limit, self.at)
        except OSError:  # not there yet, or no longer: what was read still stands
            return False, b""
        lines = read[: read.rfind(b"\n") + 1]
        self.at += len(lines) or (len(read) if len(read) == limit else 0)
        self._last = (self._last + lines)[-64:]
        return void, lines

    def _is_void(self, status: os.stat_result, file: int) -> bool:
        if self._file_id is None:
            return False
        if self._file_id != (status.st_dev, status.st_ino) or status.st_size < self.at:
            return True
        return bool(self._last) and os.pread(file, len(self._last), self.at - len(self._last)) != self._last

    def read_objects(self) -> tuple[bool, list[dict[str, Any]]]:
        """As `read`, all that is left of the file: its JSON objects."""
        objects: list[dict[str, Any]] = []
        voided, text = False, b"\n"
        while text:
            void, text = self.read()
            if void:
                voided, objects = True, []
            objects += parse_lines(text)
        return voided, objects


def parse_lines(text: bytes) -> list[dict[str, Any]]:
    """The JSON objects in whole lines, empty where there is none; NaN and infinities are None."""
    try:
        rows = orjson.loads(b"[%b]" % text[:-1].replace(b"\n", b","))  # all at once is faster
    except ValueError:
        rows = [_parse_line(line) for line in text.split(b"\n")[:-1]]
    return [row if isinstance(row, dict) else {} for row in rows]


def _parse_line(line: bytes) -> object:
    try:
        return orjson.loads(line)
    except ValueError:
        try:
            return json.loads(line, parse_constant=lambda name: None)
        except (ValueError, RecursionError):
            return None


def clip_text(text: str) -> str:
    """Text that can be written as JSON: what is not Unicode is replaced, what is far too long is cut."""
    whole = text.encode("utf-8", "replace").decode()
    return whole if len(whole) <= MAX_TEXT else whole[:MAX_TEXT] + "…"


def _column(rows: list[dict[str, Any]], name: str) -> Floats:
    values = [row.get(name, math.nan) for row in rows]
    if set(map(type, values)) <= {int, float}:
        return np.array(values, np.float64)
    return np.array([_number(value) for value in values])


def _number(value: object) -> float:
    """Infinity for None, NaN for what is not a number."""
    try:
        return math.inf if value is None else float(value) if is_number(value) else math.nan
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass
class Curves:
    """The metrics of one run."""

    path: Path
    samples: list[dict[str, Any]] = field(default_factory=list)
    lines: int = 0
    generation: int = 0
    """How often the file was replaced or cut back, and read again from the start."""

    def __post_init__(self) -> None:
        self._tail = Tail(self.path)
        self._forget()

    def _forget(self) -> None:
        self.samples, self.lines = [], 0
        self._columns: dict[str, Floats] = {axis: np.full(1024, math.nan) for axis in X}

    @property
    def metrics(self) -> list[str]:
        return list(itertools.islice(self._columns, len(X), None))

    @property
    def version(self) -> str:
        """Changes whenever there is something new to draw."""
        return f"{self.generation}.{self._tail.at}"

    @property
    def share_read(self) -> float:
        return self._tail.at / self._tail.size if self._tail.size else 1.0

    @property
    def last_x(self) -> dict[str, float | None]:
        return {axis: _or_none(self._before(axis)) for axis in X}

    def _before(self, axis: Axis) -> float:
        """The axis at the last line that was read."""
        return float(self._columns[axis][self.lines - 1]) if self.lines else math.nan

    def read(self) -> bool:
        """Take in the next few megabytes; whether there were any."""
        at = self._tail.at
        void, text = self._tail.read()
        if void:
            self.generation += 1
            self._forget()
            at = 0
        if text:
            self._append(parse_lines(text))
        return bool(text) or self._tail.at > at

    def _append(self, rows: list[dict[str, Any]]) -> None:
        names = dict.fromkeys(itertools.chain.from_iterable(rows))
        columns = {clip_text(name): _column(rows, name) for name in names}
        for axis in X:  # a line without an axis (a validation has no seconds) has that of the line before it
            columns[axis] = _filled_forward(columns.get(axis, np.full(len(rows), math.nan)), self._before(axis))
        if "loss" in columns and SPEED not in columns:
            tokens, seconds = (np.append(self._before(axis), columns[axis]) for axis in ("tokens", "seconds"))
            columns[SPEED] = _speed(tokens, seconds, ~np.isnan(columns["loss"]))
        start, end = self.lines, self.lines + len(rows)
        room = len(self._columns["step"])
        for name, column in columns.items():
            is_new = name not in self._columns and len(name) <= 200 and not np.isnan(column).all()
            if is_new and len(self._columns) < len(X) + MAX_METRICS:
                self._columns[name] = np.full(room, math.nan, np.float32)
        if end > room:
            more = max(end, 2 * room) - room
            for name, column in self._columns.items():
                self._columns[name] = np.append(column, np.full(more, math.nan, column.dtype))
        with np.errstate(over="ignore"):  # beyond float32 is not a usable number
            for name in self._columns.keys() & columns.keys():
                self._columns[name][start:end] = columns[name]
        self.samples += [
            {"step": _or_none(columns["step"][i]), "text": clip_text(row["sample"])}
            for i, row in enumerate(rows if "sample" in names else ())
            if isinstance(row.get("sample"), str)
        ]
        if len(self.samples) > MAX_SAMPLES:  # the first and the latest say the most
            self.samples = self.samples[:20] + self.samples[-(MAX_SAMPLES - 20) :]
        self.lines = end
        if self.lines > MAX_LINES:
            self._thin()

    def _thin(self) -> None:
        """Keep two of each four lines, with the least and the greatest value of each metric."""
        whole = self.lines // 4 * 4
        for name, column in self._columns.items():
            four = column[:whole].reshape(-1, 4)
            if name in X:
                two = four[:, [0, 3]]
            else:
                low, high = np.fmin.reduce(four, axis=1), np.fmax.reduce(four, axis=1)
                two = np.stack([np.where(low == high, math.nan, low), high], axis=1)
            column[: self.lines - whole // 2] = np.append(two, column[whole : self.lines])
        self.lines -= whole // 2

    def between(
        self, axis: Axis, low: float | None, high: float | None, width: int, logarithmic: bool
    ) -> dict[str, Any]:
        """Each metric over `axis` from `low` to `high`, in at most `width` points.

        Returns:
            metric → `x`, `mean` and, where a point stands for several lines, `low` and `high`: lists of one length.
            None is a gap, where there are only unusable numbers.
        """
        x = self._columns[axis][: self.lines]
        drawable = (x > 0) if logarithmic else ~np.isnan(x)
        inside = np.flatnonzero(
            drawable & (x >= (-math.inf if low is None else low)) & (x <= (math.inf if high is None else high))
        )
        if not len(inside):
            return {}
        start, end = max(0, int(inside[0]) - 1), int(inside[-1]) + 2  # one more on each side, to reach the edges
        kept = start + np.flatnonzero(drawable[start:end])
        x = x[kept]
        group = np.arange(len(x))
        if len(x) > width:
            position = np.log(x) if logarithmic else x
            span = (position.max() - position.min()) or 1.0
            group = np.minimum(((position - position.min()) / span * width).astype(np.int64), width - 1)
        if (np.diff(group) < 0).any():  # steps that were taken twice
            order = np.argsort(group, kind="stable")
            kept, x, group = kept[order], x[order], group[order]
        first = np.flatnonzero(np.diff(group, prepend=-1))
        x = x[np.append(first[1:], len(x)) - 1]
        curves = {name: _decimated(x, self._columns[name][kept], first) for name in self.metrics}
        return {name: curve for name, curve in curves.items() if curve["x"]}

    def interpolated(self, axis: Axis, steps: Sequence[float]) -> list[float | None]:
        """`axis` at some steps; None for those that were not taken."""
        step, value = self._columns["step"][: self.lines], self._columns[axis][: self.lines]
        known = ~np.isnan(step) & ~np.isnan(value)
        if not known.any():
            return [None for _ in steps]
        at = np.interp(np.asarray(steps, np.float64), step[known], value[known], left=math.nan, right=math.nan)
        return [_or_none(value) for value in at]


def _filled_forward(values: Floats, before: float) -> Floats:
    whole = np.append(before, values)
    last = np.maximum.accumulate(np.where(np.isfinite(whole), np.arange(len(whole)), 0))
    filled: Floats = whole[last][1:]
    return filled


def _speed(tokens: Floats, seconds: Floats, is_step: Any) -> Floats:
    """Tokens a second since the step before; NaN where the clock did not go forward, or nothing was trained.

    Args:
        tokens: and seconds: those before the first line, then those of each line.
    """
    steps = np.flatnonzero(is_step)
    more, took = (np.diff(values[np.append(0, steps + 1)]) for values in (tokens, seconds))
    speed = np.full(len(is_step), math.nan)
    valid = (took > 0) & (more > 0)
    speed[steps[valid]] = more[valid] / took[valid]
    return speed


def _decimated(x: Floats, values: Floats, first: Any) -> dict[str, list[Any]]:
    """The mean, the least and the greatest value of each group of lines that has any.

    Args:
        x: of each group.
        first: where each group begins in `values`.
    """
    usable, absent = np.isfinite(values), np.isnan(values)
    n_usable = np.add.reduceat(usable, first, dtype=np.int32)
    there = np.flatnonzero(~np.logical_and.reduceat(absent, first))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.add.reduceat(np.where(usable, values, 0), first, dtype=np.float64) / n_usable
    curve = {"x": x[there].tolist(), "mean": _rounded(mean[there])}
    if (n_usable > 1).any():
        values = np.where(usable, values, math.nan)
        curve |= {
            name: _rounded(extreme.reduceat(values, first)[there])
            for name, extreme in (("low", np.fmin), ("high", np.fmax))
        }
    return curve


def _rounded(values: Floats) -> list[float | None]:
    """Six digits; None for what is not a number."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@dataclass
class EventLog:
    """The latest lines of a run's events.jsonl."""

    path: Path
    events: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tail = Tail(self.path)

    def read(self) -> None:
        void, objects = self._tail.read_objects()
        new = [
            {clip_text(name)[:200]: _plain(value) for name, value in itertools.islice(event.items(), 40)}
            for event in objects[-MAX_EVENTS:]
        ]
        self.events = new if void else (self.events + new)[-MAX_EVENTS:]


def _plain(value: Any) -> str | int | float | bool | None:
    """A value that fits into a line and into JSON."""
    match value:
        case bool() | None:
            return value
        case int() | float():
            return value if abs(value) < 2**53 else str(value)  # NaN is not less
        case str():
            return clip_text(value)
        case _:
            return clip_text(json.dumps(value, ensure_ascii=False))


@dataclass
class HealthMaps:
    """Numbers of each layer at intervals: lines `{"step": 100, "layers": [{"gradient_norm": 0.1, …}, …]}`.

    Every number that a layer has becomes a map of its own, whatever its name.
    """

    path: Path
    maps: dict[str, list[list[float | None]]] = field(default_factory=dict)
    """Metric → for each measurement → for each layer."""
    steps: list[float] = field(default_factory=list)
    generation: int = 0

    def __post_init__(self) -> None:
        self._tail = Tail(self.path)
        self._every, self._measurements = 1, 0

    @property
    def version(self) -> str:
        return f"{self.generation}.{self._tail.at}"

    def read(self) -> None:
        void, objects = self._tail.read_objects()
        if void:
            self.maps, self.steps, self._every, self._measurements = {}, [], 1, 0
            self.generation += 1
        for line in objects:
            self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        step, layers = line.get("step"), line.get("layers")
        if not isinstance(step, int) or not isinstance(layers, list) or abs(step) > 2**53:
            return
        self._measurements += 1
        if (self._measurements - 1) % self._every:
            return
        layers = [layer if isinstance(layer, dict) else {} for layer in layers[:1000]]
        numbers = {name: None for layer in layers for name, value in layer.items() if is_number(value)}
        numbers.pop("layer", None)
        for name in itertools.islice(numbers, MAX_METRICS):
            self.maps.setdefault(clip_text(name)[:200], [[] for _ in self.steps])
        self.steps.append(step)
        for name, columns in self.maps.items():
            values = _column(layers, name)
            columns.append(_rounded(values) if name in numbers else [])
        if len(self.steps) > MAX_MEASUREMENTS:
            self.steps = self.steps[::2]
            self.maps = {name: columns[::2] for name, columns in self.maps.items()}
            self._every *= 2
