"""The tasks that there are, and their items as files for decontamination. Without torch."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from groundup.errors import DataError, MissingError, SettingsError
from groundup.evals.benchmarks import Files, fetch, forms
from groundup.evals.items import Item, Passage, shown
from groundup.evals.tasks import TASKS, find_tasks
from groundup.files import Progress, explaining_write_errors, no_progress, write_text


@dataclass(frozen=True)
class Listed:
    """A task, as it is listed."""

    name: str
    about: str
    """Source, prompt and scoring."""
    metrics: tuple[str, ...]
    chance: float | None
    shots: int
    licence: str
    harness: str | None
    """The task of lm-evaluation-harness that asks the same."""
    files: dict[str, list[dict[str, object]]]
    """Each file that it needs, and the forms in which it is read, the authors' own first."""


def list_tasks(names: Sequence[str]) -> list[Listed]:
    """Tasks of these names, or all."""
    return [
        Listed(
            name,
            " ".join((task.items.__doc__ or "").split()),
            task.metrics,
            task.chance,
            task.shots,
            task.licence,
            task.harness,
            {file: [asdict(form) for form in forms()[file]] for file in task.files},
        )
        for name, task in find_tasks(names or list(TASKS)).items()
    ]


def rows(listed: Sequence[Listed]) -> list[list[str]]:
    """A line for each task, below a header."""
    head = ["task", "scored by", "chance", "shots", "licence", "file"]
    return [head] + [
        [
            task.name,
            task.metrics[0],
            "–" if task.chance is None else f"{task.chance:.3g}",
            str(task.shots),
            task.licence,
            ", ".join(forms()[file][0].names[0] for file in task.files),
        ]
        for task in listed
    ]


def fetch_missing(names: Sequence[str], data: Path) -> list[str]:
    """Get the files of tasks that are not in the directory from the Hugging Face hub; returns their names.

    Raises:
        SettingsError: no task is named, or a file is not on the hub.
        DataError: the hub does not answer.
    """
    if not names:
        raise SettingsError("--fetch needs the names of the tasks whose files are to be fetched, such as hellaswag")
    files, fetched = Files(data), list[str]()
    data.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(name for task in find_tasks(names).values() for name in task.files):
        try:
            files.open(name)
        except MissingError:
            fetch(name, data)
            fetched.append(name)
    return fetched


def dump(names: Sequence[str], data: Path, out: Path, progress: Progress = no_progress) -> dict[str, int | str]:
    """Write `TASK.jsonl`, with a line {id, text} for each item, into `out`: of the named tasks, or of all whose files
    are there. Returns how many items were written of each task, or why none were.

    Raises:
        DataError: a file of a named task that is missing or altered.
    """
    files, tasks, written = Files(data), find_tasks(names or list(TASKS)), dict[str, int | str]()
    with explaining_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    for number, (name, task) in enumerate(tasks.items()):
        progress(number, len(tasks), name)
        try:
            lines = [json.dumps({"id": item.id, "text": _text(item)}) + "\n" for item in task.items(files)]
        except DataError as error:
            if names:
                raise
            written[name] = str(error)
            continue
        write_text(out / f"{name}.jsonl", "".join(lines))
        written[name] = len(lines)
    return written


def _text(item: Item) -> str:
    """An item with its right answer, as training documents may hold it."""
    return (item.ask.original if isinstance(item.ask, Passage) else shown(item)).strip()
