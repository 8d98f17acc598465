"""What models got in benchmarks: where it is kept, its tables, and two models side by side. Without torch."""

from collections.abc import Sequence
from pathlib import Path

from groundup.errors import SettingsError
from groundup.evals.compare import TaskDifference, compare
from groundup.evals.results import Result, results_in
from groundup.files import require_path
from groundup.pages.render import number


def results_directory(target: Path) -> Path:
    """Where the results of a model are kept: in its run, or beside it."""
    run = target.parent if target.name == "model" and (target.parent / "recipe.toml").is_file() else target
    is_run = (run / "recipe.toml").is_file()
    return run / "benchmarks" if is_run else target.absolute().with_name(f"{target.absolute().name}.benchmarks")


def compare_examined(targets: Sequence[Path]) -> tuple[list[TaskDifference], list[str]]:
    """Two models in the tasks that both were asked, and what could not be compared; nothing where runs have no results.

    Raises:
        SettingsError: not two, the same twice, or a model that was asked no benchmarks.
    """
    places = []
    for target in targets:
        require_path(target, "run or model")
        places.append(results_directory(target))
    if all((target / "recipe.toml").is_file() for target in targets) and not all(place.is_dir() for place in places):
        return [], []
    if len({target.resolve() for target in targets}) != 2 or len(targets) != 2:
        raise SettingsError(f"benchmarks are compared of two different models, and {len(targets)} are given")
    for target, place in zip(targets, places, strict=True):
        if not results_in(place):
            raise SettingsError(f"{target} has no results: run `groundup eval {target} --suite core` first")
    return compare(*places)


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
