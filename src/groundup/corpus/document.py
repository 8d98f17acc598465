"""A document, and the Arrow tables that hold many of them."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from groundup.errors import DataError

SPLITS = ("train", "validation", "test")

DOCUMENTS = pa.schema(
    [
        ("id", pa.string()),  # sha256 of the text, in hexadecimal
        ("text", pa.large_string()),
        ("source", pa.string()),  # file, and line or part within it
        ("metadata", pa.string()),  # the other fields of a .jsonl line, as JSON
        ("language", pa.string()),  # as the language filter found it: its ISO code; "" where it was not asked
    ]
)
WHY = ("reason", "rule", "value", "threshold")
DROPPED = pa.schema([*DOCUMENTS, *((name, pa.string()) for name in WHY)])
ROW_GROUP_BYTES = 4_000_000
"""Of documents that are written at once."""


@dataclass(frozen=True)
class Drop:
    """Why a document is not kept.

    >>> Drop("length.minimum", "shorter than 100 characters", 12, 100).stage
    'length'
    """

    rule: str
    """Its stage, and its name there: `gopher.words`."""
    reason: str
    """In words, the same for all documents that this rule drops; details may follow behind a colon."""
    value: float | str | None = None
    """What the document has."""
    threshold: float | str | None = None
    """What it should have, at least or at most."""

    @property
    def stage(self) -> str:
        return self.rule.partition(".")[0]


@dataclass(frozen=True)
class Note:
    """What was changed in a document, or seen in it."""

    rule: str
    """Its stage, and its name there: `personal.email`."""
    count: int
    """How often."""
    example: str = ""
    """The first of it, as far as it may be shown."""


@dataclass(frozen=True)
class Document:
    """One text and where it came from. With a `reason` it is one that could not be read.

    >>> Document("Once.", source="a.txt").id[:8]
    '1ecc29d4'
    """

    text: str
    source: str
    metadata: str = "{}"
    reason: str | None = None
    left_out: tuple[str, ...] = ()
    """Fields of the .jsonl line that cannot be metadata."""
    language: str = ""
    """Its ISO code, once the language filter has looked."""
    notes: tuple[Note, ...] = ()

    @property
    def id(self) -> str:
        """sha256 of the text, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()


Look = Callable[[Document], Document | Drop]
"""A filter with what it needs: the document, changed or not, or why it should go."""


class DocumentWriter:
    """Appends documents to a parquet file: zstd-compressed, with page checksums, some megabytes at a time."""

    def __init__(self, path: Path, schema: pa.Schema = DOCUMENTS) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._schema = schema
        self._writer = pq.ParquetWriter(
            path, schema, compression="zstd", write_page_checksum=True, use_dictionary=["language"]
        )
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = 0

    def write(self, *documents: Document) -> None:
        rows = [{name: getattr(document, name) for name in DOCUMENTS.names} for document in documents]
        self.write_table(pa.Table.from_pylist(rows, self._schema))

    def write_table(self, table: pa.Table) -> None:
        """Append rows; columns that the file does not have are left out."""
        self._waiting.append(table.select(self._schema.names).cast(self._schema))
        self._waiting_bytes += table.nbytes
        if self._waiting_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting).combine_chunks())
            self._waiting, self._waiting_bytes = [], 0


def why(drop: Drop) -> dict[str, str]:
    """The columns that say why a document was dropped."""
    return {name: _shown(getattr(drop, name)) for name in WHY}


def _shown(value: float | str | None) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:  # or all of it is kept
            yield file
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is damaged: {error}") from None


def read_batches(path: Path, columns: Iterable[str] = DOCUMENTS.names) -> Iterator[pa.RecordBatch]:
    """The documents of a parquet file in Arrow batches of bounded size, page checksums verified.

    Raises:
        DataError: when the file is damaged.
    """
    with _opened(path) as file:
        yield from file.iter_batches(batch_size=1_000, columns=list(columns))


def sources_of(path: Path, numbers: Iterable[int]) -> dict[int, str]:
    """Where these documents of a parquet file came from, by their number in it; only their row groups are read.

    Raises:
        DataError: when the file is missing or damaged.
    """
    wanted, first = sorted(set(numbers)), 0
    sources: dict[int, str] = {}
    with _opened(path) as file:
        for group in range(file.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            here = [number for number in wanted if first <= number < last]
            if here:
                column = file.read_row_group(group, columns=["source"]).column("source")
                sources |= {number: column[number - first].as_py() for number in here}
            first = last
    return sources


def read_row(path: Path, number: int) -> dict[str, str]:
    """All columns of a document by its number in a parquet file; only its row group is read.

    Raises:
        DataError: when the file is missing or damaged, or has not so many.
    """
    first = 0
    with _opened(path) as file:
        for group in range(file.num_row_groups):
            n_rows = file.metadata.row_group(group).num_rows
            if first <= number < first + n_rows:
                row: dict[str, str] = file.read_row_group(group).slice(number - first, 1).to_pylist()[0]
                return row
            first += n_rows
    raise DataError(f"{path} has {first:,} documents, and none of number {number:,}")


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a parquet file of documents, in order."""
    for batch in read_batches(path, ["text"]):
        yield from batch.column("text").to_pylist()


def read_table(path: Path) -> pa.Table:
    """All of a small parquet file of documents."""
    return pa.Table.from_batches(read_batches(path), DOCUMENTS)
