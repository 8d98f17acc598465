"""Parts of a corpus in the making: each is what became of one batch of records, and does not change.

A part is one Arrow file, which gets its name when it is whole. Which records it is made of depends on the sources
alone, so that a stage that was killed goes on with those that are missing, and any number of processes, on one machine
or many, leave the same bytes.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from groundup.corpus.decoding import SHOWN_BYTES
from groundup.corpus.document import DROPPED, WHY, Document, Drop, why
from groundup.corpus.duplicates import fingerprint
from groundup.corpus.filters import judge, looks
from groundup.corpus.formats import Record, documents, single_lines
from groundup.corpus.pool import KilledError, Pool
from groundup.corpus.settings import CorpusSettings
from groundup.corpus.sources import MARKS
from groundup.errors import ResourceError
from groundup.files import explaining_write_errors

BATCH_BYTES = 8_000_000
"""Of records that become one part. A process holds a few times as much."""
BATCH_RECORDS = 10_000
SECONDS = 600.0
"""That a batch, or a record alone, may take."""
NOTE = pa.struct([("rule", pa.string()), ("count", pa.int64()), ("example", pa.string())])
PART = pa.schema(
    [*DROPPED, ("notes", pa.list_(NOTE)), ("bytes", pa.int64()), ("characters", pa.int64()), ("words", pa.int64())]
)
"""A kept document has no rule."""


@dataclass(frozen=True)
class Batch:
    """Some records of one file, in their order."""

    file: int
    """Its number among the files of the corpus."""
    digest: str
    """sha256 of the file."""
    number: int
    """Of the batch in the file."""
    name: str
    """Of the file."""
    records: Sequence[Record]
    is_last: bool
    """Of its file."""

    def path(self, folder: Path) -> Path:
        return part_path(folder, self.file, self.digest, self.number)


def part_path(folder: Path, file: int, digest: str, number: int) -> Path:
    return folder / f"{file:07}-{digest[:16]}-{number:07}.arrow"


def fingerprint_path(part: Path, kind: int) -> Path:
    """The file of fingerprints beside a part, of a kind of copies by its number in the settings."""
    return part.with_suffix(f".{kind}.npy")


def batches(file: int, digest: str, name: str, read: Iterable[Record]) -> Iterator[Batch]:
    """The records of a file in batches of bounded size; one without records, if there are none."""
    number, waiting, n_bytes = 0, list[Record](), 0
    for record in read:
        if n_bytes >= BATCH_BYTES or len(waiting) >= BATCH_RECORDS:
            yield Batch(file, digest, number, name, waiting, is_last=False)
            number, waiting, n_bytes = number + 1, [], 0
        waiting.append(record)
        n_bytes += len(record.payload)
    yield Batch(file, digest, number, name, waiting, is_last=True)


@dataclass(frozen=True)
class Made:
    """A part that is there."""

    batch: Batch
    """Without its records."""
    bytes: int
    """Of its records."""
    kept: int
    dropped: int


@dataclass(frozen=True)
class Refiner:
    """Makes parts of batches; what filters read is loaded once in each process."""

    settings: CorpusSettings
    beside: Path
    """The folder of the recipe, in which files that the settings name are looked for first."""
    folder: Path
    """Where the parts are written."""

    @cached_property
    def _looks(self) -> list[Any]:
        return looks(self.settings.filters, self.beside)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_looks"}

    def __call__(self, batch: Batch) -> Made:
        """Write the part, if it is not there.

        Raises:
            ResourceError: out of memory, or no room for the part.
        """
        if batch.path(self.folder).exists():
            return self._made(batch)
        try:
            rows = Rows(self.settings)
            for record in batch.records:
                for judged in self.judged(record):
                    rows.add(*judged)
            rows.write(batch.path(self.folder))
        except MemoryError:
            raise out_of_memory(batch.name) from None
        return self._made(batch)

    def judged(self, record: Record) -> Iterator[tuple[Document, Document, Drop | None]]:
        """The documents of a record: as they were read, as they are cleaned, and why they go."""
        for raw in documents(record, self.settings):
            yield raw, *judge(raw, self.settings, self._looks)

    def one_by_one(self, batch: Batch) -> Made:
        """The part of a batch on which processes were killed: without the records on which they are killed alone."""
        rows = Rows(self.settings)
        with Pool(_Alone(self), 1, SECONDS) as pool:
            for record in (line for each in batch.records for line in single_lines(each)):
                try:
                    found = pool.do(record)
                except KilledError:
                    shown = record.payload[:SHOWN_BYTES].decode("utf-8", "backslashreplace")
                    raw = Document(shown, record.place)
                    found = [(raw, raw, Drop("read.killed", "killed the process that read it, or took too long"))]
                for judged in found:
                    rows.add(*judged)
        rows.write(batch.path(self.folder))
        return self._made(batch)

    def _made(self, batch: Batch) -> Made:
        rules = read_part(batch.path(self.folder)).column("rule")
        n_bytes = sum(len(record.payload) for record in batch.records)
        return Made(replace(batch, records=()), n_bytes, rules.null_count, len(rules) - rules.null_count)


@dataclass(frozen=True)
class _Alone:
    """Judges one record."""

    refiner: Refiner

    def __call__(self, record: Record) -> list[tuple[Document, Document, Drop | None]]:
        return list(self.refiner.judged(record))


def read_part(path: Path) -> pa.Table:
    """A part, whose columns are read from the file when they are looked at."""
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def licence_of(metadata: str) -> str:
    """What a document's metadata call its licence; nothing, if they name none.

    >>> licence_of('{"licence": "CC0", "year": 1812}'), licence_of("{}")
    ('CC0', '')
    """
    if "licen" not in metadata:
        return ""
    fields = orjson.loads(metadata)
    return str(fields.get("licence") or fields.get("license") or "")


def sizes(text: str) -> dict[str, int]:
    """How long a text is, by the columns of a part."""
    return {"bytes": len(text.encode()), "characters": len(text), "words": len(text.split())}


def out_of_memory(name: str) -> ResourceError:
    return ResourceError(
        f"out of memory while reading {name}, of which no more than some documents or a line are held at a time: end "
        "other programs, or let this one have more memory"
    )


@dataclass
class Rows:
    """Documents that become a part."""

    settings: CorpusSettings
    rows: list[dict[str, Any]] = field(default_factory=list)
    read_bytes: int = 0
    odd_fields: Counter[str] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)

    def add(self, raw: Document, document: Document, drop: Drop | None) -> None:
        self.read_bytes += len(raw.text.encode())
        self.odd_fields.update(raw.left_out)
        row = {name: getattr(document, name) for name in ("id", "text", "source", "metadata", "language")}
        if drop is None and ("<" in document.text or "[" in document.text):  # as each of them has
            self.marks.update({mark: number for mark in MARKS if (number := document.text.count(mark))})
        if drop is None:
            self.licences[licence_of(document.metadata)] += 1
        told = why(drop) if drop else dict.fromkeys(WHY)
        self.rows.append({**row, **told, "notes": list(map(asdict, document.notes)), **sizes(document.text)})

    def write(self, path: Path) -> None:
        told = {name: value for name, value in vars(self).items() if name not in ("settings", "rows")}
        table = pa.Table.from_pylist(self.rows, PART.with_metadata({"told": orjson.dumps(told)}))
        kept = [row["text"] for row in self.rows if row["rule"] is None]
        kinds = [*self.settings.duplicates, *filter(None, [self.settings.held_out])]
        partial = path.with_suffix(".partial")
        with explaining_write_errors(path):
            for number, kind in enumerate(kinds):
                np.save(fingerprint_path(path, number), fingerprint(kept, kind))
            with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            os.replace(partial, path)
