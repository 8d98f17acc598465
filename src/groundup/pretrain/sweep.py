"""A sweep as it is asked for: which settings take which values, and in which steps the worse points drop out.

A point is one choice of a value for each swept setting. No torch.
"""

import hashlib
import itertools
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from groundup.errors import SettingsError
from groundup.optim.schedule import make_schedule
from groundup.pretrain.settings import PretrainSettings
from groundup.settings import toml_value
from groundup.words import short_value

ETA = 3
"""At each rung the best third goes on, for three times as long (Li et al. 2018, arXiv:1603.06560, section 3.6)."""
MOST_POINTS = 1000
EXAMPLE = "pretrain.optimizer.learning_rate=1e-4..1e-2:log:8"
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(:log)?:(\d+)")
Value = Any
"""Of a setting, as TOML gives it."""


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes."""

    key: str
    values: tuple[Value, ...]

    @property
    def short(self) -> str:
        """The last word of the dotted name."""
        return self.key.rpartition(".")[2]

    @property
    def is_numeric(self) -> bool:
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    @property
    def is_logarithmic(self) -> bool:
        """Whether its values are better drawn by their logarithms: they span more than a factor of eight."""
        return self.is_numeric and min(self.values) > 0 and max(self.values) > 8 * min(self.values)


@dataclass(frozen=True)
class Point:
    """One choice of a value for each swept setting."""

    settings: Mapping[str, Value]
    name: str
    """Of its directory."""


def parse(words: Iterable[str]) -> tuple[list[Axis], list[str]]:
    """Swept settings and, as they are, the ordinary ones, of `key=a..b:log:n`, `key=a..b:n`, `key=a,b,c`, `key=value`.

    Raises:
        SettingsError: a range that is malformed, or nothing that is swept.

    >>> parse(["a.rate=1e-4..1e-2:log:3", "b=64,128", "c=1"])[0]
    [Axis(key='a.rate', values=(0.0001, 0.001, 0.01)), Axis(key='b', values=(64, 128))]
    """
    axes: list[Axis] = []
    fixed: list[str] = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            raise SettingsError(f"{word!r} is not of the form key=values, such as {EXAMPLE}")
        values = _values(key.strip(), text.strip())
        if len(values) < 2:
            fixed.append(word)
        elif any(axis.key == key.strip() for axis in axes):
            raise SettingsError(f"{key.strip()} is given twice: name all its values in one place, such as {key}=1,2,3")
        else:
            axes.append(Axis(key.strip(), tuple(values)))
    if not axes:
        raise SettingsError(
            f"nothing is swept: give a setting several values, such as {EXAMPLE}, model.d_model=64..256:4 or "
            "pretrain.schedule.final=0.0,0.1"
        )
    if math.prod(len(axis.values) for axis in axes) > MOST_POINTS:
        raise SettingsError(
            f"{' × '.join(str(len(axis.values)) for axis in axes)} values are "
            f"{math.prod(len(axis.values) for axis in axes):,} trainings; at most {MOST_POINTS:,} are taken on: "
            "fewer values, or one setting after the other"
        )
    return axes, fixed


def _values(key: str, text: str) -> list[Value]:
    if re.match(rf"{NUMBER}\.\.", text):
        return _range(key, text)
    try:
        values: list[Value] = tomllib.loads(f"values = [{text}]")["values"]
    except (ValueError, RecursionError):
        values = [_value(part.strip()) for part in text.split(",")]
    twice = [value for number, value in enumerate(values) if value in values[:number]]
    if twice:
        raise SettingsError(f"{key}={text} names {twice[0]!r} twice")
    return values


def _value(text: str) -> Value:
    """A bare word is a string, as on every command line of groundup."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _range(key: str, text: str) -> list[Value]:
    match = RANGE.fullmatch(text)
    if not match:
        raise SettingsError(
            f"{key}={text} is not a range: write FIRST..LAST:log:HOW_MANY or FIRST..LAST:HOW_MANY, such as {EXAMPLE}"
        )
    first, last, many = float(match[1]), float(match[2]), int(match[4])
    if many < 2 or first == last:
        raise SettingsError(f"{key}={text} is one value; a range has two ends and at least 2 values, such as {EXAMPLE}")
    if many > MOST_POINTS:
        raise SettingsError(f"{key}={text} asks for {many:,} values; at most {MOST_POINTS:,} are taken on")
    if match[3] and min(first, last) <= 0:
        raise SettingsError(f"{key}={text}: a range by logarithms (:log) has both ends above 0")
    along = [i / (many - 1) for i in range(many)]
    if match[3]:
        found = [first * (last / first) ** share for share in along]
    else:
        found = [first + (last - first) * share for share in along]
    found = [first, *(float(f"{value:.4g}") for value in found[1:-1]), last]
    whole = all(re.fullmatch(r"[+-]?\d+", end) for end in match.groups()[:2]) and all(v == int(v) for v in found)
    return [int(value) for value in found] if whole else found


