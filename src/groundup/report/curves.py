"""The growing logs of a run, read as they come: any range of a curve at any width, in bounded memory.

A row stands for the lines number `row · lines_per_row` and following: the least, the greatest and the mean of each
metric over them. Lines per row double whenever there would be more than `MAX_ROWS` rows, so a run of ten million steps
takes as much memory as one of a hundred thousand. What is looked at so closely that rows are too coarse is read again
from the file.
"""

import itertools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.json

MAX_ROWS = 1 << 17
MAX_METRICS = 64
CHUNK_BYTES = 1 << 22
MAX_DETAIL_BYTES = 1 << 25
"""Most that is read again from the file to answer one question."""
MAX_SAMPLES = 200
MAX_EVENTS = 1000
MAX_MEASUREMENTS = 512
"""Columns of a heat map: of more, every other is let go."""
MAX_TEXT = 4000
Axis = Literal["step", "tokens", "seconds", "flops"]
X: tuple[Axis, ...] = ("step", "tokens", "seconds", "flops")
"""What curves can be drawn over. None of them ever falls within a run, its resumed parts included."""
Floats = np.ndarray[Any, np.dtype[np.float64]]


class Tail:
    """Whole lines of a file that another process appends to, cuts back and replaces."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = 0
        """Bytes read so far; always the beginning of a line."""
        self.size = 0
        self._file_id: tuple[int, int] | None = None
        self._last = b""

    def read(self, limit: int = CHUNK_BYTES) -> tuple[bool, bytes]:
        """Whether the file is another than before, so that all read so far is void; and the next whole lines.

        A last line without its end is left for later. A line longer than `limit` is passed over.
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

    def reread(self, start: int, end: int) -> bytes:
        try:
            with open(self.path, "rb") as stream:
                return os.pread(stream.fileno(), end - start, start)
        except OSError:
            return b""


@dataclass(frozen=True)
class Lines:
    """What some lines say, a place for each line: NaN where a metric is not in it, or is no number."""

    values: dict[str, Floats]
    broken: dict[str, np.ndarray[Any, np.dtype[np.bool_]]]
    """Where a metric is in the line, but is null, NaN or infinite; only of metrics that have such."""
    samples: list[tuple[int, str]]
    """Place and text."""
    starts: np.ndarray[Any, np.dtype[np.int64]]
    """The byte at which each line begins."""


def parse(text: bytes) -> Lines:
    """JSON lines as columns; Arrow's reader where it can, which is many times faster, else line by line."""
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == 10)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64) if len(ends) else np.zeros(0, np.int64)
    # Arrow cannot tell what is null from what is not there, and knows no NaN.
    if len(starts) > 100 and not any(word in text for word in (b"null", b"NaN", b"Infinity")):
        found = _parse_by_arrow(text, starts)
        if found is not None:
            return found
    return parse_by_line(text, starts)


def _parse_by_arrow(text: bytes, starts: np.ndarray[Any, np.dtype[np.int64]]) -> Lines | None:
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(text), read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(text) + 1)
        )
    except (pa.ArrowException, ValueError):
        return None
    if table.num_rows != len(starts) or table.num_columns > 4 * MAX_METRICS:
        return None
    values, samples = {}, []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            numbers = column.to_numpy().astype(np.float64)
            if np.isinf(numbers).any():
                return None
            values[name] = numbers
        elif name == "sample" and pa.types.is_string(column.type):
            where = np.flatnonzero(column.is_valid().to_numpy())
            samples = [(int(i), shown(column[int(i)].as_py())) for i in where]
    return Lines(values, {}, samples, starts)


def parse_by_line(text: bytes, starts: np.ndarray[Any, np.dtype[np.int64]]) -> Lines:
    """The plain twin of Arrow's reader. A line that is no JSON object says nothing."""
    values: dict[str, Floats] = {}
    broken: dict[str, Any] = {}
    samples = []
    for i, line in enumerate(text.split(b"\n")[:-1]):
        for name, value in read_object(line).items():
            if isinstance(value, bool) or not (value is None or isinstance(value, int | float)):
                if name == "sample" and isinstance(value, str):
                    samples.append((i, shown(value)))
                continue
            if name not in values:
                values[name] = np.full(len(starts), math.nan)
            number = math.nan if value is None else _as_float(value)
            if math.isfinite(number):
                values[name][i] = number
            else:
                broken.setdefault(name, np.zeros(len(starts), bool))[i] = True
    return Lines(values, broken, samples, starts)


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf


def read_object(line: bytes) -> dict[str, Any]:
    """The JSON object in a line, NaN and infinities let pass; empty if there is none."""
    try:
        found = orjson.loads(line)
    except ValueError:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            return {}
    return found if isinstance(found, dict) else {}


