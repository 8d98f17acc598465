"""Settings of sampling."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from groundup.settings import Settings


class Sampling(Settings):
    """How the next token is chosen, and when to stop."""

    max_tokens: int = Field(default=200, ge=0)
    """Most tokens to write."""
    temperature: float = Field(default=0.8, ge=0)
    """Scores are divided by this; 0 always takes the best."""
    top_k: int | None = Field(default=None, ge=1)
    """Only among the k best."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Only among the best whose probabilities add up to p (Holtzman et al. 2020, arXiv:1904.09751)."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """The same seed gives the same text."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end the answer; they are not part of it."""

    @field_validator("stop", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        """One text may stand alone, as in `stop=END` on a command line."""
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
