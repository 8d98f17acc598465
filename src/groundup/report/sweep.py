"""A sweep: what was measured of each point, and its page: how good each value was, drawn, and the best to copy."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from groundup.pages.charts import Chart, Curve
from groundup.pages.render import write_page as write_template
from groundup.settings import Table, nested
from groundup.words import duration, short_value

MOST_CURVES = 6
"""In one chart: as many as have a colour of their own."""


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes."""

    key: str
    values: tuple[Any, ...]

    @property
    def is_numeric(self) -> bool:
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    @property
    def is_logarithmic(self) -> bool:
        """Whether its values are better drawn by their logarithms: they span more than a factor of eight."""
        return self.is_numeric and min(self.values) > 0 and max(self.values) > 8 * min(self.values)


@dataclass(frozen=True)
class Measured:
    """A point at one step."""

    step: int
    validation_bits_per_byte: float


@dataclass(frozen=True)
class Outcome:
    """What came of training a point, as far as it is trained."""

    diverged: str | None = None
    """Why; None if it did not diverge."""
    seconds: float = 0.0
    measured: list[Measured] = field(default_factory=list)

    def bits_per_byte(self, step: int | None = None) -> float | None:
        """At a step, or at the end; None where it was not reached."""
        if self.diverged and step is None:
            return None
        bits = [each.validation_bits_per_byte for each in self.measured if step in (None, each.step)]
        return bits[-1] if bits else None


@dataclass(frozen=True, kw_only=True)
class Trained(Outcome):
    """One choice of a value for each swept setting, and what came of it."""

    name: str
    settings: Table


@dataclass(frozen=True)
class Swept:
    """All that is known of a sweep."""

    name: str
    """The recipe's."""
    directory: str
    axes: tuple[Axis, ...]
    rungs: tuple[int, ...]
    """Steps at which points dropped out; none in a grid."""
    chosen: Table
    """What the recipe left open, as the first point chose it for all."""
    points: list[Trained]
    """The best first."""
    best: str | None
    overrides: list[str]
    """Those of the best point."""
    notes: list[str]

    def table(self) -> dict[str, Any]:
        """All of it as JSON values."""
        axes = [
            {"key": axis.key, "values": axis.values, "numeric": axis.is_numeric, "log": axis.is_logarithmic}
            for axis in self.axes
        ]
        return asdict(self) | {"axes": axes}

    @property
    def rows(self) -> list[list[str]]:
        """The table of points, below a header."""
        keys = [axis.key for axis in self.axes]
        rows = [[*keys, "steps", "bits per byte", "time", ""]]
        for point in self.points:
            reached = ["–", "–"]
            for last in point.measured[-1:]:
                reached = [f"{last.step:,}", f"{last.validation_bits_per_byte:.4f}"]
            values = [short_value(point.settings[key]) for key in keys]
            rows.append([*values, *reached, duration(point.seconds), self._remark(point)])
        return rows

    def _remark(self, point: Trained) -> str:
        if point.diverged:
            return "diverged"
        if point.name == self.best:
            return "the best"
        dropped = self.rungs and point.measured and point.measured[-1].step < self.rungs[-1]
        return "dropped out" if dropped else ""


def write_page(target: Path, swept: Swept) -> None:
    """Write the result of `groundup.tools.sweep.sweep` as a page."""
    numeric = [axis for axis in swept.axes if axis.is_numeric]
    best = swept.points[0].settings if swept.best else {}
    first_rung = swept.rungs[0] if swept.rungs else None
    write_template(
        target,
        "sweep.html",
        scripts=("chart.js", "figures.js"),
        swept=swept,
        best=_in_words(best),
        recipe=tomli_w.dumps(nested(best)),
        overrides=shlex.join(swept.overrides),
        charts=[_chart(axis, swept) for axis in numeric[: 1 if len(swept.axes) == 2 else None]],
        cells={
            tuple(map(short_value, point.settings.values())): point.bits_per_byte(first_rung) for point in swept.points
        },
        short_value=short_value,
        chosen=_in_words(swept.chosen),
    )


def _in_words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {short_value(value)}" for key, value in settings.items())


def _chart(axis: Axis, swept: Swept) -> Chart:
    """Bits per byte over the values of a setting: a curve for each rung, or for each value of the other setting; of
    more settings the best over all others."""
    others = [other for other in swept.axes if other is not axis]
    if len(others) == 1 and len(others[0].values) <= MOST_CURVES:
        first_rung = swept.rungs[0] if swept.rungs else None
        settings = [{others[0].key: value} for value in others[0].values]
        curves = [_curve(_in_words(each), axis, swept, first_rung, each) for each in settings]
    else:
        curves = [_curve(f"after {step:,} steps", axis, swept, step, {}) for step in swept.rungs]
        curves = curves or [_curve("", axis, swept, None, {})]
    title = axis.key.rpartition(".")[2].replace("_", " ").capitalize()
    return Chart(title, axis.key, "bits per byte", curves, logarithmic_x=axis.is_logarithmic)


def _curve(name: str, axis: Axis, swept: Swept, step: int | None, where: Table) -> Curve:
    """The best over the points with the settings `where`."""
    best: dict[float, float] = {}
    for point in swept.points:
        bits = point.bits_per_byte(step)
        if bits is not None and where.items() <= point.settings.items():
            value = point.settings[axis.key]
            best[value] = min(bits, best.get(value, bits))
    return Curve(name, sorted(best), [best[value] for value in sorted(best)], dots=True)