def shown(text: str) -> str:
    """As it goes into JSON: what is no Unicode is replaced, what is far too long is cut."""
    whole = text.encode("utf-8", "replace").decode()
    return whole if len(whole) <= MAX_TEXT else whole[:MAX_TEXT] + "…"


@dataclass
class Rows:
    """Rows of merged lines. Axes of `low`, `high`, `total`, `count`, `broken`: (metric, row)."""

    x: Floats
    """(axis, row), of the last line of each row."""
    low: Any
    high: Any
    total: Any
    count: Any
    broken: Any

    @classmethod
    def empty(cls, metrics: int, rows: int) -> "Rows":
        shape = (metrics, rows)
        return cls(
            np.full((len(X), rows), math.nan),
            np.full(shape, math.nan, np.float32),
            np.full(shape, math.nan, np.float32),
            np.zeros(shape),
            np.zeros(shape, np.int32),
            np.zeros(shape, np.int32),
        )

    def __len__(self) -> int:
        return int(self.x.shape[1])

    def __getitem__(self, where: Any) -> "Rows":
        return Rows(*(part[:, where] for part in self._parts()))

    def put(self, place: slice, other: "Rows") -> None:
        for mine, theirs in zip(self._parts(), other._parts(), strict=True):
            mine[:, place] = theirs

    def padded(self, metrics: int, rows: int) -> "Rows":
        """A copy with room for so many."""
        larger = Rows.empty(metrics, rows)
        for mine, theirs in zip(larger._parts(), self._parts(), strict=True):
            mine[: theirs.shape[0], : theirs.shape[1]] = theirs
        return larger

    def merged(self, first: Any) -> "Rows":
        """One row for each group of rows; `first` has the place at which each group begins."""
        last = np.append(first[1:], len(self)) - 1
        return Rows(
            self.x[:, last],
            np.fmin.reduceat(self.low, first, axis=1),
            np.fmax.reduceat(self.high, first, axis=1),
            np.add.reduceat(self.total, first, axis=1),
            np.add.reduceat(self.count, first, axis=1),
            np.add.reduceat(self.broken, first, axis=1),
        )

    def _parts(self) -> tuple[Any, ...]:
        return (self.x, self.low, self.high, self.total, self.count, self.broken)


def as_rows(lines: Lines, metrics: list[str], before: Floats) -> Rows:
    """A row a line. A line without an axis (a validation has no seconds) has that of the line before it.

    Args:
        before: the axes of the line before the first.
    """
    rows = Rows.empty(len(metrics), len(lines.starts))
    for axis, along in enumerate(X):
        if along in lines.values:
            rows.x[axis] = lines.values[along]
        rows.x[axis] = _filled_forward(rows.x[axis], before[axis])
    for metric, name in enumerate(metrics):
        if name == SPEED and name not in lines.values and "loss" in lines.values:
            values: Floats | None = _speed(rows.x, before, ~np.isnan(lines.values["loss"]))
        else:
            values = lines.values.get(name)
        if values is not None:
            with np.errstate(over="ignore"):
                rows.low[metric] = rows.high[metric] = values
            there = np.isfinite(rows.low[metric])  # beyond float32 is no number here
            rows.low[metric, ~there] = rows.high[metric, ~there] = math.nan
            rows.total[metric] = np.where(there, values, 0.0)
            rows.count[metric] = there
            rows.broken[metric] = ~np.isnan(values) & ~there
        if name in lines.broken:
            rows.broken[metric] |= lines.broken[name]
    return rows


SPEED = "tokens_per_second"


