"""Charts as SVG text: lines over steps and bars over names, coloured by the page's style sheet."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 76, 28, 12, 40
MAX_POINTS = 800


@dataclass(frozen=True)
class Line:
    """One curve. `faint` is for the noisy original behind a smoothed one."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False


def smooth(y: Sequence[float], window: int) -> list[float]:
    """Mean over the last `window` values, or as many as there are."""
    sums = [0.0]
    for value in y:
        sums.append(sums[-1] + value)
    return [(sums[i + 1] - sums[max(0, i + 1 - window)]) / min(i + 1, window) for i in range(len(y))]


def line_chart(lines: Sequence[Line], x_label: str, y_label: str) -> str:
    """Curves over a common axis. Lines without points are left out; without any, a sentence says so."""
    drawn = [line for line in lines if len(line.x)]
    if not drawn:
        return "<p>Nothing was measured yet.</p>"
    low_x, high_x = _range([x for line in drawn for x in line.x])
    low_y, high_y = _range([y for line in drawn for y in line.y])
    scale_x = (WIDTH - LEFT - RIGHT) / (high_x - low_x)
    scale_y = (HEIGHT - TOP - BOTTOM) / (high_y - low_y)
    parts = [_axes(low_x, high_x, low_y, high_y, x_label, y_label)]
    named = [line.name for line in drawn if not line.faint]
    for number, line in enumerate(drawn):
        every = max(1, len(line.x) // MAX_POINTS)
        points = " ".join(
            f"{LEFT + (x - low_x) * scale_x:.1f},{HEIGHT - BOTTOM - (y - low_y) * scale_y:.1f}"
            for x, y in list(zip(line.x, line.y, strict=True))[::every]
        )
        parts.append(f'<polyline class="line{" faint" if line.faint else ""}" points="{points}"/>')
        if not line.faint and len(named) > 1:
            parts.append(
                f'<text x="{WIDTH - RIGHT}" y="{TOP + 12 + 16 * number}" class="end">{html.escape(line.name)}</text>'
            )
    return _svg(parts, f"{y_label} over {x_label}", HEIGHT)


def bar_chart(values: dict[str, float], label: str) -> str:
    """Horizontal bars, one a name, with the value behind each."""
    row, left = 24, 110
    widest = max(values.values(), default=0) or 1
    parts = []
    for number, (name, value) in enumerate(values.items()):
        y = number * row
        length = (WIDTH - left - 90) * value / widest
        parts.append(f'<text x="{left - 8}" y="{y + 16}" class="end">{html.escape(name)}</text>')
        parts.append(f'<rect class="bar" x="{left}" y="{y + 3}" width="{length:.1f}" height="{row - 6}"/>')
        parts.append(f'<text x="{left + length + 6:.1f}" y="{y + 16}">{value:,.0f}</text>')
    return _svg(parts, label, row * len(values) + 4)


def _svg(parts: Sequence[str], label: str, height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(label)}">{"".join(parts)}</svg>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _axes(low_x: float, high_x: float, low_y: float, high_y: float, x_label: str, y_label: str) -> str:
    parts = []
    for tick in ticks(low_y, high_y, 5):
        y = HEIGHT - BOTTOM - (tick - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="end">{tick:g}</text>')
    for tick in ticks(low_x, high_x, 6):
        x = LEFT + (tick - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" class="middle">{tick:,g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" class="middle label">{html.escape(x_label)}</text>')
    middle = (HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="14" y="{middle}" transform="rotate(-90 14 {middle})" class="middle label">'
        f"{html.escape(y_label)}</text>"
    )
    return "".join(parts)


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
