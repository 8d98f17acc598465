"""Archives: zip, tar, WARC and ARC files → what they hold, one after another. Nothing is ever unpacked onto a path.

What is damaged, cut short, too large or refused comes out as a member with the reason, never as a shorter file.
"""

import contextlib
import io
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, BinaryIO

from groundup.corpus.decoding import CHUNK_BYTES, printable
from groundup.files import DAMAGED

MOST_RATIO = 200
"""Bytes that may come out of each compressed byte. Text compresses 3 to 30 times; bombs 1,000 times and more."""
HARMLESS_BYTES = 64_000_000
"""So many may come out whatever the ratio."""
MOST_MEMBER_BYTES = 20_000_000_000
"""Of one file in an archive, which is held on disk while it is read."""
MOST_RECORD_BYTES = 1_000_000_000
"""Of one record of a WARC, which is held in memory."""
MOST_HEADER_BYTES = 1 << 16
IN_MEMORY_BYTES = 32_000_000
"""Larger members are held on disk."""
DAMAGE = (
    *DAMAGED, OSError, zipfile.BadZipFile, tarfile.TarError, NotImplementedError, RuntimeError,
)  # fmt: skip
"""What readers of archives raise where these are damaged; RuntimeError of an encrypted zip."""


class BombError(EOFError):
    """More came out of compressed bytes than any text would give."""


@dataclass
class Member:
    """A file in an archive, or a record in a WARC."""

    name: str
    """In the archive; of a record the byte of the unpacked archive at which it begins."""
    content: BinaryIO | None = None
    """Can be sought in; it is closed when the next member is asked for."""
    reason: str | None = None
    """Why there is no content."""
    headers: dict[str, str] = field(default_factory=dict)
    """Of a record, in small letters."""