def _speed(x: Floats, before: Floats, steps: Any) -> Floats:
    """Tokens a second since the step before; not there where the clock did not go forward, or nothing was trained."""
    step_rows = np.flatnonzero(steps)
    speed = np.full(x.shape[1], math.nan)
    tokens, seconds = (np.concatenate([[before[axis]], x[axis, step_rows]]) for axis in (1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.diff(tokens) / np.diff(seconds)
    speed[step_rows] = np.where((np.diff(seconds) > 0) & (np.diff(tokens) > 0), found, math.nan)
    return speed


def _filled_forward(values: Floats, before: float) -> Floats:
    whole = np.concatenate([[before], values])
    last = np.maximum.accumulate(np.where(np.isnan(whole), 0, np.arange(len(whole))))
    filled: Floats = whole[last][1:]
    return filled


@dataclass
class Curves:
    """The metrics of one run."""

    path: Path
    max_rows: int = MAX_ROWS
    metrics: list[str] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    lines: int = 0
    lines_per_row: int = 1
    generation: int = 0
    """How often the file was found replaced or cut back, and read anew."""

    def __post_init__(self) -> None:
        self._tail = Tail(self.path)
        self._forget()

    def _forget(self) -> None:
        self.metrics, self.samples, self.lines, self.lines_per_row = [], [], 0, 1
        self._rows = Rows.empty(0, 1024)
        self._starts = np.zeros(1024, np.int64)
        self._before = np.full(len(X), math.nan)

    @property
    def version(self) -> str:
        """Changes whenever there is something new to draw."""
        return f"{self.generation}.{self._tail.at}"

    @property
    def share_read(self) -> float:
        return self._tail.at / self._tail.size if self._tail.size else 1.0

    @property
    def used(self) -> int:
        """Rows in use."""
        return -(-self.lines // self.lines_per_row)

    @property
    def last_x(self) -> dict[str, float | None]:
        return {name: None if math.isnan(value) else float(value) for name, value in zip(X, self._before, strict=True)}

    def read(self) -> bool:
        """Take in the next few megabytes; whether there were any."""
        at = self._tail.at
        void, text = self._tail.read()
        if void:
            self.generation += 1
            self._forget()
            at = 0
        if text:
            self._take(parse(text), at)
        return bool(text) or self._tail.at > at

    def _take(self, lines: Lines, at: int) -> None:
        for name in [*lines.values, *lines.broken, *([SPEED] if "loss" in lines.values else [])]:
            if name not in X and name not in self.metrics and len(self.metrics) < MAX_METRICS and len(name) <= 200:
                self.metrics.append(shown(name))
        new = as_rows(lines, self.metrics, self._before)
        steps = new.x[0]
        self.samples += [{"step": _number(steps[place]), "text": text} for place, text in lines.samples]
        if len(self.samples) > MAX_SAMPLES:  # the first and the latest tell most
            self.samples = self.samples[:20] + self.samples[-(MAX_SAMPLES - 20) :]
        while -(-(self.lines + len(new)) // self.lines_per_row) > self.max_rows:
            self._halve()
        places = (self.lines + np.arange(len(new))) // self.lines_per_row
        first = np.flatnonzero(np.diff(places, prepend=-1))
        self._before, line_starts = new.x[:, -1].copy(), lines.starts[first] + at
        new = new.merged(first)
        row, goes_on = int(places[0]), self.used > int(places[0])
        room = max(len(self._starts), 1 << (int(places[-1])).bit_length())
        if room > len(self._starts) or len(self.metrics) > len(self._rows.low):
            self._rows = self._rows.padded(len(self.metrics), room)
            self._starts = np.concatenate([self._starts, np.zeros(room - len(self._starts), np.int64)])
        if goes_on:
            both = Rows(
                *(
                    np.concatenate([old[:, row : row + 1], more[:, :1]], axis=1)
                    for old, more in zip(self._rows._parts(), new._parts(), strict=True)
                )
            )
            new.put(slice(0, 1), both.merged(np.array([0])))
            line_starts[0] = self._starts[row]
        self._rows.put(slice(row, row + len(new)), new)
        self._starts[row : row + len(new)] = line_starts
        self.lines += len(lines.starts)

    def _halve(self) -> None:
        """Two rows become one."""
        if self.used:
            first = np.arange(0, self.used, 2)
            merged = self._rows[slice(0, self.used)].merged(first)
            self._rows = merged.padded(len(self.metrics), len(self._rows))
            self._starts[: len(first)] = self._starts[first]
        self.lines_per_row *= 2

    def between(
        self, axis: Axis, low: float | None, high: float | None, width: int, logarithmic: bool
    ) -> dict[str, Any]:
        """Each metric over `axis` from `low` to `high`, in at most `width` points.

        Returns:
            metric → `x`, `mean` and, where a point is of several rows, `low` and `high`: lists of one length. None is a
            gap, where only broken numbers are.
        """
        rows = self._rows[slice(0, self.used)]
        chosen = np.flatnonzero(_within(rows.x[X.index(axis)], low, high, logarithmic))
        if not len(chosen):
            return {}
        # One more on each side, so that the curve goes to the edges.
        start, end = max(0, int(chosen[0]) - 1), min(len(rows), int(chosen[-1]) + 2)
        first_byte = int(self._starts[start])
        last_byte = int(self._starts[end]) if end < len(rows) else self._tail.at
        rows = rows[slice(start, end)]
        if self.lines_per_row > 1 and end - start < 2 * width and last_byte - first_byte <= MAX_DETAIL_BYTES:
            text = self._tail.reread(first_byte, last_byte)
            before = self._rows.x[:, start - 1] if start else np.full(len(X), math.nan)
            text = text[: text.rfind(b"\n") + 1]
            rows = as_rows(parse(text), self.metrics, before) if text else rows
        at = rows.x[X.index(axis)]
        kept = np.flatnonzero(~np.isnan(at) & ((at > 0) | (not logarithmic)))
        rows, at = rows[kept], at[kept]
        if len(at) > width:
            place = np.log(at) if logarithmic else at
            span = (place.max() - place.min()) or 1.0
            group = np.minimum(((place - place.min()) / span * width).astype(np.int64), width - 1)
            if (np.diff(group) < 0).any():  # steps that were taken twice
                order = np.argsort(group, kind="stable")
                rows, group = rows[order], group[order]
            rows = rows.merged(np.flatnonzero(np.diff(group, prepend=-1)))
        return {name: found for metric, name in enumerate(self.metrics) if (found := self._curve(rows, metric, axis))}

    def places(self, axis: Axis, steps: Sequence[float]) -> list[float | None]:
        """Where steps are on `axis`, as near as the rows tell; None of steps that are not there."""
        rows = self._rows.x[:, : self.used]
        rows = rows[:, ~np.isnan(rows[0]) & ~np.isnan(rows[X.index(axis)])]
        if not rows.shape[1]:
            return [None for _ in steps]
        at = np.interp(np.asarray(steps, np.float64), rows[0], rows[X.index(axis)], left=math.nan, right=math.nan)
        return [_number(value) for value in at]

    def _curve(self, rows: Rows, metric: int, axis: Axis) -> dict[str, list[Any]]:
        there = np.flatnonzero(rows.count[metric] + rows.broken[metric])
        if not len(there):
            return {}
        count = rows.count[metric, there]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            mean = (rows.total[metric, there] / count).astype(np.float32)
        curve = {"x": rows.x[X.index(axis), there].tolist(), "mean": _numbers(mean)}
        if (count > 1).any():
            curve |= {"low": _numbers(rows.low[metric, there]), "high": _numbers(rows.high[metric, there])}
        return curve


def _within(x: Floats, low: float | None, high: float | None, logarithmic: bool) -> Any:
    inside = ~np.isnan(x) & ((x > 0) | (not logarithmic))
    if low is not None:
        inside &= x >= low
    if high is not None:
        inside &= x <= high
    return inside


def _numbers(values: Any) -> list[float | None]:
    """To six digits, as JSON knows them: None for what is no number."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@dataclass
class Events:
    """What happened in a run: the latest lines of its events.jsonl."""

    path: Path
    events: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tail = Tail(self.path)

    def read(self) -> None:
        more = True
        while more:
            void, text = self._tail.read()
            self.events = [] if void else self.events
            for line in text.split(b"\n"):
                if event := read_object(line):
                    self.events.append(
                        {shown(name)[:200]: _plain(value) for name, value in itertools.islice(event.items(), 40)}
                    )
            self.events = self.events[-MAX_EVENTS:]
            more = bool(text)


def _plain(value: Any) -> str | int | float | bool | None:
    """A value that can be shown in a line, and written as JSON."""
    match value:
        case bool() | None:
            return value
        case int() | float():
            return value if abs(value) < 2**53 else str(value)  # NaN is no less
        case str():
            return shown(value)
        case _:
            return shown(json.dumps(value, ensure_ascii=False))


@dataclass
class Health:
    """Numbers of each layer at intervals: lines `{"step": 100, "layers": [{"gradient_norm": 0.1, …}, …]}`.

    Every number that a layer has becomes a map of its own, whatever it is called.
    """

    path: Path
    maps: dict[str, list[list[float | None]]] = field(default_factory=dict)
    """Metric → for each measurement → for each layer."""
    steps: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tail = Tail(self.path)
        self._every, self._seen, self.generation = 1, 0, 0

    @property
    def version(self) -> str:
        return f"{self.generation}.{self._tail.at}"

    def read(self) -> None:
        more = True
        while more:
            void, text = self._tail.read()
            if void:
                self.maps, self.steps, self._every, self._seen = {}, [], 1, 0
                self.generation += 1
            for line in text.split(b"\n"):
                self._take(read_object(line))
            more = bool(text)

    def _take(self, line: dict[str, Any]) -> None:
        step, layers = line.get("step"), line.get("layers")
        if not isinstance(step, int) or not isinstance(layers, list) or abs(step) > 2**53:
            return
        self._seen += 1
        if (self._seen - 1) % self._every:
            return
        layers = [layer if isinstance(layer, dict) else {} for layer in layers[:1000]]
        numbered = ((name, value) for layer in layers for name, value in layer.items() if name != "layer")
        names = dict.fromkeys(name for name, value in numbered if _is_number(value))
        for name in itertools.islice(names, MAX_METRICS):
            self.maps.setdefault(shown(name)[:200], [[] for _ in self.steps])
        self.steps.append(step)
        for name, columns in self.maps.items():
            columns.append([_finite(layer.get(name)) for layer in layers] if name in names else [])
        if len(self.steps) > MAX_MEASUREMENTS:
            self.steps = self.steps[::2]
            self.maps = {name: columns[::2] for name, columns in self.maps.items()}
            self._every *= 2


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: Any) -> float | None:
    return _numbers(np.array([_as_float(value)]))[0] if _is_number(value) else None
