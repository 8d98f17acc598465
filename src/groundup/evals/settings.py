"""Settings of the evaluation stage, and of evaluation during training."""

from typing import Literal

from pydantic import Field

from groundup.corpus.settings import CorpusSettings
from groundup.generation.settings import Sampling
from groundup.settings import Settings


class EvalSettings(Settings):
    """What is measured and shown once training is over."""

    prompts: tuple[str, ...] = ("Once upon a time", "", "", "")
    """One sampled continuation each; an empty prompt lets the model begin a document by itself."""
    sampling: Sampling = Sampling(max_tokens=120)
    batch_rows: int = Field(default=16, ge=1)
    """Windows scored at once."""


class Evaluation(Settings):
    """A task that the model is given again and again while it is trained."""

    task: Literal["bits_per_byte", "bits_per_byte_by_position", "next_token_accuracy", "calibration"]
    """What is measured, on the validation documents."""
    every: int = Field(default=200, ge=1)
    """Steps between measurements; one more comes after the last step."""
    max_tokens: int = Field(default=100_000, ge=1)
    """How much of the documents is read each time."""


class FilesRead(Settings):
    """How files that are scored are read, where no recipe says it."""

    corpus: CorpusSettings
