"""The growing logs of a run, read as they come: any range of a curve at any width.

The lines of metrics.jsonl become columns of numbers, one entry a line. In a column, NaN means that the line does not
have the metric, and an infinity that it has it without a usable number (null, NaN, infinite).
"""

import contextlib
import itertools
import json
import math
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_args

import numpy as np
import orjson

from groundup.report.ranks import RankTimes

MAX_LINES = 1 << 19
"""Lines that are kept as they are; of a longer run, older ones are thinned."""
MAX_METRICS = 64
CHUNK_BYTES = 1 << 20  # of 4 MB, the parsed rows leave the processor's cache: half as fast
MAX_SAMPLES = 200
MAX_EVENTS = 1000
MAX_MEASUREMENTS = 512
"""Columns of a heat map; of more, every other one is dropped."""
MAX_TEXT = 4000
SPEED = "tokens_per_second"
Axis = Literal["step", "tokens", "seconds", "flops"]
X: tuple[Axis, ...] = get_args(Axis)
"""What curves can be drawn over. None of them falls within a run, its resumed parts included."""
Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]


class Tail:
    """The whole lines of a file that another process appends to, cuts back and replaces."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = 0
        """Bytes read so far; always the beginning of a line."""
        self.size = 0
        self.generation = 0
        """How often the file was replaced or cut back, and read again from the start."""
        self._file_id: tuple[int, int] | None = None
        self._last = b""

    @property
    def version(self) -> str:
        """Changes whenever more was read."""
        return f"{self.generation}.{self.at}"

    @property
    def share_read(self) -> float:
        return self.at / self.size if self.size else 1.0

    def read(self, limit: int = CHUNK_BYTES) -> tuple[bool, bytes]:
        """Whether the file was replaced or cut back, so that all read before is void; and the next whole lines.

        A last line without its end is left for later. A line longer than `limit` is skipped.
        """
        try:
            with open(self.path, "rb", buffering=0) as stream:
                status = os.fstat(stream.fileno())
                file_id = (status.st_dev, status.st_ino)
                stream.seek(self.at - len(self._last))
                void = self._file_id not in (None, file_id) or stream.read(len(self._last)) != self._last
                if void:
                    self.generation += 1
                    self.at, self._last = stream.seek(0), b""
                self._file_id, self.size = file_id, status.st_size
                text = stream.read(limit)
        except OSError:  # not there yet, or no longer: what was read still stands
            return False, b""
        lines = text[: text.rfind(b"\n") + 1]
        passed = lines or (text if len(text) == limit else b"")
        self.at += len(passed)
        self._last = (self._last + passed)[-64:]
        return void, lines

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
        return json.loads(line, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return None


def clip_text(text: str) -> str:
    """Text that can be written as JSON: what is not Unicode is replaced, what is far too long is cut."""
    whole = text.encode("utf-8", "replace").decode()
    return whole if len(whole) <= MAX_TEXT else whole[:MAX_TEXT] + "…"


def _column(rows: list[dict[str, Any]], name: str) -> Floats:
    try:
        values = list(map(operator.itemgetter(name), rows))  # quicker than `get`
    except KeyError:
        values = [row.get(name, math.nan) for row in rows]
    if set(map(type, values)) <= {int, float}:
        with contextlib.suppress(OverflowError):  # a whole number of more than 308 digits
            return np.array(values, np.float64)
    return np.array([_number(value) for value in values])


def _number(value: object) -> float:
    """Infinity for None, NaN for what is not a number."""
    try:
        return math.inf if value is None else float(value) if is_number(value) else math.nan
    except OverflowError:
        return math.inf


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Curves:
    """The metrics of one run."""

    def __init__(self, path: Path) -> None:
        self.tail = Tail(path)
        self._forget()

    def _forget(self) -> None:
        self.samples: list[dict[str, Any]] = []
        self.ranks = RankTimes()
        self.lines = 0
        self._thinned, self._group = 0, 4
        """Lines at the beginning that were thinned, and how many lines each two of them stand for."""
        self._columns: dict[str, Floats] = {axis: np.full(1024, math.nan) for axis in X}
        """Axis → its values; metric → its values and, below them, what counts as them in a mean."""

    @property
    def metrics(self) -> list[str]:
        return list(self._columns)[len(X) :]

    @property
    def last_x(self) -> dict[str, float | None]:
        return {axis: _or_none(self._last(axis)) for axis in X}

    def _last(self, axis: Axis) -> float:
        return float(self._columns[axis][self.lines - 1]) if self.lines else math.nan

    def read(self) -> bool:
        """Take in the next megabyte; whether there was anything new."""
        version = self.tail.version
        void, text = self.tail.read()
        if void:
            self._forget()
        if text:
            self._append(parse_lines(text))
        return self.tail.version != version

    def _append(self, rows: list[dict[str, Any]]) -> None:
        names = dict.fromkeys(itertools.chain.from_iterable(rows))
        columns = {clip_text(name): _column(rows, name) for name in names}
        for axis in X:  # a line without an axis (a validation has no seconds) has that of the line before it
            values = columns.get(axis, np.full(len(rows), math.nan))
            values = np.append(self._last(axis), np.where(np.isfinite(values), values, math.nan))
            columns[axis] = np.fmax.accumulate(values)[1:]
        if "loss" in columns and SPEED not in columns:
            columns[SPEED] = self._speed(columns)
        start, self.lines = self.lines, self.lines + len(rows)
        room = len(self._columns["step"])
        for name, column in columns.items():
            is_new = name not in self._columns and len(name) <= 200 and not np.isnan(column).all()
            if is_new and len(self._columns) < len(X) + MAX_METRICS:
                self._columns[name] = np.full((2, room), math.nan, np.float32)
        if self.lines > room:
            for name, column in self._columns.items():
                more = np.full((*column.shape[:-1], self.lines), math.nan, column.dtype)
                self._columns[name] = np.append(column, more, axis=-1)
        with np.errstate(over="ignore"):  # beyond float32 is not a usable number
            for name in self._columns.keys() & columns.keys():
                self._columns[name][..., start : self.lines] = columns[name]
        self.samples += [
            {"step": _or_none(columns["step"][i]), "text": clip_text(row["sample"])}
            for i, row in enumerate(rows if "sample" in names else ())
            if isinstance(row.get("sample"), str)
        ]
        for row in rows if "ranks" in names else ():
            self.ranks.add(row)
        if len(self.samples) > MAX_SAMPLES:  # the first and the latest say the most
            self.samples = self.samples[:20] + self.samples[-(MAX_SAMPLES - 20) :]
        if self.lines > MAX_LINES:
            self._thin()

    def _speed(self, columns: dict[str, Floats]) -> Floats:
        """Tokens a second since the step before; NaN where the clock did not go forward, or nothing was trained."""
        steps = np.flatnonzero(~np.isnan(columns["loss"]))
        tokens, seconds = (np.diff(columns[axis][steps], prepend=self._last(axis)) for axis in ("tokens", "seconds"))
        forward = (tokens > 0) & (seconds > 0)
        speed = np.full(len(columns["loss"]), math.nan)
        speed[steps[forward]] = tokens[forward] / seconds[forward]
        return speed

    def _thin(self) -> None:
        """Keep two of each group of lines, all groups of one size, so that no part of a run is drawn coarser."""
        if self._thinned >= MAX_LINES // 2:
            self._thinned = self._keep_two(0, self._thinned, 4)
            self._group *= 2
        self._thinned = self._keep_two(self._thinned, self.lines, self._group)

    def _keep_two(self, start: int, end: int, group: int) -> int:
        """Keep the least and the greatest value of each `group` lines, and the mean; return where those kept end."""
        stop = end - (end - start) % group
        for name, column in self._columns.items():
            groups = column[..., start:stop].reshape(*column.shape[:-1], -1, group)
            two = groups[..., [0, -1]]
            if name not in X:
                low, high = np.fmin.reduce(groups[0], axis=1), np.fmax.reduce(groups[0], axis=1)
                usable = np.isfinite(groups[1])
                with np.errstate(invalid="ignore"):
                    mean = np.where(usable, groups[1], 0).sum(axis=1) / usable.sum(axis=1)
                two = np.array([[low, high], [mean, mean]]).transpose(0, 2, 1)
                two[:, usable.sum(axis=1) == 1, 0] = math.nan
            kept = np.concatenate([two.reshape(*column.shape[:-1], -1), column[..., stop : self.lines]], axis=-1)
            column[..., start : start + kept.shape[-1]] = kept
        n_kept = (stop - start) // group * 2
        self.lines -= stop - start - n_kept
        return start + n_kept

    def between(
        self, axis: Axis, low: float | None, high: float | None, width: int, logarithmic: bool
    ) -> dict[str, Any]:
        """Each metric over `axis` from `low` to `high`, in at most `width` points.

        Returns:
            metric → `x`, `mean` and, where a point stands for several lines, `low` and `high`: lists of one length.
            None is a gap, where there are only unusable numbers.
        """
        x = self._columns[axis][: self.lines]
        drawable = np.count_nonzero(~(x > (0 if logarithmic else -math.inf)))  # from here on: no axis ever falls
        start = drawable + np.searchsorted(x[drawable:], -math.inf if low is None else low)
        end = drawable + np.searchsorted(x[drawable:], math.inf if high is None else high, "right")
        if start == end:
            return {}
        inside = slice(max(drawable, start - 1), end + 1)  # one more on each side, to reach the edges
        x = x[inside]
        first = np.arange(len(x))
        if len(x) > width:
            left, right = np.log(x[[0, -1]]) if logarithmic else x[[0, -1]]
            edges = left + (right - left) * np.arange(1, width) / width
            first = np.searchsorted(x, np.exp(edges) if logarithmic else edges)
            first = np.unique(np.append(0, np.minimum(first, len(x) - 1)))
        x = x[np.append(first[1:], len(x)) - 1]
        curves = {name: _decimated(x, self._columns[name][:, : self.lines][:, inside], first) for name in self.metrics}
        return {name: curve for name, curve in curves.items() if curve["x"]}

    def interpolated(self, axis: Axis, steps: Sequence[float]) -> list[float | None]:
        """`axis` at some steps; None for those that were not taken."""
        step, value = self._columns["step"][: self.lines], self._columns[axis][: self.lines]
        known = np.count_nonzero(np.isnan(step) | np.isnan(value))
        if known == self.lines:
            return [None for _ in steps]
        at = np.interp(np.asarray(steps, np.float64), step[known:], value[known:], left=math.nan, right=math.nan)
        return [_or_none(value) for value in at]


def _decimated(x: Floats, values: Floats, first: Any) -> dict[str, list[Any]]:
    """The mean, the least and the greatest value of each group of lines that has any.

    Args:
        x: of each group.
        values: of each line, below them what counts in the mean.
        first: where each group begins in `values`.
    """
    there = ~np.logical_and.reduceat(np.isnan(values[0]), first)
    usable = np.isfinite(values[0])
    n_usable = np.add.reduceat(usable, first, dtype=np.int64)
    some = n_usable > 0
    begin = (np.cumsum(n_usable) - n_usable)[some]
    extremes, means = values[0][usable], values[1][usable]

    def points(of_groups: Floats) -> list[float | None]:
        whole = np.full(len(first), math.nan)
        whole[some] = of_groups
        return _rounded(whole[there])

    curve = {"x": x[there].tolist(), "mean": points(np.add.reduceat(means, begin, dtype=float) / n_usable[some])}
    if (n_usable > 1).any():
        for name, extreme in (("low", np.minimum), ("high", np.maximum)):
            curve[name] = points(extreme.reduceat(extremes, begin))
    return curve


def _rounded(values: Floats) -> list[float | None]:
    """Six digits; None for what is not a number."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


