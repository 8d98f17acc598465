"""What models got in benchmarks: where it is kept, its tables, and models side by side. Without torch."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from groundup.errors import SettingsError
from groundup.evals.compare import TaskDifference
from groundup.evals.results import Result, results_in
from groundup.pages.render import number


def results_directory(target: Path) -> Path:
    """Where the results of a model are kept: in its run, or beside it."""
    run = target.parent if target.name == "model" and (target.parent / "recipe.toml").is_file() else target
    is_run = (run / "recipe.toml").is_file()
    return run / "benchmarks" if is_run else target.absolute().with_name(f"{target.absolute().name}.benchmarks")


def results_of(targets: Sequence[Path]) -> list[dict[str, Result]]:
    """The results of each model, by task; nothing where one of several runs has none.

    Raises:
        SettingsError: a model, of no run, that was asked no benchmarks.
    """
    found = [results_in(results_directory(target)) for target in targets]
    for target, results in zip(targets, found, strict=True):
        if not results and (target.is_file() or (target / "config.json").is_file()):
            raise SettingsError(f"{target} has no results: run `groundup eval {target} --suite core` first")
    return found if all(found) else []


def spread_rows(targets: Sequence[Path], found: Sequence[dict[str, Result]]) -> list[list[str]]:
    """A line for each task that all models were asked alike: their values, mean and standard deviation. Of runs that
    differ in their seed alone, the deviation is what a seed does."""
    table = [["task", "metric", *(str(target) for target in targets), "mean", "deviation"]]
    for name, first in found[0].items():
        every = [results[name] for results in found if name in results and results[name].hash == first.hash]
        values = [each.metrics[first.metric].value for each in every if first.metric in each.metrics]
        if len(values) == len(targets):
            told = [*values, statistics.mean(values), statistics.stdev(values)]
            table.append([name, first.metric.replace("_", " "), *(f"{value:.4f}" for value in told)])
    return table


def harness_rows(found: Sequence[tuple[str, str, float, float | None]]) -> list[tuple[str, ...]]:
    """A line for each metric of each task."""
    head = ("task", "metric", "value", "standard error")
    return [head, *((task, metric, f"{value:.4f}", number(error, ".4f")) for task, metric, value, error in found)]


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """A line for each metric of each task."""
    table: list[tuple[str, ...]] = [("task", "metric", "value", "95 % interval", "chance", "items", "")]
    for result in results:
        items = f"{result.items:,}" + ("" if result.items == result.of else f" of {result.of:,}")
        notes = [f"{n:,} {what}" for n, what in ((result.cut, "cut"), (result.unknown, "unknown")) if n]
        notes += [form for form in result.files.values() if form.startswith("reworked")]
        first = [result.task, number(result.chance, ".3g"), items, "; ".join(notes)]
        for metric, measured in result.metrics.items():
            task, *others = first
            value, interval = f"{measured.value:.4f}", _interval(measured.interval)
            table.append((task, metric.replace("_", " "), value, interval, *others))
            first = [""] * 4
        if not result.metrics:
            table.append((result.task, result.metric, "–", "", *first[1:]))
    return table


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def difference_rows(differences: Sequence[TaskDifference]) -> list[tuple[str, ...]]:
    """A line for each task: both values, their difference, and what it comes to."""
    head = ("task", "metric", "first", "second", "difference", "95 % interval", "p", "items", "the second is")
    return [
        head,
        *(
            (
                each.task,
                each.metric.replace("_", " "),
                f"{each.first:.4f}",
                f"{each.second:.4f}",
                f"{each.difference:+.4f}",
                _interval(each.interval),
                f"{each.p:.3f}",
                f"{each.items:,}",
                each.says,
            )
            for each in differences
        ),
    ]
