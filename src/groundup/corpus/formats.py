"""Formats: files → records → documents.

`SPLIT` cuts a file into records, cheaply: it does not understand them. `documents` does, in any process, and needs
nothing but the record and the settings.
"""

import csv
import io
import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from groundup.corpus import apart, decoding
from groundup.corpus.decoding import DETECT, SHOWN_BYTES, UndecodableError, as_utf8, escaped, printable
from groundup.corpus.document import Document, Note
from groundup.corpus.extract import Extracted
from groundup.corpus.settings import CorpusSettings
from groundup.errors import DataError, MissingError

MAX_LINE_BYTES = 256_000_000
"""A longer .jsonl line is dropped unread: parsing it would take several times this much memory."""
MOST_PAGE_BYTES = 100_000_000
"""Of a page, PDF or book, which is understood as a whole."""
BLOCK_BYTES = 64_000
"""Of lines in a record; a whole line more at most."""
FIRST_ROWS = 20
"""Rows of a file by which its text field is found."""


@dataclass(frozen=True)
class Record:
    """Bytes of a file that are one document or several, not yet understood."""

    source: str
    """The file, the member of an archive in it, and what part of that it is."""
    payload: bytes
    kind: str = "text"
    """What understands it: one of `UNDERSTAND`."""
    first: int = 1
    """Number of its first line or row in the file, from 1."""
    text_field: str = "text"
    """The field of its rows that holds the text."""
    encoding: str = "utf-8"
    """Of a page that does not say its own."""
    declared: str | None = None
    """Content type of a page, as its server says, with its encoding."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What its documents have, if they have no such field."""
    notes: tuple[Note, ...] = ()
    reason: str | None = None
    """Why it cannot be read."""

    @property
    def place(self) -> str:
        return f"{self.source}:{self.first}" if self.kind in ("jsonl", "csv", "tsv", "parquet") else self.source