def points(axes: Sequence[Axis]) -> list[Point]:
    """Every choice of values; the last setting changes fastest."""
    shorts = [axis.short for axis in axes]
    names = [axis.short if shorts.count(axis.short) == 1 else axis.key for axis in axes]
    found = []
    for values in itertools.product(*(axis.values for axis in axes)):
        told = ",".join(f"{name}={short_value(value)}" for name, value in zip(names, values, strict=True))
        found.append(Point({axis.key: value for axis, value in zip(axes, values, strict=True)}, _as_a_folder(told)))
    return found


def _as_a_folder(told: str) -> str:
    """A name that every file system takes; what was left out of it stands in a digest at its end."""
    safe = re.sub(r"[^A-Za-z0-9._,=+-]", "_", told)[:100]
    return safe if safe == told else f"{safe}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def override(key: str, value: Value) -> str:
    """As it is given on a command line.

    >>> override("pretrain.optimizer.kind", "muon"), override("model.attention.windows", [16, 32])
    ('pretrain.optimizer.kind=muon', 'model.attention.windows=[16, 32]')
    """
    return f"{key}={value if isinstance(value, str) and _value(value) == value else toml_value(value)}"


def rungs(n_points: int, settings: PretrainSettings) -> list[int]:
    """The steps after which successive halving looks at the points; the last is the end of the training.

    After the first of s + 1 rungs, at steps / 3^s, the best third goes on to three times as many steps, and so on
    (Jamieson and Talwalkar 2016, arXiv:1502.07943; Li et al. 2018, algorithm 1, with one bracket). There are as many
    rungs as leave one point for the last and as lie beyond the warm-up, within which rates cannot be told apart.

    Raises:
        SettingsError: too few points, or a warm-up too long for a rung after it.
    """
    if n_points < ETA:
        raise SettingsError(
            f"--halving keeps the best third of the points, but there are {n_points}: name at least {ETA} values, or "
            "leave --halving out"
        )
    factor = make_schedule(settings.schedule, settings.steps)
    warmup = max(range(settings.steps), key=lambda step: (factor(step), -step))
    most = int(math.log(n_points, ETA) + 1e-9)
    found = [settings.steps // ETA**s for s in range(most, 0, -1) if settings.steps // ETA**s > warmup]
    if not found:
        raise SettingsError(
            f"--halving would first look after {settings.steps // ETA:,} of {settings.steps:,} steps, within the "
            f"{warmup:,} of the warm-up: shorten pretrain.schedule.warmup_steps, train longer, or leave --halving out"
        )
    return [*found, settings.steps]


def survivors(reached: Mapping[str, float | None]) -> list[str]:
    """Of the points that were measured at a rung those that go on: the best third, the best first.

    Args:
        reached: name → bits per byte; None for one that diverged.

    >>> survivors({"a": 2.0, "b": None, "c": 1.5, "d": 3.0})
    ['c']
    """
    whole = {name: value for name, value in reached.items() if value is not None}
    best = sorted(whole, key=lambda name: whole[name])
    return best[: max(1, len(reached) // ETA)]
