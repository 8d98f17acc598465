"""What can be decided only when all documents are known: copies, what is held out, and how often each is read."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from groundup.corpus.clean import clean_whitespace
from groundup.corpus.document import WHY, Document, Drop, Note, why
from groundup.corpus.executors import all_there
from groundup.corpus.mixture import Key, Share, copies, mix
from groundup.corpus.parts import part_path, read_part, sizes
from groundup.corpus.settings import CorpusSettings, Exact, Length, path_of
from groundup.corpus.sources import Found


def split_of(document_id: str, validation_share: float, test_share: float) -> str:
    """Which split a document belongs to: a function of the sha256 of its text alone.

    >>> split_of("00" * 32, 0.05, 0.05), split_of("0f" * 32, 0.05, 0.05), split_of("ff" * 32, 0.05, 0.05)
    ('validation', 'test', 'train')
    """
    share = int(document_id[:16], 16) / 2**64
    if share < validation_share:
        return "validation"
    return "test" if share < validation_share + test_share else "train"


@dataclass(frozen=True)
class Part:
    """A part that is there, and where it comes from."""

    path: Path
    file: str
    """Its name in the corpus."""
    source: int
    """Number of the source that the file is of."""
    first: int
    """Number of its first kept document among all."""

    @property
    def table(self) -> pa.Table:
        """All its documents; columns are read when they are looked at."""
        return read_part(self.path)

    def kept(self, *names: str) -> list[list[Any]]:
        """Columns of the documents that are kept."""
        table = self.table
        table = table.select([*names, "rule"]).filter(pc.is_null(table.column("rule")))
        return [table.column(name).to_pylist() for name in names]

    @property
    def told(self) -> dict[str, Any]:
        """Counts that are of no document."""
        return orjson.loads(self.table.schema.metadata[b"told"])  # type: ignore[no-any-return]


def read_parts(folder: Path, found: Found, settings: CorpusSettings, digests: Mapping[str, str]) -> list[Part]:
    """All parts, in the order of the sources."""
    parts, first = list[Part](), 0
    for number, (name, _) in enumerate(found.files):
        for batch in range(int(all_there(folder, number, digests[name]).read_text("utf-8"))):
            path = part_path(folder, number, digests[name], batch)
            parts.append(Part(path, name, source_of(name, settings), first))
            first += parts[-1].table.column("rule").null_count
    return parts


def source_of(name: str, settings: CorpusSettings) -> int:
    """The number of the source that a file of this name is of: the longest that its name begins with."""
    paths = [path_of(source).rstrip("/") for source in settings.sources]
    fitting = [number for number, path in enumerate(paths) if name == path or name.startswith(f"{path}/")]
    return max(fitting, key=lambda number: len(paths[number]), default=0)


@dataclass
class Whole:
    """What becomes of the documents that their parts keep, by their numbers."""

    drops: dict[int, Drop] = field(default_factory=dict)
    cuts: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Bytes (from, to) that are taken out."""
    shares: dict[Key, Share] = field(default_factory=dict)

    def settle(self, part: Part, settings: CorpusSettings) -> pa.Table:
        """All documents of a part: cut, with why they go, the split of each that stays, and how often it is there."""
        table = part.table
        rows = np.flatnonzero(pc.is_null(table.column("rule")).to_numpy())
        columns = {name: table.column(name).to_pylist() for name in (*WHY, "id", "language")}
        splits, often = [""] * len(table), [0] * len(table)
        least = next((each.minimum for each in settings.filters if isinstance(each, Length)), 1)
        edited = dict[int, dict[str, Any]]()
        for number, row in enumerate(rows.tolist(), part.first):
            drop = self.drops.get(number)
            if drop is None and number in self.cuts:
                edited[row] = cut(table.slice(row, 1).to_pylist()[0], self.cuts[number])
                columns["id"][row] = edited[row]["id"]
                if edited[row]["characters"] < least:
                    drop = Drop("copies.rest", f"shorter than {least:,} characters without its copied text")
            if drop is None:
                id = columns["id"][row]
                splits[row], often[row] = split_of(id, settings.validation_share, settings.test_share), 1
                if splits[row] == "train":
                    epochs = self.shares[part.source, columns["language"][row]].epochs
                    often[row] = copies(id, epochs)
                    if not often[row]:
                        drop = Drop("mixture.share", "more of its source than the mixture takes", epochs, 1)
            if drop is not None:
                for name, value in why(drop).items():
                    columns[name][row] = value
        for name in WHY:
            table = replaced(table, name, columns[name])
        for name in next(iter(edited.values()), ()):
            values = table.column(name).to_pylist()
            for row, changed in edited.items():
                values[row] = changed[name]
            table = replaced(table, name, values)
        return table.append_column("split", pa.array(splits)).append_column("copies", pa.array(often, pa.int64()))


def cut(row: dict[str, Any], spans: list[tuple[int, int]]) -> dict[str, Any]:
    """What changes of a document of which bytes (from, to) are taken out."""
    raw, kept, at = row["text"].encode(), bytearray(), 0
    for begin, end in spans:
        kept += raw[at:begin]
        at = end
    text = clean_whitespace((kept + raw[at:]).decode())
    note = Note("copies.cut", len(spans), raw[slice(*spans[0])].decode("utf-8", "replace")[:200])
    document = Document(text, row["source"])
    return {"text": text, "id": document.id, "notes": [*row["notes"], asdict(note)], **sizes(text)}


def replaced(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, table.schema.field(name).type))


def look_at_whole(parts: list[Part], settings: CorpusSettings) -> Whole:
    """Find the copies among the documents, and mix the rest."""
    whole = Whole()
    for each in settings.duplicates:
        find_copies(parts, each, whole)
    kept = Counter[Key]()
    for part in parts:
        columns = zip(*part.kept("id", "language", "bytes"), strict=True)
        for number, (id, language, n_bytes) in enumerate(columns, part.first):
            if number not in whole.drops and split_of(id, settings.validation_share, settings.test_share) == "train":
                kept[part.source, language] += n_bytes
    whole.shares = mix(kept, settings)
    return whole


def find_copies(parts: list[Part], settings: Exact, whole: Whole) -> None:
    """Drop documents whose text is another's, of which the first is kept."""
    seen = set[bytes]()
    for part in parts:
        for number, id in enumerate(part.kept("id")[0], part.first):
            key = bytes.fromhex(id[:32])
            if key in seen:
                whole.drops[number] = Drop("exact.copy", "exact duplicate")
            seen.add(key)
