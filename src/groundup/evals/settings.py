"""Settings of the evaluation stage."""

from pydantic import Field

from groundup.generation.settings import Sampling
from groundup.settings import Settings


class EvalSettings(Settings):
    """What is measured and shown once training is over."""

    prompts: tuple[str, ...] = ("Once upon a time", "", "", "")
    """One sampled continuation each; an empty prompt lets the model begin a document by itself."""
    sampling: Sampling = Sampling(max_tokens=120)
    batch_rows: int = Field(default=16, ge=1)
    """Windows scored at once."""
