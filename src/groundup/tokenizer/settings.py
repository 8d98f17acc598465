"""Settings of the tokenizer."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from groundup.settings import Settings

N_BYTES = 256
N_SPECIAL = 16
MULTIPLE = 64
"""Vocabulary sizes are multiples of this, so that the matrix over them has no ragged edge."""
SMALLEST = -(-(N_BYTES + N_SPECIAL) // MULTIPLE) * MULTIPLE


class Learned(Settings):
    """Learn byte-level BPE on the training documents."""

    kind: Literal["learned"] = "learned"
    vocab_size: int
    """The total: 256 bytes + merges + 16 special tokens, a multiple of 64."""
    split: Literal["gpt2", "cl100k"] = "gpt2"
    """The pattern that cuts text into pieces before merging: GPT-2's, or GPT-4's (digits by three, contractions in
    any case)."""
    learn_bytes: int | None = Field(default=None, ge=100_000)
    """Learn on about so many bytes of text, of documents from all over the corpus; on all of it if not set. Scripts
    that put no blanks between words take long to learn."""

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
