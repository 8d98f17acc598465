"""Settings of the tokenizer."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from groundup.settings import Settings

N_BYTES = 256
N_SPECIAL = 16
MULTIPLE = 64
"""Vocabulary sizes are multiples of this, so that the matrix over them has no ragged edge."""
MEMORY_BYTES = 2_000_000_000
SMALLEST = -(-(N_BYTES + N_SPECIAL) // MULTIPLE) * MULTIPLE


class Learned(Settings):
    """Learn byte-level BPE on the training documents."""

    kind: Literal["learned"] = "learned"
    vocab_size: int
    """The total: 256 bytes + merges + 16 special tokens, a multiple of 64."""
    split: str = "gpt2"
    """The pattern that cuts text into pieces before merging: gpt2, cl100k, o200k, llama3, qwen2, smollm; digits3
    (digits by three); unspaced (for scripts without blanks between words); or a regular expression of one's own."""
    memory_bytes: int = Field(default=MEMORY_BYTES, ge=500_000_000)
    """Memory that learning may take. Pieces of text are counted on disk where it does not suffice."""

    @field_validator("split")
    @classmethod
    def _cuts(cls, pattern: str) -> str:
        from groundup.tokenizer.split import compiled

        compiled(pattern)
        return pattern

    @field_validator("vocab_size")
    @classmethod
    def _possible(cls, size: int) -> int:
        if size < SMALLEST or size % MULTIPLE:
            nearest = max(SMALLEST, round(size / MULTIPLE) * MULTIPLE)
            raise ValueError(
                f"{size} cannot be: {N_BYTES} bytes + merges + {N_SPECIAL} special tokens, a multiple of {MULTIPLE}; "
                f"nearest: {nearest}"
            )
        return size


class Existing(Settings):
    """Use a tokenizer that exists: ours, Hugging Face's tokenizer.json of a byte-level BPE, or GPT-2's two files."""

    kind: Literal["existing"] = "existing"
    path: str
    """A tokenizer.json, or a directory that holds one, or one with encoder.json and vocab.bpe."""


TokenizerSettings = Annotated[Learned | Existing, Field(discriminator="kind")]
