"""What a finished run recorded of itself: read and checked once, for its page and for comparisons."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from groundup.artifacts import COMMANDS, Manifest, is_made, verify
from groundup.errors import DataError, SettingsError
from groundup.files import read_lines, require_path
from groundup.settings import Table, flatten, read_toml


@dataclass(frozen=True)
class Run:
    """A finished run."""

    directory: Path
    manifests: Mapping[str, Manifest]
    recipe: Table
    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    documents: list[dict[str, Any]]
    """`id`, `bytes` and `bits` of each test document."""

    def happened(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind."""
        return [event for event in self.events if event.get("event") == kind]

    @property
    def name(self) -> str:
        return self.directory.resolve().name

    @property
    def corpus(self) -> Mapping[str, Any]:
        """Statistics of the corpus; likewise of the other stages."""
        return self.manifests["corpus"].statistics

    @property
    def packed(self) -> Mapping[str, Any]:
        return self.manifests["shards"].statistics

    @property
    def trained(self) -> Mapping[str, Any]:
        return self.manifests["model"].statistics

    @property
    def test(self) -> Table:
        """The score on the test documents."""
        return dict(self.manifests["evals"].statistics["test"])

    @property
    def model_settings(self) -> Mapping[str, Any]:
        """`model` and `pretrain`, as they were used."""
        return self.manifests["model"].settings

    @property
    def bytes_per_token(self) -> float:
        return float(self.packed["train"]["bytes"] / self.packed["train"]["tokens"])

    @property
    def parameters(self) -> int:
        return sum(self.trained["parameters"].values())

    @property
    def machine(self) -> str:
        """The machine that trained the model."""
        return str(self.manifests["model"].made["machine"])

    @property
    def seconds(self) -> float:
        """Time of all stages."""
        return sum(float(manifest.made["seconds"]) for manifest in self.manifests.values())

    @property
    def training_seconds(self) -> float:
        """Time of the steps alone."""
        return float(self.steps[-1]["seconds"]) if self.steps else 0.0

    @property
    def model_bytes(self) -> int:
        return sum(size for size, _ in self.manifests["model"].files.values())

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """The steps that were taken."""
        return [line for line in self.metrics if "loss" in line and line.get("accepted", True)]

    @cached_property
    def validations(self) -> list[dict[str, Any]]:
        """The lines that measure validation, with the seconds of the step that they follow."""
        seconds = {line["step"]: line["seconds"] for line in self.metrics if "loss" in line}
        return [
            {**line, "seconds": seconds[line["step"]]}
            for line in self.metrics
            if "validation_bits_per_byte" in line and line["step"] in seconds
        ]

    @cached_property
    def training_bits_per_byte(self) -> list[float]:
        """Each step's loss in bits per byte of the training documents: the next token's part of it alone."""
        train = self.packed["train"]
        factor = train["tokens"] / train["bytes"] / math.log(2)
        return [line.get("next_token", line["loss"]) * factor for line in self.steps]


def differing_settings(recipes: Sequence[Table]) -> dict[str, list[Any]]:
    """Dotted name of each setting that is not the same in all → its value in each, None where it is not set."""
    tables = [flatten(recipe) for recipe in recipes]
    values = {name: [table.get(name) for table in tables] for name in sorted(set().union(*tables))}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


def smooth(values: Sequence[float], window: int = 20) -> list[float]:
    """Mean of the last `window` values, or as many as there are."""
    sums = list(itertools.accumulate(values, initial=0.0))
    return [(sums[i + 1] - sums[max(0, i + 1 - window)]) / min(i + 1, window) for i in range(len(values))]


def read(directory: Path) -> Run:
    """Read a finished run, every byte of its stages checked against the digests.

    Raises:
        DataError: no run, one that is not finished, or a damaged one.
    """
    require_path(directory, "run")
    missing = [command for name, command in COMMANDS.items() if not is_made(directory / name)]
    if missing:
        raise DataError(
            f"{directory} has no result of {', '.join(missing)} yet: run `groundup build {directory / 'recipe.toml'} "
            f"--run {directory}` first"
        )
    try:
        recipe = read_toml(directory / "recipe.toml")
    except (DataError, SettingsError) as error:
        raise DataError(f"{error}. Build the run again with its recipe, which writes this one anew") from None
    return Run(
        directory=directory,
        manifests={name: verify(directory / name, name) for name in COMMANDS},
        recipe=recipe,
        metrics=read_lines(directory / "pretrain" / "metrics.jsonl"),
        events=read_lines(directory / "pretrain" / "events.jsonl"),
        samples=json.loads((directory / "evals" / "samples.json").read_text(encoding="utf-8")),
        documents=read_lines(directory / "evals" / "documents.jsonl"),
    )
