"""Where a text comes from: the training documents of a corpus that have its longest runs of words."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from groundup.artifacts import read_manifest
from groundup.compiled.words import longest_common, words_of
from groundup.corpus.document import read_batches
from groundup.errors import DataError, SettingsError
from groundup.files import Progress, no_progress, require_path

CONTEXT = 80
"""Characters that are shown on each side of a passage."""


@dataclass(frozen=True)
class Traced:
    """A training document, and the longest passage that it has in common with a text."""

    words: int
    """Of the passage. Case and punctuation do not count."""
    source: str
    id: str
    before: str
    passage: str
    after: str


def trace(corpus: Path, text: str, most: int = 10, progress: Progress = no_progress) -> list[Traced]:
    """The training documents with the longest runs of a text's words, longest first, then in their order.

    Args:
        corpus: its directory, or a run that has one.
        most: how many.

    Raises:
        DataError: no corpus, or a damaged one.
        SettingsError: a text without words.
    """
    require_path(corpus, "corpus or run")
    directory = corpus / "corpus" if (corpus / "corpus").is_dir() else corpus
    if not (directory / "train.parquet").is_file():
        raise DataError(f"{corpus} has no train.parquet: name a corpus, or a run with one, such as runs/storybook")
    query, _, _ = words_of(text)
    if not len(query):
        raise SettingsError(f"{text!r} has no words to look for: give some, such as 'Once upon a time'")
    total, done = read_manifest(directory, "corpus").statistics["train"]["documents"], 0
    found = list[tuple[int, int, Traced]]()  # a heap: the least is the first to go
    for batch in read_batches(directory / "train.parquet", ["text", "source", "id"]):
        for number, document in enumerate(batch.column("text").to_pylist()):
            words, begins, ends = words_of(document)
            at, length = longest_common(words, query)
            if length and (len(found) < most or length > found[0][0]):
                raw = document.encode()
                begin, end = int(begins[at]), int(ends[at + length - 1])
                source, id = (batch.column(name)[number].as_py() for name in ("source", "id"))
                parts = (raw[:begin].decode()[-CONTEXT:], raw[begin:end].decode(), raw[end:].decode()[:CONTEXT])
                entry = (int(length), -(done + number), Traced(int(length), source, id, *parts))
                (heapq.heappush if len(found) < most else heapq.heapreplace)(found, entry)
        done += len(batch)
        progress(done, total, "documents")
    return [traced for *_, traced in sorted(found, reverse=True)]


def rows(traced: Sequence[Traced]) -> list[list[str]]:
    """A line for each, below a header; the passage stands in brackets."""
    shown = (f"{each.before}[{each.passage}]{each.after}" for each in traced)
    table = [[str(each.words), each.source, " ".join(text.split())] for each, text in zip(traced, shown, strict=True)]
    return [["words", "document", "passage"], *table] if traced else []
