"""Sources: files and folders → documents. What cannot be read comes out too, with the reason."""

import codecs
import errno
import json
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from groundup.corpus.document import Document
from groundup.corpus.settings import CorpusSettings, path_of
from groundup.errors import DataError, MissingError
from groundup.files import OPENERS, locate, reading

PACKAGED = {"groundup:storybook": "storybook.jsonl.gz", "groundup:shakespeare": "shakespeare.txt.gz"}
MAX_LINE_BYTES = 256_000_000
"""A longer .jsonl line is dropped unread: parsing it would take several times this much memory."""
NO_CONTROL = bytes(byte for byte in range(256) if byte >= 0x20 or chr(byte).isspace() or byte in (0x08, 0x1A, 0x1B))
MOST_CONTROL = 0.1
"""A file is no text if more of its first bytes than this share are control characters."""
CHUNK_BYTES = 1 << 20
"""Read and decoded at once."""
SHOWN_BYTES = 100_000
"""Bytes of a file that cannot be decoded that are kept around the error, to be looked at."""
NAMES_KEPT = 5
"""Names that are kept of the files left out for one reason."""
HIDDEN = "hidden, its name begins with a dot"
MARKS = (
    "<|endoftext|>", "<|end_of_text|>", "<|eos|>", "<eos>", "<EOS>", "[EOS]", "</s>", "<|startoftext|>",
    "<|begin_of_text|>",
)  # fmt: skip
"""What tools put between texts in one file: those of GPT-2, Llama 3, Gemma, SentencePiece, gpt-2-simple."""
COMPRESSED = {b"\x1f\x8b\x08": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
"""First bytes of compressed files; none begins a text."""
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass
class Found:
    """The files of a corpus, by `find`, and what is left out."""

    files: list[tuple[str, Path]] = field(default_factory=list)
    """(name in the corpus, path), sorted."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Suffix that no reader is for, or another reason → number of files and folders."""
    left_out_names: dict[str, list[str]] = field(default_factory=dict)
    """Reason → the names of the first few."""


def find(settings: CorpusSettings, beside: Path) -> Found:
    """The readable files under the sources, each looked for in `beside` first, the folder of the recipe, then from the
    working directory.

    Args:
        settings: `settings.sources` are the files and folders.

    Raises:
        MissingError: a source that is not there, or a folder that holds nothing readable.
        DataError: a file of another kind.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a.txt", "b.pdf"):
    ...         _ = Path(folder, name).write_text("Once upon a time.", "utf-8")
    ...     found = find(CorpusSettings(sources=(folder,)), Path())
    >>> [path.name for _, path in found.files], found.left_out
    (['a.txt'], Counter({'.pdf': 1}))
    """
    found = Found()
    for source in map(path_of, settings.sources):
        root = _locate(source, beside)
        if root.is_file():
            if reader_of(root) is None:
                raise DataError(f"source {source}: nothing here reads {kind_of(root)!r} files; it reads {readable()}")
            found.files.append((source, root))
            continue
        if not root.is_dir():
            raise DataError(f"source {source} ({root}) is a pipe, socket or device; it should be a file or a folder")
        before = len(found.files)
        left_out: Counter[str] = Counter()
        for parts, path, why in sorted(_walk(root), key=lambda entry: entry[0]):
            name = _printable("/".join([source.rstrip("/"), *parts]))
            if why is None:
                found.files.append((name, path))
                continue
            left_out[why] += 1
            names = found.left_out_names.setdefault(why, [])
            if len(names) < NAMES_KEPT:
                names.append(name)
        if len(found.files) == before:
            others = describe_left_out(left_out, found.left_out_names)
            raise MissingError(
                f"source {source} ({root}) has no readable file; it reads {readable()}, found {others or 'none'}"
            )
        found.left_out += left_out
    return found


def _walk(root: Path) -> Iterator[tuple[tuple[str, ...], Path, str | None]]:
    """Everything under a folder but folders that were entered: parts of its name, path, why it is no source, if so.

    Links are followed, each folder is entered once: first those that stand there, then those that are linked to.
    """
    entered: set[tuple[int, int]] = set()
    waiting: list[tuple[tuple[str, ...], Path]] = [((), root)]
    links: list[tuple[tuple[str, ...], Path]] = []
    while waiting or links:
        linked = not waiting
        parts, path = links.pop(0) if linked else waiting.pop()
        try:
            there = path.stat()
            if parts and parts[-1].startswith("."):
                yield parts, path, HIDDEN
            elif not stat.S_ISDIR(there.st_mode):
                yield parts, path, _why_not_read(path, there.st_mode)
            elif (there.st_dev, there.st_ino) in entered or (
                linked and path.resolve() in path.parent.resolve().parents
            ):
                yield parts, path, "link to a folder that is read already, or in which it lies"
            elif (path / "lock").exists() and (path / "recipe.toml").is_file():
                yield parts, path, "run of groundup"  # what it writes is not a source, wherever the run is kept
            else:
                entered.add((there.st_dev, there.st_ino))
                for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
                    (links if entry.is_symlink() else waiting).append(((*parts, entry.name), path / entry.name))
        except OSError as error:
            nowhere = path.is_symlink() and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
            yield parts, path, "link that leads nowhere" if nowhere else f"not readable ({error.strerror})"


def _why_not_read(path: Path, mode: int) -> str | None:
    """The reason to leave out what is no folder, if there is one."""
    if not stat.S_ISREG(mode):
        return "pipe, socket or device"
    if reader_of(path) is None:
        return kind_of(path)
    return None if os.access(path, os.R_OK) else "not readable (Permission denied)"


def describe_left_out(left_out: Mapping[str, int], names: Mapping[str, list[str]]) -> str:
    """What was left out in words, with some names: `3 × .png (texts/a.png, texts/b.png, …)`."""
    parts = []
    for why, number in sorted(left_out.items()):
        some = names.get(why, [])[:2]
        parts.append(f"{number:,} × {why} ({', '.join([*some, '…'] if number > len(some) else some)})")
    return ", ".join(parts)


def _locate(source: str, beside: Path) -> Path:
    if source.startswith("groundup:"):
        if source not in PACKAGED:
            raise DataError(f"no packaged corpus {source}; there is {', '.join(PACKAGED)}")
        return Path(str(resources.files("groundup.data") / PACKAGED[source]))
    return locate(source, beside, "source")


def is_compressed(path: Path) -> bool:
    return path.suffix.lower() in OPENERS


def kind_of(path: Path) -> str:
    """The suffix that chooses the reader, in small letters: that of `a.TXT.gz` is .txt.

    >>> kind_of(Path("a.TXT.Gz")), kind_of(Path("a.gz")), kind_of(Path("README"))
    ('.txt', '.gz', '(no suffix)')
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if len(suffixes) > 1 and is_compressed(path):
        suffixes.pop()
    return _printable(suffixes[-1]) if suffixes else "(no suffix)"


def _printable(name: str) -> str:
    """File names may hold bytes that are not UTF-8; Arrow and JSON may not."""
    return name.encode("utf-8", "backslashreplace").decode()


def readable() -> str:
    """The suffixes that are read, for messages."""
    return f"{', '.join(READERS)}, also with {', '.join(OPENERS)}"


def reader_of(path: Path) -> "Callable[[BinaryIO, str, str, CorpusSettings], Iterator[Document]] | None":
    return READERS.get(kind_of(path))


_ENDS = r"""(?:\A|\n|[.!?…。！？]["'”’)\]]*|[^\w\s`"'<>.,;:()\[\]{}“‘])[ \t]*"""
"""What stands before a mark that ends a text: a line end, the end of a sentence, a sign such as an emoji."""


def count_separators(text: str) -> Counter[str]:
    r"""How often each of `MARKS` stands where a text ends: behind a line or a sentence, or without a space between two
    words. One within a sentence is mentioned, and does not count.

    >>> count_separators("A tale.<|endoftext|>Once\n<|endoftext|>\nThe mark <|endoftext|> ends a text")
    Counter({'<|endoftext|>': 2})
    """
    found: Counter[str] = Counter()
    for mark in MARKS:
        if mark in text:
            between = r"|(?<=\w)MARK(?=\w)" if mark != "</s>" else ""  # which also ends what is struck out in HTML
            found[mark] = len(re.findall((_ENDS + "MARK" + between).replace("MARK", re.escape(mark)), text))
    return +found


def read(
    name: str,
    path: Path,
    settings: CorpusSettings,
    ahead: int = sys.maxsize,
) -> Iterator[Document]:
    """The documents of one file, none longer than `max_document_bytes`.

    A file that does not decode is one document with its reason. So that no part of it comes out before the bad byte is
    met, it is decoded twice; nothing of it is held but the part that is being read.

    Args:
        name: what the documents' `source` begins with.
        path: one of those that `find` gives.
        settings: of these `encoding`, `separator`, `text_field` and `max_document_bytes` count.
        ahead: how many decoded bytes are looked at first: fewer, where only a sample will be taken.

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
        head = _peek(stream)
        encoding, why = _look(head, path, settings.encoding)
        if why is not None:
            yield Document(_escaped(head, encoding), name, reason=why)
            return
        try:
            if reader is not read_jsonl or encoding != "utf-8":  # else broken lines are dropped alone
                for chunk in _as_utf8(stream, encoding):
                    ahead -= len(chunk)
                    if ahead < 0:
                        break
                stream.seek(0)
            yield from reader(stream, name, encoding, settings)
        except _UndecodableError as error:
            stream.seek(max(0, error.position - SHOWN_BYTES // 2) & ~3)
            shown = _escaped(stream.read(SHOWN_BYTES), encoding)
            yield Document(shown, name, reason=f"not {encoding}: {error.reason} at byte {error.position:,}")


def _peek(stream: BinaryIO) -> bytes:
    """The first bytes of a file, which are then read again."""
    return stream.peek(4096)  # type: ignore[attr-defined, no-any-return]  # buffered, whichever opener it is


def _look(head: bytes, path: Path, encoding: str) -> tuple[str, str | None]:
    """The encoding by the first bytes of a file, else the given one; and why they are no text, if so."""
    for begin, kind in COMPRESSED.items():
        if head.startswith(begin):
            again = f"is {path.suffix} within which lies {kind}" if is_compressed(path) else f"begins as {kind} does"
            return encoding, f"not text: the file {again} ({begin[:2].hex(' ')}); unpack it, or name it by what it is"
    for mark, marked in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return marked, None
    encoding = codecs.lookup(encoding).name
    control = head.translate(None, delete=NO_CONTROL)
    if len(control) > MOST_CONTROL * len(head) and not encoding.startswith(("utf-16", "utf-32")):
        common = Counter(control).most_common(1)[0][0]
        return encoding, (
            f"not text: {len(control):,} of the first {len(head):,} bytes are control characters, most of them "
            f"{common:#04x}, as in UTF-16 without a byte-order mark and in files that are no text"
        )
    return encoding, None


def _escaped(raw: bytes, encoding: str) -> str:
    """Bytes that are not the text they should be, in a form that can be written and looked at."""
    if encoding.startswith(("utf-16", "utf-32")):
        return raw.decode("latin-1")
    return _printable(raw.decode(encoding, "backslashreplace"))


class _UndecodableError(Exception):
    """A byte that the encoding does not allow; `position` counts from the beginning of the file."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason)
        self.reason, self.position = reason, position


def _as_utf8(stream: BinaryIO, encoding: str) -> Iterator[bytes]:
    """The text of a file without the byte-order mark at its beginning."""
    decoder = codecs.getincrementaldecoder(encoding)()
    position, begun, ended = 0, False, False
    while not ended:
        raw = stream.read(CHUNK_BYTES)
        before, ended = len(decoder.getstate()[0]), not raw
        try:
            text = decoder.decode(raw, ended)
        except UnicodeDecodeError as error:
            raise _UndecodableError(error.reason, position - before + error.start) from None
        except UnicodeError as error:  # utf-16 without its mark
            raise _UndecodableError(f"{error}; utf-16-le and utf-16-be need none", 0) from None
        yield (text if begun else text.removeprefix("\ufeff")).encode()
        begun = begun or bool(text)
        position += len(raw)


def read_text(stream: BinaryIO, name: str, encoding: str, settings: CorpusSettings) -> Iterator[Document]:
    """A whole file as one document, or as those between the separators; space alone between two of them is none."""
    separator = settings.separator
    read_any = False
    chunks = _as_utf8(stream, encoding)
    pieces = _split(chunks, separator.encode()) if separator else ((1, chunk) for chunk in chunks)
    for number, group in groupby(pieces, key=lambda piece: piece[0]):
        source = f"{name}#{number}" if separator else name
        for document in _cut((piece for _, piece in group), source, settings.max_document_bytes):
            if not separator or document.text.strip():
                read_any = True
                yield document
    if not read_any:
        yield Document("", name)


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


def read_jsonl(stream: BinaryIO, name: str, encoding: str, settings: CorpusSettings) -> Iterator[Document]:
    """A JSON object a line; its `text_field` is the document, the other fields its metadata."""
    for number, (line, size) in enumerate(json_lines(stream, encoding), start=1):
        source = f"{name}:{number}"
        if size > MAX_LINE_BYTES:
            yield Document("", source, reason=f"line of {size:,} bytes; at most {MAX_LINE_BYTES:,} are read")
        elif line.strip():
            document = _from_json(line, source, settings.text_field)
            if document.reason:
                yield document
            else:
                yield from _cut([document.text.encode()], source, settings.max_document_bytes, document)


def json_lines(stream: BinaryIO, encoding: str) -> Iterator[tuple[bytes, int]]:
    """Lines as UTF-8, and their bytes with the line end; one of more than `MAX_LINE_BYTES` comes out empty."""
    chunks = _as_utf8(stream, encoding)
    if encoding == "utf-8":  # not decoded here: a line that is something else is dropped alone
        if _peek(stream).startswith(codecs.BOM_UTF8):
            stream.read(len(codecs.BOM_UTF8))
        chunks = iter(lambda: stream.read(CHUNK_BYTES), b"")
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


def first_lines(path: Path, encoding: str) -> Iterator[bytes]:
    """The lines of a .jsonl file, as `read` finds them; none of one whose first bytes are no text."""
    with reading(path) as stream:
        marked, why = _look(_peek(stream), path, encoding)
        try:
            yield from (line for line, _ in json_lines(stream, marked) if why is None)
        except _UndecodableError:
            return


def _from_json(line: bytes, source: str, text_field: str) -> Document:
    """The document of a line, which may leave out fields; or one with the reason why there is none."""
    broken: dict[str, str] = {}
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        row, broken = _writable(_read_leniently(line))
        if not row or text_field in broken:
            return Document(_escaped(line, "utf-8"), source, reason=_why_broken(line, text_field, broken, str(error)))
    if not isinstance(row, dict):
        return Document(line.decode().strip(), source, reason=f"a JSON {type(row).__name__}, not an object")
    text = row.pop(text_field, None)
    if not isinstance(text, str):
        was = f"no field {text_field!r}" if text is None else f"field {text_field!r} is not a string"
        fields = _printable(", ".join([*row, *broken]))
        shown = _escaped(line, "utf-8").strip()
        return Document(shown, source, reason=f"{was}; fields: {fields or 'none'} (set corpus.text_field)")
    try:
        metadata = orjson.dumps(row)
    except orjson.JSONEncodeError:  # nested deeper than is written
        row, broken = _writable(row)
        metadata = orjson.dumps(row)
    return Document(text, source, metadata.decode(), left_out=tuple(map(_printable, broken)))


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


def _cut(pieces: Iterable[bytes], source: str, limit: int, like: Document | None = None) -> Iterator[Document]:
    """Documents of at most `limit` UTF-8 bytes, cut after an empty line, else a line, a space, a character."""
    like = like or Document("", source)
    waiting, part = bytearray(), 0
    for piece in pieces:
        waiting += piece
        start = 0
        while len(waiting) - start > limit:
            end = _boundary(waiting, start, start + limit)
            part += 1
            yield Document(waiting[start:end].decode(), f"{source}#{part}", like.metadata, left_out=like.left_out)
            start = end
        del waiting[:start]
    name = f"{source}#{part + 1}" if part else source
    yield Document(waiting.decode(), name, like.metadata, left_out=like.left_out)


def _boundary(raw: bytearray, start: int, end: int) -> int:
    for mark in (b"\n\n", b"\r\n\r\n", b"\n", b" "):
        found = raw.rfind(mark, start + (end - start) // 2, end)
        if found >= 0:
            return found + len(mark)
    while raw[end] & 0xC0 == 0x80:  # inside a UTF-8 character
        end -= 1
    return end


READERS: dict[str, Callable[[BinaryIO, str, str, CorpusSettings], Iterator[Document]]] = {
    ".txt": read_text,
    ".md": read_text,
    ".jsonl": read_jsonl,
}


@dataclass(frozen=True)
class Record:
    source: str
    payload: bytes
    document: Document


def records(name: str, path: Path, settings: CorpusSettings) -> Iterator[Record]:
    for document in read(name, path, settings):
        yield Record(document.source, document.text.encode(), document)


def documents(record: Record, settings: CorpusSettings) -> Iterator[Document]:
    yield record.document
