"""The page of a sweep: how good each value was, drawn, and the settings of the best to copy."""

import json
from pathlib import Path
from typing import Any

from groundup.report.charts import SERIES, Line, line_chart
from groundup.report.page import figure, number, section, sentence, table, text, write
from groundup.words import duration, short_value

Found = dict[str, Any]


def write_page(target: Path, found: Found) -> None:
    """Write what `groundup.tools.sweep.sweep` tells as a page."""
    parts = [f"<h1>Sweep of {text(found['name'])}</h1>", *_answers(found)]
    parts += [section("What the values made of it", *_charts(found))]
    parts += [section("All points", table(*rows(found)), sentence(_how(found)))]
    write(target, f"sweep of {found['name']}", "\n".join(parts))


def rows(found: Found) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of points, the best first."""
    keys = [axis["key"] for axis in found["axes"]]
    header = [*keys, "steps", "bits per byte", "time", ""]
    made = []
    for point in found["points"]:
        last = point["measured"][-1] if point["measured"] else None
        made.append(
            [
                *(short_value(point["settings"][key]) for key in keys),
                f"{last['step']:,}" if last else "–",
                number(last["validation_bits_per_byte"] if last else None, ".4f"),
                duration(point["seconds"]) if "seconds" in point else "–",
                _remark(point, found),
            ]
        )
    return header, made


def _remark(point: Found, found: Found) -> str:
    if point["diverged"]:
        return "diverged"
    if point["name"] == found["best"]:
        return "the best"
    dropped = found["rungs"] and point["measured"] and point["measured"][-1]["step"] < found["rungs"][-1]
    return "dropped out" if dropped else ""


def _answers(found: Found) -> list[str]:
    if found["best"] is None:
        return [sentence("**Every point diverged.** Sweep lower learning rates.")]
    best = next(point for point in found["points"] if point["name"] == found["best"])
    told = ", ".join(f"{key} = {short_value(value)}" for key, value in best["settings"].items())
    reached = best["measured"][-1]
    overrides = " ".join(word if " " not in word else f"'{word}'" for word in found["overrides"])
    return [
        sentence(
            f"**{told}** is the best of {len(found['points'])} points: "
            f"{reached['validation_bits_per_byte']:.4f} bits per byte on the validation documents after "
            f"{reached['step']:,} steps."
        ),
        *(sentence(f"**Look further:** {note}.") for note in found["notes"]),
        sentence("In the recipe:"),
        f"<pre>{text(toml(best['settings']))}</pre>",
        sentence("Or on the command line:"),
        f"<pre>{text(overrides)}</pre>",
    ]


def toml(settings: Found) -> str:
    """Dotted settings as the tables of a recipe.

    >>> print(toml({"pretrain.optimizer.learning_rate": 0.001, "model.d_model": 64}))
    [pretrain.optimizer]
    learning_rate = 0.001
    <BLANKLINE>
    [model]
    d_model = 64
    """
    tables: dict[str, list[str]] = {}
    for key, value in settings.items():
        name, _, last = key.rpartition(".")
        tables.setdefault(name, []).append(f"{last} = {json.dumps(value, ensure_ascii=False)}")
    return "\n\n".join("\n".join([f"[{name}]", *lines] if name else lines) for name, lines in tables.items())


def _charts(found: Found) -> list[str]:
    numeric = [axis for axis in found["axes"] if axis["numeric"]]
    drawn = [_chart(axis, found) for axis in numeric[: 1 if len(found["axes"]) == 2 else None]]
    if len(found["axes"]) == 2:
        drawn.append(_heat(found))
    return drawn or [sentence("The values are words, which have no axis; the table below has them in order.")]


def _chart(axis: Found, found: Found) -> str:
    """Bits per byte over the values of a setting: a line for each rung, or for each value of the other setting; of
    more settings the best over all others."""
    others = [other for other in found["axes"] if other is not axis]
    if len(others) == 1 and len(others[0]["values"]) <= SERIES:
        (other,) = others
        step = found["rungs"][0] if found["rungs"] else None
        lines = [
            _line(f"{other['key']} = {short_value(value)}", axis, found, step, series, {other["key"]: value})
            for series, value in enumerate(other["values"])
        ]
    elif found["rungs"]:
        lines = [
            _line(f"after {step:,} steps", axis, found, step, series) for series, step in enumerate(found["rungs"])
        ]
    else:
        lines = [_line("", axis, found, None, 0)]
    best = "**The lower the better.** "
    if others:
        best += "Each dot is one training. " if len(others) == 1 else "Each dot is the best over the other settings. "
    if found["rungs"] and others:
        best += f"After {found['rungs'][0]:,} steps, when all points were still there. "
    diverged = sum(1 for point in found["points"] if point["diverged"])
    best += f"{diverged} diverged and {'is' if diverged == 1 else 'are'} not drawn." if diverged else ""
    chart = line_chart(lines, axis["key"], "bits per byte", logarithmic_x=axis["log"])
    return figure(chart, best)


def _line(name: str, axis: Found, found: Found, step: int | None, series: int, where: Found | None = None) -> Line:
    best: dict[float, float] = {}
    for point in found["points"]:
        bits = _bits(point, step)
        if bits is not None and all(point["settings"][key] == value for key, value in (where or {}).items()):
            value = point["settings"][axis["key"]]
            best[value] = min(bits, best.get(value, bits))
    x = sorted(best)
    return Line(name, x, [best[value] for value in x], series=series, dots=True)


def _bits(point: Found, step: int | None) -> float | None:
    """At a step, or at the end; None where it was not reached."""
    if point["diverged"] and step is None:
        return None
    found = [each["validation_bits_per_byte"] for each in point["measured"] if step in (None, each["step"])]
    return found[-1] if found else None


def _heat(found: Found) -> str:
    """A table with a column for each value of one setting and a row for each of the other, the better the
    more coloured."""
    down, across = found["axes"]
    step = found["rungs"][0] if found["rungs"] else None
    bits = {
        (short_value(point["settings"][down["key"]]), short_value(point["settings"][across["key"]])): _bits(point, step)
        for point in found["points"]
    }
    known = [value for value in bits.values() if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    lines = []
    for row in map(short_value, down["values"]):
        cells = [_cell(bits.get((row, column)), low, high) for column in map(short_value, across["values"])]
        lines.append(f"<tr><th>{text(row)}</th>{''.join(cells)}</tr>")
    head = "".join(f"<th>{text(short_value(value))}</th>" for value in across["values"])
    label = f"{down['key']} ↓ {across['key']} →"
    grid = f'<table class="heat"><thead><tr><th>{text(label)}</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody>'
    when = "" if step is None else f", after {step:,} steps"
    return f'<div class="wide">{grid}</table></div>' + sentence(
        f"Bits per byte{when}: **the more colour, the better.**"
    )


def _cell(bits: float | None, low: float, high: float) -> str:
    if bits is None:
        return "<td>–</td>"
    share = 0.6 * (high - bits) / (high - low) if high > low else 0.0
    return f'<td style="background:color-mix(in srgb, var(--accent) {share:.0%}, transparent)">{bits:.4f}</td>'


def _how(found: Found) -> str:
    chosen = ", ".join(f"{key} = {short_value(value)}" for key, value in found["chosen"].items())
    steps = " and ".join(f"{step:,}" for step in found["rungs"][:-1])
    thirds = f" All points began; after {steps} steps the best third went on." if steps else ""
    return (
        f"What is not swept is the same in all points{f', also {chosen}, which the first chose' if chosen else ''}."
        f"{thirds} Each point is one training: "
        "sweep pretrain.seed as well to see how much of a difference is chance."
    )
