"""Settings of the evaluation stage, and of evaluation during training."""

from typing import Literal

from pydantic import Field

from groundup.corpus.settings import CorpusSettings
from groundup.generation.settings import Sampling
from groundup.settings import Settings

MeasurementName = Literal["bits_per_byte", "bits_per_byte_by_position", "next_token_accuracy", "calibration"]
"""The keys of `evals.heldout.MEASUREMENTS`."""


class EvalSettings(Settings):
    """What is measured and sampled once training is over."""

    prompts: tuple[str, ...] = ("Once upon a time", "", "", "")
    """One sampled continuation each; an empty prompt lets the model begin a document by itself."""
    sampling: Sampling = Sampling(max_tokens=120)
    batch_rows: int = Field(default=16, ge=1)
    """Windows scored at once."""


class Evaluation(Settings):
    """A measurement that is repeated while the model is trained."""

    task: MeasurementName
    """What is measured on the validation documents."""
    every: int = Field(default=200, ge=1)
    """Steps between measurements; one more comes after the last step."""
    max_tokens: int = Field(default=100_000, ge=1)
    """How much of the documents is read each time."""


class Benchmark(Settings):
    """A benchmark that is repeated while the model is trained."""

    task: str
    """One that `groundup tasks` lists."""
    data: str = "benchmarks"
    """The folder with its files."""
    every: int = Field(default=1000, ge=1)
    """Steps between measurements; one more comes after the last step."""
    limit: int = Field(default=200, ge=1)
    """Items that are asked, of each part of the task as many."""


class FilesRead(Settings):
    """How to read files that are scored, where no recipe says it."""

    corpus: CorpusSettings


class TaskSettings(Settings):
    """How a model is asked the items of a task."""

    limit: int | None = Field(default=None, ge=1)
    """The first items only, of each group as many."""
    shots: int | None = Field(default=None, ge=0)
    """Examples before each question; as many as the task has by itself if not given."""
    chat: bool = False
    """Put questions as a user's message, in the model's own template."""
    samples: int = Field(default=1, ge=1)
    """Answers written to each question."""
    temperature: float = Field(default=0.0, ge=0)
    """At which answers are written; 0 always takes the best."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Of the first answer; the others have the next ones."""
    stride: int | None = Field(default=None, ge=1)
    """Tokens that each window of a text adds; the context length if not given."""