class Bounded(io.RawIOBase):
    """A stream of decompressed bytes that ends in a `BombError` when too much comes out of it."""

    def __init__(self, stream: IO[bytes], compressed_bytes: int, most: int = MOST_MEMBER_BYTES * 1000) -> None:
        self._stream, self._most = stream, min(most, max(HARMLESS_BYTES, MOST_RATIO * compressed_bytes))
        self.tail = b""
        """The last bytes that were read."""

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self.tail = (self.tail + data[-512:])[-512:]
        if self._stream.tell() > self._most:
            raise BombError(f"more than {self._most:,} bytes come out of it, as of a bomb")
        return len(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def bounded(stream: IO[bytes], compressed_bytes: int) -> BinaryIO:
    return io.BufferedReader(Bounded(stream, compressed_bytes), CHUNK_BYTES // 8)


def _spool(stream: IO[bytes], compressed_bytes: int) -> BinaryIO:
    with contextlib.ExitStack() as on_error:
        held = on_error.enter_context(tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES))
        reader = io.BufferedReader(Bounded(stream, compressed_bytes, MOST_MEMBER_BYTES), CHUNK_BYTES)
        while chunk := reader.read(CHUNK_BYTES):
            held.write(chunk)
        held.seek(0)
        on_error.pop_all()
    return held  # type: ignore[return-value]


def _refusal(name: str) -> str | None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or name[1:2] == ":":
        return "refused: its path leads out of the archive"
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return "not read: hidden, its name begins with a dot" if hidden else None


def read_zip(stream: BinaryIO) -> Iterator[Member]:
    """The files of a zip, in its order."""
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            name, reason = printable(info.filename), _refusal(info.filename)
            if info.external_attr >> 28 == 0xA:  # the mode of a link, as Unix writes it
                reason = "refused: a link"
            try:
                if reason is None:
                    with archive.open(info) as packed, _spool(packed, info.compress_size) as content:
                        yield Member(name, content)
                    continue
            except DAMAGE as error:
                reason = why(error)
            yield Member(name, reason=reason)


def read_tar(stream: BinaryIO) -> Iterator[Member]:
    """The files of a tar, in its order.

    Raises:
        tarfile.ReadError: it is cut short.
    """
    raw = Bounded(stream, 1 << 60)
    with tarfile.open(fileobj=io.BufferedReader(raw), mode="r|") as archive:
        for info in archive:
            if info.isdir():
                continue
            name, reason = printable(info.name), _refusal(info.name)
            if not info.isreg():
                reason = "refused: a link" if info.issym() or info.islnk() else "refused: a device or pipe"
            packed = archive.extractfile(info) if reason is None else None
            if packed is None:
                yield Member(name, reason=reason)
                continue
            with packed, _spool(packed, 1 << 60) as content:
                yield Member(name, content)
    while raw.read(CHUNK_BYTES):
        pass
    if len(raw.tail) < 512 or any(raw.tail):  # two blocks of zeros end it
        raise tarfile.ReadError("it ends without the mark of its end")


def why(error: Exception) -> str:
    """The reason of what could not be read."""
    if isinstance(error, BombError):
        return f"refused: {error}"
    return f"incomplete: {error or type(error).__name__}"


class _Lines:
    """Reads lines and bytes, some of which may be put back."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._back, self.position = stream, b"", 0

    def read(self, size: int) -> bytes:
        data, self._back = self._back[:size], self._back[size:]
        if len(data) < size:
            data += self._stream.read(size - len(data))
        self.position += len(data)
        return data

    def line(self) -> bytes:
        end = self._back.find(b"\n") + 1
        if end:
            return self.read(end)
        line = self.read(len(self._back))
        rest = self._stream.readline(MOST_HEADER_BYTES)
        self.position += len(rest)
        return line + rest

    def put_back(self, data: bytes) -> None:
        self._back = data + self._back
        self.position -= len(data)


def read_warc(stream: BinaryIO) -> Iterator[Member]:
    """The records of a WARC file (ISO 28500) or of an ARC file, each as long as its header says, or with a reason.

    A record that is cut short, or is not followed by what follows records, has a wrong length: it is not read, and
    reading goes on where the next record begins.
    """
    lines = _Lines(stream)
    is_arc = False
    while True:
        begin = lines.position
        try:
            line = lines.line()
            if not line:
                return
            if not line.strip():
                continue
            is_arc = is_arc or line.startswith(b"filedesc://")
            headers = _arc_headers(line) if is_arc else _headers(lines, line)
            if headers is None:
                lost = _resync(lines, b"", is_arc)
                yield Member(f"{begin}", reason=f"incomplete: no record begins at byte {begin:,}; {lost}")
                continue
            yield _record(lines, headers, f"{begin}", is_arc)
        except DAMAGE as error:
            yield Member(f"{begin}", reason=why(error))
            return


def _headers(lines: _Lines, line: bytes) -> dict[str, str] | None:
    if not line.startswith(b"WARC/"):
        return None
    headers = {}
    while (line := lines.line()).strip():
        name, _, value = line.decode("utf-8", "replace").partition(":")
        headers[name.strip().lower()] = value.strip()
    return headers


def _arc_headers(line: bytes) -> dict[str, str] | None:
    """`URL IP-address date type … length` (ARC file format, version 1 and 2)."""
    fields = line.decode("utf-8", "replace").split()
    if len(fields) < 5 or not fields[-1].isdecimal():
        return None
    kind = "warcinfo" if fields[0].startswith("filedesc://") else "response"
    names = ("warc-target-uri", "warc-ip-address", "warc-date", "content-type")
    return {**dict(zip(names, fields, strict=False)), "content-length": fields[-1], "warc-type": kind}


def _record(lines: _Lines, headers: dict[str, str], name: str, is_arc: bool) -> Member:
    said = headers.get("content-length", "")
    length = int(said) if said.isdecimal() and len(said) < 19 else -1
    content = lines.read(min(max(length, 0), MOST_RECORD_BYTES))
    end = lines.read(1 if is_arc else 4)
    if len(content) == length and end == (b"\n" if is_arc else b"\r\n\r\n"):
        truncated = headers.get("warc-truncated")
        reason = f"incomplete: cut off by its crawler (WARC-Truncated: {truncated})" if truncated else None
        return Member(name, None if reason else io.BytesIO(content), reason, headers)
    if length > MOST_RECORD_BYTES and len(content) == MOST_RECORD_BYTES:
        reason = f"refused: a record of {length:,} bytes; at most {MOST_RECORD_BYTES:,} are read"
    elif len(content) < length:
        reason = f"incomplete: its header says {said} bytes, and the file ends after {len(content):,}"
    else:
        reason = f"incomplete: no record ends after the {said or 'no'} bytes that its header says"
    return Member(name, reason=f"{reason}; {_resync(lines, content + end, is_arc)}", headers=headers)


def _resync(lines: _Lines, seen: bytes, is_arc: bool) -> str:
    """Go to where the next record begins, which may lie in what was read already."""
    begin = b"\nhttp" if is_arc else b"\nWARC/1."
    skipped = 0
    while True:
        found = seen.find(begin)
        if found >= 0:
            lines.put_back(seen[found + 1 :])
            return f"the next begins {skipped + found + 1:,} bytes on"
        kept = seen[-len(begin) :]
        skipped += len(seen) - len(kept)
        more = lines.read(CHUNK_BYTES)
        if not more:
            return "none follows"
        seen = kept + more


ARCHIVES = {".zip": read_zip, ".tar": read_tar}
CRAWLS = {".warc": read_warc, ".arc": read_warc}