def records_of(
    stream: BinaryIO, name: str, kind: str, compressed: str, settings: CorpusSettings, ahead: int = sys.maxsize
) -> Iterator[Record]:
    """The records of a file whose bytes can be sought in.

    A text that does not decode is one record with its reason. So that no part of it comes out before the bad byte is
    met, it is decoded twice; nothing of it is held but the part that is being read. Of lines of JSON in UTF-8, and of
    the pages of a wiki, the broken ones are dropped alone.

    Args:
        kind: its suffix, one of `SPLIT`.
        compressed: the suffix of what it was compressed with; "" if it was not.
        ahead: how many decoded bytes are looked at first: fewer, where only a sample will be taken.
    """
    if kind not in TEXTS:
        yield from SPLIT[kind](stream, name, "", settings)
        return
    head = decoding.peek(stream)
    encoding, why = decoding.look(head, compressed, settings.encoding)
    if why is not None:
        yield Record(name, escaped(head, encoding).encode(), reason=why)
        return
    guesses = settings.encoding == DETECT and encoding == "utf-8"
    notes: tuple[Note, ...] = ()
    try:
        if kind not in ALONE or encoding != "utf-8" or guesses:
            try:
                decoding.check(stream, encoding, ahead)
            except UndecodableError as error:
                guessed = decoding.guess_at(stream, error.position) if guesses else None
                if guessed is None:
                    raise
                decoding.check(stream, guessed, ahead)
                encoding, notes = guessed, (Note("read.encoding", 1, guessed),)
        for record in SPLIT[kind](stream, name, encoding, settings):
            yield replace(record, notes=notes) if notes else record
    except UndecodableError as error:
        stream.seek(max(0, error.position - SHOWN_BYTES // 2) & ~3)
        shown = escaped(stream.read(SHOWN_BYTES), encoding)
        yield Record(name, shown.encode(), reason=f"not {encoding}: {error.reason} at byte {error.position:,}")


# From bytes to records


def split_text(stream: BinaryIO, name: str, encoding: str, settings: CorpusSettings) -> Iterator[Record]:
    """A whole file as one text, or as those between the separators, in parts that are documents; space alone between
    two separators is none."""
    separator = settings.separator
    read_any = False
    chunks = as_utf8(stream, encoding)
    pieces = _split(chunks, separator.encode()) if separator else ((1, chunk) for chunk in chunks)
    for number, group in groupby(pieces, key=lambda piece: piece[0]):
        source = f"{name}#{number}" if separator else name
        for part, raw in _cut((piece for _, piece in group), settings.max_document_bytes):
            if not separator or raw.strip():
                read_any = True
                yield Record(f"{source}#{part}" if part else source, raw)
    if not read_any:
        yield Record(name, b"")


def _split(chunks: Iterable[bytes], separator: bytes) -> Iterator[tuple[int, bytes]]:
    """The bytes between separators, numbered, in pieces as they are read.

    >>> list(_split([b"one-", b"-two--three"], b"--"))
    [(1, b'one'), (1, b''), (2, b'two'), (3, b'thre'), (3, b'e')]
    """
    number, waiting = 1, b""
    for chunk in chunks:
        *ended, waiting = (waiting + chunk).split(separator)
        for piece in ended:
            yield number, piece
            number += 1
        border = max(0, len(waiting) - len(separator) + 1)  # a separator may begin behind it, and end in the next chunk
        if border:
            yield number, waiting[:border]
        waiting = waiting[border:]
    yield number, waiting


def split_jsonl(stream: BinaryIO, name: str, encoding: str, settings: CorpusSettings) -> Iterator[Record]:
    """Lines with a JSON object each, some to a record."""
    yield from _blocks(json_lines(stream, encoding), name, "jsonl", settings)


def _blocks(
    lines: Iterable[tuple[bytes, int]], name: str, kind: str, settings: CorpusSettings, header: bytes = b""
) -> Iterator[Record]:
    """Lines in records of `BLOCK_BYTES`. Of .csv, `header` is the first of each record, and a row ends with a line in
    which as many quotes were closed as opened."""
    text_field = settings.text_field
    block, first, row, n_bytes, is_open = [header] * bool(header), 1, 0, 0, False
    for line, size in lines:
        row += not is_open
        if size > MAX_LINE_BYTES or n_bytes > MAX_LINE_BYTES:
            if n_bytes and not is_open:
                yield Record(name, b"\n".join(block), kind, first, text_field or "text")
            reason = f"line of {max(size, n_bytes):,} bytes; at most {MAX_LINE_BYTES:,} are read"
            yield Record(f"{name}:{row}", b"", reason=reason)
            block, first, n_bytes, is_open = [header] * bool(header), row + 1, 0, False
            continue
        block.append(line)
        n_bytes += size
        if kind == "csv":
            is_open ^= line.count(b'"') % 2 == 1
        if n_bytes >= BLOCK_BYTES and not is_open:
            text_field = text_field or _found_field(kind, b"\n".join(block))
            yield Record(name, b"\n".join(block), kind, first, text_field)
            block, first, n_bytes = [header] * bool(header), row + 1, 0
    if n_bytes:
        yield Record(name, b"\n".join(block), kind, first, text_field or _found_field(kind, b"\n".join(block)))


def json_lines(stream: BinaryIO, encoding: str) -> Iterator[tuple[bytes, int]]:
    """Lines as UTF-8, and their bytes with the line end; one of more than `MAX_LINE_BYTES` comes out empty."""
    chunks = as_utf8(stream, encoding)
    if encoding == "utf-8":  # not decoded here: a line that is something else is dropped alone
        chunks = _without_mark(iter(lambda: stream.read(decoding.CHUNK_BYTES), b""))
    waiting: list[bytes] = []
    size = 0
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            size += len(part) + 1
            yield (b"" if size > MAX_LINE_BYTES else b"".join([*waiting, part])), size
            waiting, size = [], 0
        size += len(rest)
        waiting = [*waiting, rest] if size <= MAX_LINE_BYTES else []
    if size:
        yield b"".join(waiting), size


def _without_mark(chunks: Iterator[bytes]) -> Iterator[bytes]:
    begun = b""
    while len(begun) < 3 and (chunk := next(chunks, b"")):
        begun += chunk
    yield begun.removeprefix(b"\xef\xbb\xbf")
    yield from chunks


def split_json(stream: BinaryIO, name: str, encoding: str, settings: CorpusSettings) -> Iterator[Record]:
    """A list of objects as a whole; else lines, if the first is an object."""
    begins = decoding.peek(stream).decode(encoding, "ignore").lstrip("\ufeff \r\n\t")[:1]
    if begins == "[":
        raw = b"".join(as_utf8(stream, encoding))
        if len(raw) > MAX_LINE_BYTES:
            yield Record(name, b"", reason=f"list of {len(raw):,} bytes; at most {MAX_LINE_BYTES:,} are read")
            return
        yield Record(name, raw, "json", text_field=settings.text_field or _found_field("json", raw))
        return
    first = next((line for line, _ in json_lines(stream, encoding) if line.strip()), b"")
    stream.seek(0)
    if isinstance(_loaded(first), dict):
        yield from split_jsonl(stream, name, encoding, settings)
    else:
        reason = f"not JSON of texts: neither a list nor an object a line; it begins {escaped(first)[:20]!r}"
        yield Record(name, first[:SHOWN_BYTES], reason=reason)


def split_rows(
    stream: BinaryIO, name: str, encoding: str, settings: CorpusSettings, kind: str = "csv"
) -> Iterator[Record]:
    """Rows, the first of which names the columns: of .csv quoted as RFC 4180 says, with a comma or a semicolon between
    two; of .tsv with tabs, and quotes mean nothing (IANA text/tab-separated-values)."""
    lines = json_lines(stream, encoding)
    header = next(lines, (b"", 0))[0]
    yield from _blocks(lines, name, kind, settings, header)


def split_parquet(stream: BinaryIO, name: str, encoding: str, settings: CorpusSettings) -> Iterator[Record]:
    """Rows of a parquet file as Arrow's bytes; checksums of pages are verified where there are some.

    Raises:
        DataError: it is damaged.
    """
    try:
        with pq.ParquetFile(stream, page_checksum_verification=True, pre_buffer=False) as file:
            about = file.metadata
            n_bytes = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
            rows = max(1, min(10_000, 10 * BLOCK_BYTES * about.num_rows // max(1, n_bytes)))
            text_field, first = settings.text_field, 1
            for batch in file.iter_batches(batch_size=rows):
                if not len(batch):
                    continue
                text_field = text_field or text_field_of(batch.slice(0, FIRST_ROWS).to_pylist())
                step = max(1, 10 * BLOCK_BYTES * len(batch) // max(1, batch.nbytes))  # a dictionary hides its length
                for begin in range(0, len(batch), step):
                    part, sink = batch.slice(begin, step), pa.BufferOutputStream()
                    with pa.ipc.new_stream(sink, part.schema) as writer:
                        writer.write_batch(part)
                    yield Record(name, sink.getvalue().to_pybytes(), "parquet", first, text_field)
                    first += len(part)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{name} is damaged: {error}") from None


def split_wiki(stream: BinaryIO, name: str, encoding: str, settings: CorpusSettings) -> Iterator[Record]:
    """The `<page>`s of a MediaWiki dump. Within a page no `<` stands for itself, so that its ends are its own."""
    if b"<mediawiki" not in decoding.peek(stream):
        yield Record(name, decoding.peek(stream), reason="not a MediaWiki dump: no other XML is read")
        return
    waiting, number = b"", 0
    while chunk := stream.read(decoding.CHUNK_BYTES):
        waiting, at = waiting + chunk, 0
        while (end := waiting.find(b"</page>", at)) >= 0:
            number, begin = number + 1, waiting.find(b"<page>", at, end)
            yield Record(f"{name}#{number}", waiting[max(at, begin) : end + 7], "wiki")
            at = end + 7
        waiting = waiting[at:]
        if len(waiting) > MOST_PAGE_BYTES:
            break
    if b"</mediawiki>" not in waiting:
        reason = f"incomplete: it ends without </mediawiki>, after {number:,} pages"
        yield Record(f"{name}#{number + 1}", waiting[:SHOWN_BYTES], reason=reason)


def split_nothing(stream: BinaryIO, name: str, encoding: str, settings: CorpusSettings, kind: str) -> Iterator[Record]:
    """A file that is understood as a whole."""
    yield whole_record(name, stream.read(MOST_PAGE_BYTES + 1), kind, settings)


def whole_record(name: str, raw: bytes, kind: str, settings: CorpusSettings) -> Record:
    """A page or file that is understood as a whole.

    Raises:
        MissingError: settings ask for a package that is not installed. (Without one that only some files need, these
            are dropped with that reason.)
    """
    if kind in ("html", "http") and settings.html == "quality":
        apart.need("quality")
    if len(raw) > MOST_PAGE_BYTES:
        return Record(name, raw[:SHOWN_BYTES], reason=f"refused: {kind} of more than {MOST_PAGE_BYTES:,} bytes")
    return Record(name, raw, kind, encoding=settings.encoding)


# From a record to documents


def documents(record: Record, settings: CorpusSettings) -> Iterator[Document]:
    """The documents of a record, none longer than `max_document_bytes`; one that cannot be read says why.

    >>> record = Record("a.jsonl", b'{"text": "Once.", "year": 1812}', "jsonl")
    >>> [(each.text, each.source, each.metadata) for each in documents(record, CorpusSettings(sources=("a.jsonl",)))]
    [('Once.', 'a.jsonl:1', '{"year":1812}')]
    """
    if record.reason is not None:
        yield Document(escaped(record.payload), record.source, reason=record.reason)
        return
    for document in UNDERSTAND[record.kind](record, settings):
        if record.metadata and document.reason is None:
            metadata = orjson.dumps({**record.metadata, **orjson.loads(document.metadata)}).decode()
            document = replace(document, metadata=metadata)
        if record.notes:
            document = replace(document, notes=record.notes)
        if 3 * len(document.text) <= settings.max_document_bytes or document.reason is not None:
            yield document
            continue
        for part, raw in _cut([document.text.encode()], settings.max_document_bytes):
            yield replace(document, text=raw.decode(), source=f"{document.source}#{part}") if part else document


def single_lines(record: Record) -> Iterator[Record]:
    """A record of lines of JSON as one of each line, others as they are."""
    if record.kind != "jsonl":
        yield record
        return
    for number, line in enumerate(record.payload.split(b"\n"), record.first):
        yield replace(record, payload=line, first=number)


def _text(record: Record, settings: CorpusSettings) -> Iterator[Document]:
    yield Document(record.payload.decode(), record.source)


def _jsonl(record: Record, settings: CorpusSettings) -> Iterator[Document]:
    for number, line in enumerate(record.payload.split(b"\n"), record.first):
        if line.strip():
            yield _from_json(line, f"{record.source}:{number}", record.text_field)


def _json(record: Record, settings: CorpusSettings) -> Iterator[Document]:
    rows = _loaded(record.payload)
    if not isinstance(rows, list):
        yield Document(escaped(record.payload[:SHOWN_BYTES]), record.source, reason="not JSON: the list is damaged")
        return
    for number, row in enumerate(rows, 1):
        yield _from_json(b"", f"{record.source}:{number}", record.text_field, row)


def _csv(record: Record, settings: CorpusSettings) -> Iterator[Document]:
    csv.field_size_limit(MAX_LINE_BYTES)
    names, *rows = _rows(record.kind, record.payload)
    for number, row in enumerate(rows, record.first):
        source = f"{record.source}:{number}"
        if len(row) == len(names):
            yield _from_json(b"", source, record.text_field, dict(zip(names, row, strict=True)))
        elif any(row):
            why = f"not a row: {len(row):,} fields, and there are {len(names):,} columns"
            yield Document("\t".join(row), source, reason=why)


def _rows(kind: str, block: bytes) -> Iterator[list[str]]:
    text = block.decode()
    if kind == "tsv":
        return iter(line.rstrip("\r").split("\t") for line in text.split("\n"))
    header = text[: text.find("\n")]
    between = ";" if header.count(";") > header.count(",") else ","
    return csv.reader(io.StringIO(text, newline=""), delimiter=between)


def _parquet(record: Record, settings: CorpusSettings) -> Iterator[Document]:
    with pa.ipc.open_stream(record.payload) as stream:
        rows = stream.read_all().to_pylist()
    for number, row in enumerate(rows, record.first):
        yield _from_json(b"", f"{record.source}:{number}", record.text_field, row)


def _page(record: Record, settings: CorpusSettings) -> Iterator[Document]:
    """A page, PDF, book, letter or article, which a process apart understands."""
    asked: dict[str, Any] = {}
    if record.kind == "html":
        asked = {"mode": settings.html, "declared": charset_of(record.declared or ""), "encoding": record.encoding}
    try:
        found = apart.understand(record.kind, record.payload, **asked)
    except MissingError as error:
        found = Extracted(reason=f"not read: {error}")
    if found.reason is not None:
        shown = found.text or escaped(record.payload[:SHOWN_BYTES])
        yield Document(shown, record.source, reason=found.reason)
        return
    notes = (Note("read.encoding", 1, found.note),) if found.note else ()
    yield Document(found.text, record.source, orjson.dumps(found.metadata).decode(), notes=notes)


def charset_of(content_type: str) -> str | None:
    """
    >>> charset_of('text/html; charset="UTF-8"'), charset_of("text/html")
    ('utf-8', None)
    """
    _, _, found = content_type.lower().partition("charset=")
    return found.split(";")[0].strip(" \"'") or None


def _web(record: Record, settings: CorpusSettings) -> Iterator[Document]:
    """What a server answered, or the body alone where it is no answer, by its content type."""
    content, declared = record.payload, record.declared or ""
    if record.kind == "http":
        status, headers, content = http_parts(content)
        declared = headers.get("content-type", "")
        why = None if status == "200" else f"not read: HTTP status {status}"
        if why is None:
            content, why = http_body(headers, content)
        if why is not None:
            yield Document(escaped(record.payload[:SHOWN_BYTES]), record.source, reason=why)
            return
    mime = declared.partition(";")[0].strip().lower()
    kind = PAGES.get(mime)
    if kind is None:
        shown = escaped(content[:SHOWN_BYTES])
        yield Document(shown, record.source, reason=f"not read: its type is {mime or 'not told'}")
    elif kind == "text":
        page, note = decoding.page_text(content, charset_of(declared), record.encoding)
        notes = (Note("read.encoding", 1, note),) if note else ()
        yield Document(page or escaped(content), record.source, reason=note if page is None else None, notes=notes)
    else:
        yield from _page(replace(record, payload=content, kind=kind, declared=declared), settings)


def http_parts(answer: bytes) -> tuple[str, dict[str, str], bytes]:
    """Status, headers with names in small letters, and what follows them."""
    ends = [(at, len(mark)) for mark in (b"\r\n\r\n", b"\n\n") if (at := answer.find(mark)) >= 0]
    at, length = min(ends, default=(len(answer), 0))
    begin, *lines = answer[:at].decode("latin-1").splitlines() or [""]
    pairs = (line.partition(":") for line in lines)
    fields = begin.split()
    status = fields[1] if len(fields) > 1 else "missing"
    return status, {name.strip().lower(): value.strip() for name, _, value in pairs}, answer[at + length :]


def http_body(headers: Mapping[str, str], raw: bytes) -> tuple[bytes, str | None]:
    """The body as its headers say it is sent (RFC 9112, section 6; RFC 9110, section 8.4), or why it is not whole.

    Crawlers often unpack a body and keep its headers: one that is not packed as they say is taken as it is.
    """
    said = headers.get("content-length", "")
    encoding = headers.get("content-encoding", "").lower()
    if "chunked" in headers.get("transfer-encoding", "").lower() and (chunked := _unchunked(raw)) is not None:
        raw, whole = chunked
        if not whole:
            return raw, "incomplete: its last chunk is missing"
    elif said.isdecimal() and len(raw) < int(said) and encoding in ("", "identity"):
        return raw, f"incomplete: its server said {int(said):,} bytes, and there are {len(raw):,}"
    return unpacked(encoding, raw)


def _unchunked(raw: bytes) -> tuple[bytes, bool] | None:
    """The chunks in one, and whether the last is there; None where there are no chunks."""
    chunks, at = list[bytes](), 0
    while True:
        end = raw.find(b"\r\n", at)
        try:
            size = int(raw[at:end].split(b";")[0], 16)
        except ValueError:
            return (b"".join(chunks), False) if chunks else None
        if size <= 0 or end < 0 or end + 2 + size > len(raw):
            return b"".join(chunks), size == 0
        chunks.append(raw[end + 2 : end + 2 + size])
        at = end + 4 + size


def unpacked(encoding: str, raw: bytes) -> tuple[bytes, str | None]:
    """A body without its content encoding."""
    if encoding not in ("gzip", "x-gzip", "deflate"):
        why = f"not read: content encoding {encoding}" if encoding in ("br", "zstd") and not _is_text(raw) else None
        return raw, why
    if encoding != "deflate" and not raw.startswith(b"\x1f\x8b"):
        return raw, None
    try:
        packed = zlib.decompressobj(47 if encoding != "deflate" or raw[:1] == b"\x78" else -15)
        content = packed.decompress(raw, MOST_PAGE_BYTES)
        if not packed.eof:
            return content, "refused: too large" if packed.unconsumed_tail else "incomplete: its compression ends early"
        return content, None
    except zlib.error as error:
        return (raw, None) if _is_text(raw) else (raw, f"incomplete: {error}")


def _is_text(raw: bytes) -> bool:
    return decoding.look(raw[:1000], "", "utf-8")[1] is None


# Rows


def text_field_of(rows: Iterable[Any]) -> str:
    """`text`, if it is there, else the field with strings that holds most text.

    >>> text_field_of([{"title": "A", "body": "Once upon a time."}])
    'body'
    """
    lengths: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, dict):
            if isinstance(row.get("text"), str):
                return "text"
            lengths.update({name: len(value) for name, value in row.items() if isinstance(value, str)})
    return lengths.most_common(1)[0][0] if lengths else "text"


def _found_field(kind: str, block: bytes) -> str:
    if kind == "jsonl":
        return text_field_of(map(_loaded, block.split(b"\n")[:FIRST_ROWS]))
    if kind == "json":
        rows = _loaded(block)
        return text_field_of(rows[:FIRST_ROWS] if isinstance(rows, list) else [])
    csv.field_size_limit(MAX_LINE_BYTES)
    names, *rows = list(_rows(kind, block))[: FIRST_ROWS + 1]
    return text_field_of(dict(zip(names, row, strict=False)) for row in rows)


def _loaded(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None


def _from_json(line: bytes, source: str, text_field: str, row: Any = None) -> Document:
    """The document of a line or row, which may leave out fields; or one with the reason why there is none."""
    broken: dict[str, str] = {}
    if row is None:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            row, broken = _writable(_read_leniently(line))
            if not row or text_field in broken:
                return Document(escaped(line), source, reason=_why_broken(line, text_field, broken, str(error)))
    if not isinstance(row, dict):
        shown = line.decode().strip() or json.dumps(row)[:SHOWN_BYTES]
        return Document(shown, source, reason=f"a JSON {type(row).__name__}, not an object")
    text = row.pop(text_field, None)
    if not isinstance(text, str):
        was = f"no field {text_field!r}" if text is None else f"field {text_field!r} is not a string"
        fields = printable(", ".join([*row, *broken]))
        shown = escaped(line).strip() or printable(str(row)[:SHOWN_BYTES])
        return Document(shown, source, reason=f"{was}; fields: {fields or 'none'} (set corpus.text_field)")
    try:
        metadata = orjson.dumps(row, default=_as_json, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError:  # nested deeper than is written
        row, broken = _writable(row)
        metadata = orjson.dumps(row)
    return Document(text, source, metadata.decode(), left_out=tuple(map(printable, broken)))


def _as_json(value: Any) -> str:
    """What parquet may hold and JSON not: numbers of any length, bytes, lengths of time."""
    return escaped(value) if isinstance(value, bytes) else str(value)


def _read_leniently(line: bytes) -> dict[str, Any]:
    """The fields of an object in which some values are no JSON: NaN, halves of characters, bytes that are not UTF-8."""
    try:
        row = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _writable(row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields that can be written as JSON, and the names of the others with their errors.

    >>> _writable({"text": "a", "score": float("nan"), "tags": [1, 2]})
    ({'text': 'a', 'tags': [1, 2]}, {'score': 'Out of range float values are not JSON compliant'})
    """
    writable, broken = {}, {}
    for name, value in row.items():
        try:
            json.dumps(value, allow_nan=False)  # orjson writes NaN as null
            orjson.dumps({name: value})
            writable[name] = value
        except (ValueError, TypeError, RecursionError) as error:
            broken[name] = str(error)
    return writable, broken


def _why_broken(line: bytes, text_field: str, broken: Mapping[str, str], error: str) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        return f"not utf-8: {wrong.reason} at byte {wrong.start:,} of the line"
    if text_field in broken:
        return f"not JSON in field {text_field!r}: {broken[text_field]}"
    return f"not JSON: {error}; the line begins {line.decode().strip()[:20]!r}"


def _cut(pieces: Iterable[bytes], limit: int) -> Iterator[tuple[int, bytes]]:
    """UTF-8 in numbered parts of at most `limit` bytes, cut after an empty line, else a line, a space, a character; if
    there is but one, its number is 0."""
    waiting, part = bytearray(), 0
    for piece in pieces:
        waiting += piece
        start = 0
        while len(waiting) - start > limit:
            end = _boundary(waiting, start, start + limit)
            part += 1
            yield part, bytes(waiting[start:end])
            start = end
        del waiting[:start]
    yield part + 1 if part else 0, bytes(waiting)


def _boundary(raw: bytearray, start: int, end: int) -> int:
    for mark in (b"\n\n", b"\r\n\r\n", b"\n", b" "):
        found = raw.rfind(mark, start + (end - start) // 2, end)
        if found >= 0:
            return found + len(mark)
    while raw[end] & 0xC0 == 0x80:  # inside a UTF-8 character
        end -= 1
    return end


Split = Callable[[BinaryIO, str, str, CorpusSettings], Iterator[Record]]
TEXTS: dict[str, Split] = {
    ".txt": split_text, ".md": split_text, ".jsonl": split_jsonl, ".ndjson": split_jsonl, ".json": split_json,
    ".csv": split_rows, ".tsv": partial(split_rows, kind="tsv"),
}  # fmt: skip
"""Suffix → what cuts a file that is all text."""
ALONE = (".jsonl", ".ndjson")
"""Of these a line in UTF-8 can be broken alone."""
SPLIT: dict[str, Split] = TEXTS | {
    ".parquet": split_parquet, ".xml": split_wiki, ".html": partial(split_nothing, kind="html"),
    ".htm": partial(split_nothing, kind="html"), ".xhtml": partial(split_nothing, kind="html"),
    ".pdf": partial(split_nothing, kind="pdf"), ".epub": partial(split_nothing, kind="epub"),
    ".docx": partial(split_nothing, kind="docx"),
}  # fmt: skip
PAGES = {"text/html": "html", "application/xhtml+xml": "html", "text/plain": "text", "application/pdf": "pdf"}
"""Content type of an answer in a crawl → what understands it."""
UNDERSTAND: dict[str, Callable[[Record, CorpusSettings], Iterator[Document]]] = {
    "text": _text, "jsonl": _jsonl, "json": _json, "csv": _csv, "tsv": _csv, "parquet": _parquet, "html": _page,
    "pdf": _page, "epub": _page, "docx": _page, "wiki": _page, "http": _web, "web": _web,
}  # fmt: skip
