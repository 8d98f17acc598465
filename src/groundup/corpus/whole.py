"""What can be decided only when all documents are known: copies, what is held out, and how often each is read."""

from bisect import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from groundup.corpus.clean import clean_whitespace
from groundup.corpus.document import SPLITS, WHY, Document, Drop, Note, why
from groundup.corpus.duplicates import CAPPED, DROPS, Shared, Standing, decide, shared_passages
from groundup.corpus.executors import all_there
from groundup.corpus.mixture import Key, Share, copies, mix
from groundup.corpus.parts import fingerprint_path, part_path, read_part, sizes
from groundup.corpus.settings import CorpusSettings, Length, Source
from groundup.corpus.sources import Found, source_of


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

    def fingerprint(self, kind: int) -> Path:
        """The file of its documents' fingerprints for a kind of copies, by its number."""
        return fingerprint_path(self.path, kind)

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


class Kept:
    """Texts and ids of documents that filters kept, by their numbers; parts that were looked at last are held."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._firsts = [part.first for part in parts]
        self._columns = lru_cache(4)(lambda part, name: parts[part].kept(name)[0])

    def text(self, number: int) -> str:
        return self._column("text", number)

    def id(self, number: int) -> str:
        return self._column("id", number)

    def _column(self, name: str, number: int) -> str:
        part = bisect(self._firsts, number) - 1
        value: str = self._columns(part, name)[number - self._firsts[part]]
        return value


@dataclass(frozen=True)
class Whole:
    """What becomes of the documents that filters kept, by their numbers."""

    standing: Standing
    kept: Kept
    splits: npt.NDArray[np.int64]
    """(documents,) the number of the split of each."""
    shared: Shared | None
    """Passages that training documents share with held-out ones, where they were looked for."""
    shares: dict[Key, Share]

    def statistics(self, settings: CorpusSettings) -> dict[str, Any]:
        """For the manifest: how the sources are mixed, and what training and the held-out documents have in common."""
        told: dict[str, Any] = {"mixture": [vars(share) for _, share in sorted(self.shares.items())]}
        if self.shared is not None and settings.held_out is not None:
            held = {name: (self.splits == number) & self.standing.alive for number, name in enumerate(SPLITS) if number}
            told["held_out"] = self.shared.statistics(settings.held_out, held)
        return told

    def settle(self, part: Part, settings: CorpusSettings) -> pa.Table:
        """All documents of a part: cut, with why they go, the split of each that stays, and how often it is there."""
        table = part.table
        rows = np.flatnonzero(pc.is_null(table.column("rule")).to_numpy())
        columns = {name: table.column(name).to_pylist() for name in (*WHY, "id", "language")}
        splits, often = [""] * len(table), [0] * len(table)
        cut_here = self.standing.cut_between(part.first, part.first + len(rows))
        least = next((each.minimum for each in settings.filters if isinstance(each, Length)), 1)
        edited = dict[int, dict[str, Any]]()
        for number, row in enumerate(rows.tolist(), part.first):
            drop = DROPS[self.standing.why[number]]
            if drop is None and number in cut_here:
                edited[row] = cut(table.slice(row, 1).to_pylist()[0], self.standing.cuts_in(number))
                columns["id"][row] = edited[row]["id"]
                if edited[row]["characters"] < least:
                    drop = Drop("copies.rest", f"shorter than {least:,} characters without its copied text")
            if drop is None:
                id = columns["id"][row]
                splits[row], often[row] = SPLITS[self.splits[number]], 1
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


def cut(row: dict[str, Any], spans: list[list[int]]) -> dict[str, Any]:
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


def look_at_whole(parts: Sequence[Part], settings: CorpusSettings, folder: Path) -> Whole:
    """Find the copies among the documents, what training shares with what is held out, and mix the rest.

    Args:
        folder: where goes what memory does not hold.
    """
    lengths = [np.array(part.kept("bytes")[0], np.int64) for part in parts]
    standing, memory, kept = Standing([*map(len, lengths)], np.concatenate(lengths)), settings.memory_bytes, Kept(parts)
    for number, kind in enumerate(settings.duplicates):
        decide([part.fingerprint(number) for part in parts], kind, standing, memory, kept.text, folder)
    beyond = _beyond_caps(parts, standing, settings)
    standing.drop(beyond, CAPPED, beyond)
    splits = np.concatenate([_splits(part, standing, settings) for part in parts])
    is_train = splits == SPLITS.index("train")
    shared = None
    if settings.held_out is not None:
        files = [part.fingerprint(len(settings.duplicates)) for part in parts]
        shared = shared_passages(files, standing, ~is_train, settings.held_out, memory, folder)
        gone = np.flatnonzero(shared.drops(settings.held_out))
        standing.drop(gone, len(DROPS) - 1, gone)
    counts = Counter[Key]()
    for part in parts:
        columns = zip(*part.kept("language", "bytes"), strict=True)
        for number, (language, n_bytes) in enumerate(columns, part.first):
            if standing.why[number] == 0 and is_train[number]:
                counts[part.source, language] += n_bytes
    return Whole(standing, kept, splits, shared, mix(counts, settings))


def _beyond_caps(parts: Sequence[Part], standing: Standing, settings: CorpusSettings) -> npt.NDArray[np.int64]:
    """The documents that are more than the `most_documents` or `most_bytes` of their source."""
    ends = [*(part.first for part in parts[1:]), len(standing.why)]
    sources = np.repeat([part.source for part in parts], np.subtract(ends, [part.first for part in parts]))
    beyond = [np.empty(0, np.int64)]
    for number, source in enumerate(settings.sources):
        if isinstance(source, Source):
            own = np.flatnonzero((sources == number) & standing.alive)
            is_over = np.arange(len(own)) >= (source.most_documents or np.inf)
            beyond.append(own[is_over | (np.cumsum(standing.lengths[own]) > (source.most_bytes or np.inf))])
    return np.concatenate(beyond)


def _splits(part: Part, standing: Standing, settings: CorpusSettings) -> npt.NDArray[np.int64]:
    """(documents of a part,) the split of each, by number, as it is when parts of the document are cut out."""
    [ids] = part.kept("id")
    cut_here = standing.cut_between(part.first, part.first + len(ids))
    if cut_here:
        [texts] = part.kept("text")
        for number in cut_here:
            row = {"text": texts[number - part.first], "source": "", "notes": []}
            ids[number - part.first] = cut(row, standing.cuts_in(number))["id"]
    found = [SPLITS.index(split_of(id, settings.validation_share, settings.test_share)) for id in ids]
    return np.array(found, np.int64)
