"""Settings of the tokenizer."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from groundup.settings import Settings

N_BYTES = 256
N_SPECIAL = 16
MULTIPLE = 64
"""Vocabulary sizes are multiples of this, so that the matrix over them has no ragged edge."""
MEMORY_BYTES = 2_000_000_000
SMALLEST = -(-(N_BYTES + N_SPECIAL) // MULTIPLE) * MULTIPLE


def _refuse_no_pattern(pattern: str) -> str:
    from groundup.tokenizer.split import compiled

    compiled(pattern)
    return pattern


def _refuse_impossible(size: int) -> int:
    if size < SMALLEST or size % MULTIPLE:
        nearest = max(SMALLEST, round(size / MULTIPLE) * MULTIPLE)
        raise ValueError(
            f"{size} cannot be: {N_BYTES} bytes + learned tokens + {N_SPECIAL} special tokens, a multiple of "
            f"{MULTIPLE}; nearest: {nearest}"
        )
    return size


SplitPattern = Annotated[str, AfterValidator(_refuse_no_pattern)]
VocabSize = Annotated[int, AfterValidator(_refuse_impossible)]


class Learned(Settings):
    """Learn byte-level BPE on the training documents."""

    kind: Literal["learned"] = "learned"
    vocab_size: VocabSize
    """The total: 256 bytes + merges + 16 special tokens, a multiple of 64."""
    split: SplitPattern = "gpt2"
    """The pattern that cuts text into pre-tokens before merging: gpt2, cl100k, o200k, llama3, qwen2, smollm; digits3
    (digits by three); unspaced (for scripts without spaces between words); or a regular expression of one's own."""
    memory_bytes: int = Field(default=MEMORY_BYTES, ge=500_000_000)
    """Memory that learning may take. Pre-tokens are counted on disk where it does not suffice."""


class WholeCharacters(Settings):
    """Take the most frequent characters of the training documents whole, and the bytes of all others."""

    kind: Literal["characters"] = "characters"
    vocab_size: VocabSize
    """The total: 256 bytes + characters + 16 special tokens, a multiple of 64."""


class WholeWords(Settings):
    """Take the most frequent words of the training documents whole, and the bytes of all others."""

    kind: Literal["words"] = "words"
    vocab_size: VocabSize
    """The total: 256 bytes + words + 16 special tokens, a multiple of 64."""
    split: SplitPattern = "gpt2"
    """The pattern that cuts text into words, by its name or as a regular expression."""


class Existing(Settings):
    """Use a tokenizer that exists: ours, Hugging Face's, GPT-2's two files, ranks, or a SentencePiece model."""

    kind: Literal["existing"] = "existing"
    path: str
    """A tokenizer.json, encoder.json, *.tiktoken or tokenizer.model, or a directory that holds one."""
    split: str | None = None
    """The split pattern of a rank file (*.tiktoken) whose name is not known, by its name or as a regular expression."""
    special: tuple[str, ...] = ()
    """The special tokens of such a rank file; their ids follow its ranks."""

    @model_validator(mode="after")
    def _says_all_of_a_rank_file(self) -> Self:
        if self.special and self.split is None:
            raise ValueError("tokenizer.special is given, but not tokenizer.split: a rank file of its own needs both")
        return self


TokenizerSettings = Annotated[Learned | WholeCharacters | WholeWords | Existing, Field(discriminator="kind")]
