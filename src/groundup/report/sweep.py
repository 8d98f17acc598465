"""The page of a sweep: how good each value was, drawn, and the settings of the best to copy."""

import json
from pathlib import Path
from typing import Any

from groundup.pages.charts import Chart, Curve
from groundup.pages.render import number
from groundup.pages.render import write_page as write_template
from groundup.settings import Table
from groundup.words import duration, short_value

MOST_CURVES = 6
"""In one chart: as many as have a colour of their own."""


def write_page(target: Path, result: Table) -> None:
    """Write the result of `groundup.tools.sweep.sweep` as a page."""
    header, point_rows = rows(result)
    best = next((point for point in result["points"] if point["name"] == result["best"]), None)
    numeric = [axis for axis in result["axes"] if axis["numeric"]]
    drawn = numeric[: 1 if len(result["axes"]) == 2 else None]
    write_template(
        target,
        "sweep.html",
        scripts=("chart.js", "figures.js"),
        result=result,
        best=best,
        best_settings=_in_words(best["settings"]) if best else "",
        recipe=toml(best["settings"]) if best else "",
        overrides=" ".join(word if " " not in word else f"'{word}'" for word in result["overrides"]),
        charts=[_chart(axis, result) for axis in drawn],
        diverged=sum(1 for point in result["points"] if point["diverged"]),
        heat=_heat(result) if len(result["axes"]) == 2 else None,
        header=header,
        rows=point_rows,
        chosen=_in_words(result["chosen"]),
    )


def rows(result: Table) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of points, the best first."""
    keys = [axis["key"] for axis in result["axes"]]
    point_rows = []
    for point in result["points"]:
        last = point["measured"][-1] if point["measured"] else {"step": None, "validation_bits_per_byte": None}
        values = [short_value(point["settings"][key]) for key in keys]
        measured = [number(last["step"]), number(last["validation_bits_per_byte"], ".4f"), duration(point["seconds"])]
        point_rows.append([*values, *measured, _remark(point, result)])
    return [*keys, "steps", "bits per byte", "time", ""], point_rows


def _in_words(settings: Table) -> str:
    return ", ".join(f"{key} = {short_value(value)}" for key, value in settings.items())


def _remark(point: Table, result: Table) -> str:
    if point["diverged"]:
        return "diverged"
    if point["name"] == result["best"]:
        return "the best"
    dropped = result["rungs"] and point["measured"] and point["measured"][-1]["step"] < result["rungs"][-1]
    return "dropped out" if dropped else ""


def toml(settings: Table) -> str:
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


def _chart(axis: Table, result: Table) -> Chart:
    """Bits per byte over the values of a setting: a curve for each rung, or for each value of the other setting; of
    more settings the best over all others."""
    others = [other for other in result["axes"] if other is not axis]
    if len(others) == 1 and len(others[0]["values"]) <= MOST_CURVES:
        settings = [{others[0]["key"]: value} for value in others[0]["values"]]
        curves = [_curve(_in_words(each), axis, result, _first_rung(result), each) for each in settings]
    else:
        rungs = {f"after {step:,} steps": step for step in result["rungs"]} or {"": None}
        curves = [_curve(name, axis, result, step) for name, step in rungs.items()]
    title = axis["key"].rpartition(".")[2].replace("_", " ").capitalize()
    return Chart(title, axis["key"], "bits per byte", curves, logarithmic_x=axis["log"])


def _first_rung(result: Table) -> int | None:
    return result["rungs"][0] if result["rungs"] else None


def _curve(name: str, axis: Table, result: Table, step: int | None, where: Table | None = None) -> Curve:
    """The best over the points with the settings `where`."""
    best: dict[float, float] = {}
    for point in result["points"]:
        bits = _bits(point, step)
        if bits is not None and all(point["settings"][key] == value for key, value in (where or {}).items()):
            value = point["settings"][axis["key"]]
            best[value] = min(bits, best.get(value, bits))
    return Curve(name, sorted(best), [best[value] for value in sorted(best)], dots=True)


def _bits(point: Table, step: int | None) -> float | None:
    """Bits per byte at a step, or at the end; None where it was not reached."""
    if point["diverged"] and step is None:
        return None
    bits = [each["validation_bits_per_byte"] for each in point["measured"] if step in (None, each["step"])]
    return bits[-1] if bits else None


def _heat(result: Table) -> dict[str, Any]:
    """A row for each value of the first setting, a column for each of the second: bits per byte and, in percent, how
    much colour they get."""
    down, across = result["axes"]
    bits = {
        tuple(short_value(point["settings"][axis["key"]]) for axis in (down, across)): _bits(point, _first_rung(result))
        for point in result["points"]
    }
    known = [value for value in bits.values() if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)

    def cell(value: float | None) -> tuple[float | None, str]:
        return value, "0%" if value is None or high == low else f"{0.6 * (high - value) / (high - low):.0%}"

    columns = [short_value(value) for value in across["values"]]
    lines = [(row, [cell(bits.get((row, column))) for column in columns]) for row in map(short_value, down["values"])]
    return {"label": f"{down['key']} ↓ {across['key']} →", "columns": columns, "rows": lines}
