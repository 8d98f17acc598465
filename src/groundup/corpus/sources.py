"""Sources: files and folders → documents. What cannot be read comes out too, with the reason."""

import codecs
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import BinaryIO

import orjson

from groundup.corpus.document import Document
from groundup.corpus.settings import CorpusSettings
from groundup.errors import DataError
from groundup.files import OPENERS, locate, reading

PACKAGED = {"groundup:storybook": "storybook.jsonl.gz", "groundup:shakespeare": "shakespeare.txt.gz"}
MAX_LINE_BYTES = 256_000_000
"""A longer .jsonl line is dropped unread: parsing it would take several times this much memory."""


@dataclass
class Found:
    """The files of a corpus, by `find`, and those left out because nothing here reads them."""

    files: list[tuple[str, Path]] = field(default_factory=list)
    """(name in the corpus, path), sorted."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Suffix → number of files."""


def find(settings: CorpusSettings, beside: Path) -> Found:
    """The readable files under the sources, each looked for in `beside` first, the folder of the recipe, then from the
    working directory.

    Args:
        settings: `settings.sources` are the files and folders.

    Raises:
        DataError: a source that is missing, or holds nothing readable.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a.txt", "b.pdf"):
    ...         _ = Path(folder, name).write_text("Once upon a time.")
    ...     found = find(CorpusSettings(sources=(folder,)), Path())
    >>> [path.name for _, path in found.files], found.left_out
    (['a.txt'], Counter({'.pdf': 1}))
    """
    found = Found()
    for source in settings.sources:
        root = _locate(source, beside)
        if root.is_file():
            if reader_of(root) is None:
                raise DataError(f"source {source}: nothing here reads {kind_of(root)!r} files; it reads {readable()}")
            found.files.append((source, root))
            continue
        before = len(found.files)
        left_out: Counter[str] = Counter()
        runs = [place.parent for place in root.rglob("lock") if (place.parent / "recipe.toml").is_file()]
        for path in sorted(root.rglob("*")):
            if any(run in path.parents for run in runs):
                continue  # what groundup itself writes is not a source, wherever the run is kept
            parts = path.relative_to(root).parts
            if any(part.startswith(".") for part in parts) or not path.is_file():
                continue
            if reader_of(path) is None:
                left_out[kind_of(path)] += 1
            else:
                found.files.append((_printable("/".join([source.rstrip("/"), *parts])), path))
        if len(found.files) == before:
            others = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
            raise DataError(
                f"source {source} ({root}) has no readable file; it reads {readable()}, found {others or 'none'}"
            )
        found.left_out += left_out
    return found


def _locate(source: str, beside: Path) -> Path:
    if source.startswith("groundup:"):
        if source not in PACKAGED:
            raise DataError(f"no packaged corpus {source}; there is {', '.join(PACKAGED)}")
        return Path(str(resources.files("groundup.data") / PACKAGED[source]))
    return locate(source, beside, "source")


