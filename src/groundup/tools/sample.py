"""A dry run of the corpus stage on some documents of each file: what would be dropped or changed, with examples."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from groundup.corpus.document import Document, Drop
from groundup.corpus.filters import prepare
from groundup.corpus.parts import Refiner
from groundup.corpus.settings import CorpusSettings
from groundup.corpus.sources import find, records
from groundup.recipe import Recipe, load_recipe
from groundup.words import plural

SHOWN = 100
"""Characters of an example."""


@dataclass
class Fate:
    """What a rule did to documents of a sample."""

    rule: str
    what: str
    """In words."""
    documents: int = 0
    examples: list[str] = field(default_factory=list)
    """The first few: where it is, and its beginning, or what was changed."""

    def add(self, source: str, shown: str) -> None:
        self.documents += 1
        if len(self.examples) < 3:
            self.examples.append(f"{source}: {' '.join(shown.split())[:SHOWN]!r}")


@dataclass
class Sample:
    """What would become of some documents."""

    files: int
    read: int = 0
    kept: int = 0
    dropped: list[Fate] = field(default_factory=list)
    """The rules that drop documents, those that drop most first."""
    changed: list[Fate] = field(default_factory=list)
    """The rules that change documents, or remark on them, likewise."""


def sample_corpus(recipe: str | Path | Recipe, overrides: Iterable[str] = (), n: int = 1000) -> Sample:
    """Judge the first documents of each source file, `n` in all, of as many files as there are.

    Copies are found among them only. Nothing is written.
    """
    loaded, beside = load_recipe(recipe, overrides)
    settings, found = loaded.corpus, find(loaded.corpus, beside)
    result, seen = Sample(len(found.files)), set[str]()
    fates: dict[str, Fate] = {}
    noted: dict[str, Fate] = {}
    for document, drop in islice(_judged(settings, beside, found.files, n), n):
        result.read += 1
        if drop is None and document.id in seen:
            drop = Drop("exact.copy", "exact duplicate")
        seen.add(document.id)
        if drop is None:
            result.kept += 1
        else:
            fates.setdefault(drop.rule, Fate(drop.rule, drop.reason)).add(document.source, document.text)
        for note in document.notes:
            noted.setdefault(note.rule, Fate(note.rule, note.rule)).add(document.source, note.example)
    result.dropped, result.changed = (
        sorted(each.values(), key=lambda fate: -fate.documents) for each in (fates, noted)
    )
    return result


def _judged(
    settings: CorpusSettings, beside: Path, files: list[tuple[str, Path]], n: int
) -> Iterator[tuple[Document, Drop | None]]:
    left = n
    with tempfile.TemporaryDirectory() as folder:
        refiner = Refiner(prepare(settings, beside, Path(folder))[0], beside, Path())
        for number, (name, path) in enumerate(files):
            share = -(-left // (len(files) - number))
            judged = (each for record in records(name, path, settings) for each in refiner.judged(record))
            for _, document, drop in islice(judged, share):
                left -= 1
                yield document, drop


def lines(sample: Sample) -> list[str | list[list[str]]]:
    """The sample in words: a sentence, and a table each of what is dropped and of what is changed."""
    told: list[str | list[list[str]]] = [
        f"{plural(sample.read, 'document')} of {plural(sample.files, 'file')}: {sample.kept:,} would be kept, "
        f"{sample.read - sample.kept:,} dropped"
    ]
    for title, fates in (("dropped by", sample.dropped), ("changed by", sample.changed)):
        if fates:
            rows = [[fate.rule, f"{fate.documents:,}", fate.what, fate.examples[0]] for fate in fates]
            told.append([[title, "documents", "because", "for example"], *rows])
    return told
