"""The tokenizer of a run: learned on its corpus, or one that is there already."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup.artifacts import Draft
from groundup.files import Progress, locate
from groundup.tokenizer.settings import (
    N_BYTES,
    N_SPECIAL,
    Existing,
    Learned,
    TokenizerSettings,
    WholeCharacters,
    WholeWords,
)
from groundup.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Corpus:
    """The documents that a tokenizer is learned on."""

    read: Callable[[], Iterable[Any]]
    """Their texts, as Arrow columns."""
    n_documents: int
    digest: str
    counts: Path
    """A directory for what was counted of them, so that an interrupted count goes on."""


def load_existing(settings: Existing, beside: Path) -> Tokenizer:
    path = locate(settings.path, beside, "tokenizer")
    return Tokenizer.load(path, pattern=settings.split, special=settings.special)


def make_tokenizer(
    settings: TokenizerSettings,
    beside: Path,
    corpus: Corpus,
    draft: Draft,
    progress: Progress,
    say: Callable[[str], None],
) -> None:
    """Write the tokenizer of these settings, and leave its sizes in `draft.statistics`."""
    match settings:
        case Existing():
            tokenizer = load_existing(settings, beside)
        case Learned():
            tokenizer, least = Tokenizer.learn_columns(
                corpus.read(),
                vocab_size=settings.vocab_size,
                pattern=settings.split,
                memory_bytes=settings.memory_bytes,
                progress=progress,
                n_documents=corpus.n_documents,
                directory=corpus.counts,
                of=corpus.digest,
            )
            if least > 1:
                say(
                    f"pre-tokens that occur fewer than {least} times were left out of learning, as "
                    f"tokenizer.memory_bytes = {settings.memory_bytes} does not suffice for all of them"
                )
        case WholeCharacters() | WholeWords():
            pattern = settings.split if isinstance(settings, WholeWords) else "characters"
            texts = (text for column in corpus.read() for text in column.to_pylist())
            tokenizer = Tokenizer.of_pieces(texts, vocab_size=settings.vocab_size, pattern=pattern)
    n_special = len(tokenizer.special)
    reached = tokenizer.vocab_size - n_special
    if not isinstance(settings, Existing) and reached < settings.vocab_size - N_SPECIAL:
        unit = "pairs" if isinstance(settings, Learned) else settings.kind
        say(
            f"the corpus ran out of {unit} after {reached - N_BYTES:,} of "
            f"{settings.vocab_size - N_SPECIAL - N_BYTES:,}: the vocabulary has {tokenizer.vocab_size:,} ids"
        )
    tokenizer.save(draft.path)
    draft.statistics |= {
        "vocab_size": tokenizer.vocab_size,
        "merges": len(tokenizer.merges),
        "special": n_special,
        "split": tokenizer.pattern,
    }
