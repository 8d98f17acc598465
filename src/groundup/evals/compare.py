"""Compare two models on the tasks that both were asked: better, worse, or no difference. Without torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from groundup.evals.metrics import METRICS, metric_called, table_of
from groundup.evals.results import Result, read_lines, results_in
from groundup.evals.statistics import holm, paired_difference

BELIEVED = 0.05
"""Chance alone is to make a difference in fewer cases than this, over all tasks together."""


@dataclass(frozen=True)
class TaskDifference:
    """How much the second model differs from the first in one task."""

    task: str
    metric: str
    first: float
    second: float
    items: int
    """That both were asked."""
    difference: float
    interval: tuple[float, float]
    """Ends of the 95 % interval of the difference, of this task alone."""
    p: float
    """By Holm's correction for all tasks that are compared."""
    says: str
    """better, worse or no difference."""


def compare(first: Path, second: Path) -> tuple[list[TaskDifference], list[str]]:
    """The differences in the tasks that both directories hold, and sentences on those that cannot be compared."""
    before, after = results_in(first), results_in(second)
    tested, notes = dict[str, TaskDifference](), list[str]()
    for name in before.keys() | after.keys():
        if name not in before or name not in after:
            notes.append(f"{name}: only {first if name in before else second} has a result")
        elif before[name].hash != after[name].hash or _manner(before[name]) != _manner(after[name]):
            notes.append(f"{name}: not compared: the two were asked in different ways (prompts, items or settings)")
        else:
            difference = _difference(before[name], *(read_lines(path / name) for path in (first, second)))
            if difference is None:
                notes.append(f"{name}: not compared: there is no item that both were asked")
            else:
                tested[name] = difference
    adjusted = holm({name: each.p for name, each in tested.items()})
    return [_judged(tested[name], adjusted[name]) for name in sorted(tested)], sorted(notes)


def _manner(result: Result) -> dict[str, Any]:
    """How it was asked, but for what changes the items' number or the draw alone."""
    return {name: value for name, value in result.settings.items() if name not in ("limit", "seed")}


def _difference(result: Result, *lines: list[dict[str, Any]]) -> TaskDifference | None:
    """Of the first metric, on the items that both were asked and that could be checked; None where there are none."""
    metric = result.metric
    how = metric_called(metric)
    before, after = (
        {(line["group"], line["id"]): line["values"] for line in each if how.of[0] in line["values"]} for each in lines
    )
    common = [key for key in before if key in after]
    if not common:
        return None
    first, second = (table_of(how, [values[key] for key in common]) for values in (before, after))
    found = paired_difference(first, second, how.aggregate, is_mean=metric not in METRICS)
    both = how.aggregate(first), how.aggregate(second)
    return TaskDifference(result.task, metric, *both, len(common), found.value, found.interval, found.p, "")


def _judged(difference: TaskDifference, p: float) -> TaskDifference:
    gain = difference.difference * (1 if metric_called(difference.metric).higher_is_better else -1)
    says = "no difference" if p >= BELIEVED else "better" if gain > 0 else "worse"
    return replace(difference, p=p, says=says)
