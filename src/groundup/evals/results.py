"""Results: what models got in tasks, as `examine` writes it and others read it. Without torch.

DIRECTORY/TASK/{result.json, items.jsonl, manifest.json}
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup.artifacts import is_made, verify
from groundup.evals.metrics import Measured


@dataclass(frozen=True)
class Result:
    """What a model got in a task."""

    task: str
    metric: str
    """What the task is known by."""
    hash: str
    """Digest of every item as it is asked, and of how it is scored: only results with the same one are compared."""
    settings: dict[str, Any]
    """How it was asked: the fields of `TaskSettings`."""
    items: int
    of: int
    """Items that the task has."""
    chance: float | None
    metrics: dict[str, Measured]
    groups: dict[str, Measured]
    """The first metric, of each part of the task."""
    parts: dict[str, Measured]
    """The first metric of items that training documents hold ("contaminated") and of the rest ("clean"), if known."""
    cut: int
    """Items of whose beginning the model saw nothing."""
    unknown: int
    """Items whose check could not be run; they count in no metric."""
    files: dict[str, str]
    """What was read, and in which form."""
    isolation: str | None = None
    """What isolated the programs that were run, if any were."""


def read_result(directory: Path) -> Result:
    """The result in a directory that `examine` has made.

    Raises:
        DataError: missing or damaged.
    """
    verify(directory, "task")
    table = json.loads((directory / "result.json").read_bytes())
    for name in ("metrics", "groups", "parts"):
        table[name] = {key: Measured(**{**each, "interval": each["interval"] and tuple(each["interval"])})
                       for key, each in table[name].items()}  # fmt: skip
    return Result(**table)


def read_lines(directory: Path) -> list[dict[str, Any]]:
    """What the model made of each item, in the task's order."""
    return [json.loads(line) for line in (directory / "items.jsonl").read_bytes().splitlines()]


def results_in(directory: Path) -> dict[str, Result]:
    """The results in a directory, by task."""
    found = sorted(path for path in directory.iterdir() if is_made(path)) if directory.is_dir() else []
    return {path.name: read_result(path) for path in found}
