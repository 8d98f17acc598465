"""The charts of a page: curves, drawn by its script in place of a table, and bars."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MAX_ROWS = 12
"""Rows of the table that a reader without scripts has in place of curves."""


@dataclass(frozen=True)
class Bar:
    """One bar, and the text behind it. The `main` one is what the others are compared with."""

    name: str
    value: float
    text: str
    main: bool = False


@dataclass(frozen=True)
class Curve:
    """One curve; `dots` shows where its values are."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves over a common axis. On a logarithmic axis every value must be above 0."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    logarithmic_x: bool = False
    logarithmic_y: bool = False

    @property
    def rows(self) -> list[list[float | None]]:
        """Some positions of the x axis, those that most curves share, each with the value of every curve there."""
        shared = Counter(x for curve in self.curves for x in curve.x)
        most = max(shared.values(), default=0)
        positions = sorted(x for x, number in shared.items() if number == most)
        last = len(positions) - 1
        if last >= MAX_ROWS:
            positions = [positions[i * last // (MAX_ROWS - 1)] for i in range(MAX_ROWS)]
        values = [dict(zip(curve.x, curve.y, strict=True)) for curve in self.curves]
        return [[x, *(curve.get(x) for curve in values)] for x in positions]