def kind_of(path: Path) -> str:
    """The suffix that chooses the reader: that of `a.txt.gz` is .txt."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1] in OPENERS:
        suffixes.pop()
    return _printable(suffixes[-1].lower()) if suffixes else "(no suffix)"


def _printable(name: str) -> str:
    """File names may hold bytes that are not UTF-8; Arrow and JSON may not."""
    return name.encode("utf-8", "backslashreplace").decode()


def readable() -> str:
    """What files are read, in words."""
    return f"{', '.join(READERS)}, also with {', '.join(OPENERS)}"


def reader_of(path: Path) -> "Callable[[BinaryIO, str, CorpusSettings], Iterator[Document]] | None":
    return READERS.get(kind_of(path))


def read(name: str, path: Path, settings: CorpusSettings) -> Iterator[Document]:
    """The documents of one file, none longer than `max_document_bytes`.

    Args:
        name: what the documents' `source` begins with.
        path: one of those that `find` gives.
        settings: of these `encoding`, `text_field` and `max_document_bytes` count.

    Raises:
        DataError: when the file cannot be opened, or its compression is damaged or cut short.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "a.jsonl")
    ...     _ = file.write_text('{"text": "Once.", "year": 1812}\\n[]\\n')
    ...     documents = list(read("a.jsonl", file, CorpusSettings(sources=(folder,))))
    >>> [(document.text, document.source, document.metadata) for document in documents[:1]]
    [('Once.', 'a.jsonl:1', '{"year":1812}')]
    >>> documents[1].reason
    'a JSON list, not an object'
    """
    reader = reader_of(path)
    assert reader is not None, "find() leaves out files without a reader"
    with reading(path) as stream:
        for document in reader(stream, name, settings):
            yield from _cut(document, settings.max_document_bytes)


def read_text(stream: BinaryIO, name: str, settings: CorpusSettings) -> Iterator[Document]:
    """A whole file as one document."""
    raw = stream.read()
    encoding = settings.encoding
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        yield Document(raw.decode(encoding).removeprefix("\ufeff"), name)
    except UnicodeDecodeError as error:
        shown = raw.decode(encoding, "backslashreplace") if encoding != "utf-16" else raw.decode("latin-1")
        yield Document(shown, name, reason=f"not {encoding}: {error.reason} at byte {error.start:,}")


def read_jsonl(stream: BinaryIO, name: str, settings: CorpusSettings) -> Iterator[Document]:
    """A JSON object a line; its `text_field` is the document, the other fields its metadata."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        source = f"{name}:{number}"
        if len(line) > MAX_LINE_BYTES:
            length = len(line)
            while line and not line.endswith(b"\n"):
                line = stream.readline(1 << 20)
                length += len(line)
            yield Document("", source, reason=f"line of {length:,} bytes; at most {MAX_LINE_BYTES:,} are read")
            continue
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield _from_json(line, source, settings.text_field)


def _from_json(line: bytes, source: str, text_field: str) -> Document:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Document(line.decode("utf-8", "backslashreplace"), source, reason=f"not JSON: {error}")
    as_text = line.decode().strip()
    if not isinstance(row, dict):
        return Document(as_text, source, reason=f"a JSON {type(row).__name__}, not an object")
    text = row.pop(text_field, None)
    if not isinstance(text, str):
        was = f"no field {text_field!r}" if text is None else f"field {text_field!r} is not a string"
        return Document(as_text, source, reason=f"{was}; fields: {', '.join(row) or 'none'} (set corpus.text_field)")
    try:
        return Document(text, source, orjson.dumps(row).decode())
    except orjson.JSONEncodeError as error:
        return Document(text, source, reason=f"not JSON that can be written again: {error}")


def _cut(document: Document, limit: int) -> Iterator[Document]:
    """Documents of at most `limit` UTF-8 bytes, cut after an empty line, else a line, a blank, a character."""
    raw = document.text.encode()
    if document.reason or len(raw) <= limit:
        yield document
        return
    part = start = 0
    while start < len(raw):
        end = min(start + limit, len(raw))
        if end < len(raw):
            end = _boundary(raw, start, end)
        part += 1
        yield Document(raw[start:end].decode(), f"{document.source}#{part}", document.metadata)
        start = end


def _boundary(raw: bytes, start: int, end: int) -> int:
    for mark in (b"\n\n", b"\r\n\r\n", b"\n", b" "):
        found = raw.rfind(mark, start + (end - start) // 2, end)
        if found >= 0:
            return found + len(mark)
    while raw[end] & 0xC0 == 0x80:  # inside a UTF-8 character
        end -= 1
    return end


READERS: dict[str, Callable[[BinaryIO, str, CorpusSettings], Iterator[Document]]] = {
    ".txt": read_text,
    ".md": read_text,
    ".jsonl": read_jsonl,
}
