"""Charts without a script: curves as SVG text, bars as a list; coloured by the page's style sheet."""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480, 220
"""In the units of the drawing. Near a phone's width, so that the letters stay readable there."""
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 12, 44
MAX_POINTS = 800
SERIES = 6
"""Curves told apart by colour and dash; style.css has as many."""


@dataclass(frozen=True)
class Line:
    """One curve. `faint` is for the noisy original behind a smoothed one, `series` chooses colour and dash, `dots`
    shows where its values are."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False
    series: int = 0
    dots: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar, and what is written behind it. `own` is the one that the others are there to be compared with."""

    name: str
    value: float
    shown: str
    own: bool = False


def smooth(y: Sequence[float], window: int) -> list[float]:
    """Mean over the last `window` values, or as many as there are."""
    sums = [0.0]
    for value in y:
        sums.append(sums[-1] + value)
    return [(sums[i + 1] - sums[max(0, i + 1 - window)]) / min(i + 1, window) for i in range(len(y))]


def line_chart(
    lines: Sequence[Line], x_label: str, y_label: str, *, logarithmic: bool = False, logarithmic_x: bool = False
) -> str:
    """Curves over a common axis. Lines without points are left out; without any, a sentence says so.

    Args:
        logarithmic: both axes, in powers of ten; every value must then be above 0.
        logarithmic_x: only that axis, and its values.
    """
    drawn = [line for line in lines if len(line.x)]
    if not drawn:
        return "<p>Nothing was measured yet.</p>"
    logarithmic_x = logarithmic_x or logarithmic
    place_x, place_y = math.log10 if logarithmic_x else float, math.log10 if logarithmic else float
    low_x, high_x = _range([place_x(x) for line in drawn for x in line.x])
    low_y, high_y = _range([place_y(y) for line in drawn for y in line.y])
    scale_x = (WIDTH - LEFT - RIGHT) / (high_x - low_x)
    scale_y = (HEIGHT - TOP - BOTTOM) / (high_y - low_y)
    parts = [_axes(low_x, high_x, low_y, high_y, x_label, y_label, logarithmic_x, logarithmic)]
    for line in drawn:
        every = max(1, len(line.x) // MAX_POINTS)
        points = [
            f"{LEFT + (place_x(x) - low_x) * scale_x:.1f},{HEIGHT - BOTTOM - (place_y(y) - low_y) * scale_y:.1f}"
            for x, y in zip(line.x, line.y, strict=True)
        ]
        kept = points[::every] if (len(points) - 1) % every == 0 else [*points[::every], points[-1]]
        parts.append(f'<polyline class="line {_series(line)}" points="{" ".join(kept)}"/>')
        if line.dots:
            places = (point.split(",") for point in points)
            parts += [f'<circle class="dot {_series(line)}" cx="{x}" cy="{y}" r="3.5"/>' for x, y in places]
    label = html.escape(f"{y_label} over {x_label}")
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    named = [line for line in drawn if not line.faint]
    return drawing + (_legend(named) if len(named) > 1 else "")


def bars(rows: Iterable[Bar]) -> str:
    """Horizontal bars from 0, each with its name before and its value behind it."""
    rows = list(rows)
    widest = max((row.value for row in rows), default=0) or 1
    own = ' class="own"'
    drawn = "".join(
        f"<div{own if row.own else ''}><dt>{html.escape(row.name)}</dt>"
        f'<dd><i style="width:calc((100% - 6rem) * {row.value / widest:.4f})"></i>{html.escape(row.shown)}</dd></div>'
        for row in rows
    )
    return f'<dl class="bars">{drawn}</dl>'


def _series(line: Line) -> str:
    return f"s{line.series % SERIES}{' faint' if line.faint else ''}"


def _legend(lines: Sequence[Line]) -> str:
    swatch = '<svg viewBox="0 0 36 8" aria-hidden="true"><line class="line {}" x2="36" y1="4" y2="4"/></svg>'
    items = (f"<li>{swatch.format(_series(line))}{html.escape(line.name)}</li>" for line in lines)
    return f'<ul class="legend">{"".join(items)}</ul>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _axes(
    low_x: float,
    high_x: float,
    low_y: float,
    high_y: float,
    x_label: str,
    y_label: str,
    logarithmic_x: bool,
    logarithmic_y: bool,
) -> str:
    parts = []
    for tick in (_powers if logarithmic_y else ticks)(low_y, high_y, 4):
        y = HEIGHT - BOTTOM - (tick - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="end">{_shown(tick, logarithmic_y)}</text>')
    for tick in (_powers if logarithmic_x else ticks)(low_x, high_x, 4):
        x = LEFT + (tick - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" class="middle">{_shown(tick, logarithmic_x)}</text>'
        )
    middle, upwards = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" class="middle">{html.escape(x_label)}</text>')
    parts.append(
        f'<text x="14" y="{upwards}" transform="rotate(-90 14 {upwards})" class="middle">{html.escape(y_label)}</text>'
    )
    return "".join(parts)


def _shown(tick: float, logarithmic: bool) -> str:
    value = float(f"{10.0**tick:.3g}") if logarithmic else tick
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e5, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / unit:g}{letter}"
    return f"{value:,g}"


def _powers(low: float, high: float, about: int) -> list[float]:
    """The whole numbers between two logarithms, or about so many of them; where there are hardly any, also the
    logarithms of twice and five times a power, or round numbers.

    >>> [round(10**place, 3) for place in _powers(math.log10(0.001), math.log10(0.03), 4)]
    [0.001, 0.002, 0.005, 0.01, 0.02]
    """
    powers = range(math.ceil(low), math.floor(high) + 1)
    if len(powers) > 2:
        return [float(power) for power in powers[:: max(1, len(powers) // about)]]
    near = [power + math.log10(n) for power in range(math.floor(low), math.ceil(high)) for n in (1, 2, 5)]
    within = [place for place in [*near, float(math.ceil(high))] if low - 1e-9 <= place <= high + 1e-9]
    return within if len(within) > 1 else [math.log10(tick) for tick in ticks(10**low, 10**high, about) if tick > 0]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between `low` and `high`, about so many.

    >>> ticks(0, 1147, 6)
    [0, 200, 400, 600, 800, 1000]
    """
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((1, 2, 5, 10), key=lambda factor: abs(factor * power - rough)) * power
    first = math.ceil(low / step)
    found = [first * step + i * step for i in range(int((high - first * step) / step + 1e-9) + 1)]
    return [int(tick) if step >= 1 else round(tick, 10) for tick in found]