class EventLog:
    """The latest lines of a run's events.jsonl."""

    def __init__(self, path: Path) -> None:
        self.tail = Tail(path)
        self.events: list[dict[str, Any]] = []

    def read(self) -> None:
        void, objects = self.tail.read_objects()
        new = [
            {clip_text(name)[:200]: _plain(value) for name, value in itertools.islice(event.items(), 40)}
            for event in objects[-MAX_EVENTS:]
        ]
        self.events = new if void else (self.events + new)[-MAX_EVENTS:]


def _plain(value: Any) -> str | int | float | bool | None:
    """A value that fits into a line and into JSON."""
    if value is None or isinstance(value, bool) or (is_number(value) and abs(value) < 2**53):
        return value
    return clip_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


class HealthMaps:
    """Numbers of each layer at intervals: lines `{"step": 100, "layers": [{"gradient_norm": 0.1, …}, …]}`.

    Every number that a layer has becomes a map of its own, whatever its name.
    """

    def __init__(self, path: Path) -> None:
        self.tail = Tail(path)
        self._forget()

    def _forget(self) -> None:
        self.maps: dict[str, list[list[float | None]]] = {}
        """Metric → for each measurement → for each layer."""
        self.steps: list[float] = []
        self._every, self._measurements = 1, 0

    def read(self) -> None:
        void, objects = self.tail.read_objects()
        if void:
            self._forget()
        for line in objects:
            self._append(line.get("step"), line.get("layers"))

    def _append(self, step: object, layers: object) -> None:
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
            columns.append(_rounded(_column(layers, name)) if name in numbers else [])
        if len(self.steps) > MAX_MEASUREMENTS:
            self.steps = self.steps[::2]
            self.maps = {name: columns[::2] for name, columns in self.maps.items()}
            self._every *= 2
