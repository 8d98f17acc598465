"""What a finished run says of itself: read and checked once, for its page and for the comparison."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from groundup.artifacts import COMMANDS, Manifest, is_made, verify
from groundup.errors import DataError, SettingsError
from groundup.files import read_lines, refuse_nothing
from groundup.settings import Table, read_toml


@dataclass(frozen=True)
class Run:
    """A finished run. What an older version did not record is None or empty."""

    directory: Path
    manifests: Mapping[str, Manifest]
    recipe: Table
    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    documents: list[dict[str, Any]]
    """`id`, `bytes` and `bits` of each test document."""

    @property
    def name(self) -> str:
        return self.directory.resolve().name

    @property
    def test(self) -> dict[str, Any]:
        """The score on the test documents."""
        table: dict[str, Any] = self.manifests["evals"].statistics["test"]
        return table

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

    @property
    def parameters(self) -> int:
        return sum(self.manifests["model"].statistics["parameters"].values())

    @property
    def seconds(self) -> float:
        return sum(float(manifest.made["seconds"]) for manifest in self.manifests.values())

    @property
    def model_bytes(self) -> int:
        return sum(size for size, _ in self.manifests["model"].files.values())

    @cached_property
    def training_bits_per_byte(self) -> list[float]:
        """What each step's loss is in bits per byte of the training documents: the next token's part of it alone."""
        train = self.manifests["shards"].statistics["train"]
        factor = train["tokens"] / train["bytes"] / math.log(2)
        return [line.get("next_token", line["loss"]) * factor for line in self.steps]


def read(directory: Path) -> Run:
    """Read a finished run, every byte of its stages checked against the digests.

    Raises:
        DataError: no run, one that is not finished, or a damaged one.
    """
    refuse_nothing(directory, "run")
    missing = [command for name, command in COMMANDS.items() if not is_made(directory / name)]
    if missing:
        raise DataError(
            f"{directory} has no result of {', '.join(missing)} yet: run `groundup build {directory / 'recipe.toml'} "
            f"--run {directory}` first"
        )
    if not (directory / "recipe.toml").is_file():
        raise DataError(f"{directory} has lost its recipe.toml: build it again with its recipe, which writes it anew")
    try:
        recipe = read_toml(directory / "recipe.toml")
    except SettingsError as error:
        raise DataError(f"{error}. Build the run again with its recipe, which writes this one anew") from None
    manifests = {name: verify(directory / name, name) for name in COMMANDS}
    return Run(
        directory=directory,
        manifests=manifests,
        recipe=recipe,
        metrics=read_lines(directory / "pretrain" / "metrics.jsonl"),
        events=read_lines(directory / "pretrain" / "events.jsonl"),
        samples=json.loads((directory / "evals" / "samples.json").read_text(encoding="utf-8")),
        documents=read_lines(directory / "evals" / "documents.jsonl"),
    )
