"""Settings of sampling."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from groundup.settings import Settings
from groundup.words import contradiction


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
    min_p: float | None = Field(default=None, gt=0, le=1)
    """Only those whose probability is at least this share of the best's (Nguyen et al. 2024, arXiv:2407.01082)."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Scores above 0 of tokens that were there before are divided by this, those below multiplied."""
    presence_penalty: float = 0.0
    """Taken off the scores of tokens that the answer has already."""
    frequency_penalty: float = 0.0
    """Taken off those scores as often as the answer has the token."""
    logit_bias: dict[int, float] = {}
    """Added to the scores of tokens, by their ids."""
    regex: str | None = None
    """A pattern that the whole answer fits. Needs `groundup[constrained]`."""
    json_schema: str | None = None
    """A JSON schema, as JSON, that the answer fits. Needs `groundup[constrained]`."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """The same seed gives the same text."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end the answer; they are not part of it."""

    @field_validator("stop", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        """One text may stand alone, as in `stop=END` on a command line."""
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _by_ids(cls, value: Any) -> Any:
        """TOML and JSON have no keys but texts."""
        if not isinstance(value, dict):
            return value
        return {int(i) if isinstance(i, str) and i.isdecimal() else i: float(bias) for i, bias in value.items()}

    @model_validator(mode="after")
    def _one_constraint(self) -> "Sampling":
        if self.regex is not None and self.json_schema is not None:
            raise contradiction("regex and json_schema are both set: set one of them", "regex", "json_schema")
        return self
