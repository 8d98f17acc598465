"""Decoding: which encoding bytes are in, and their text as UTF-8; what is no text says why."""

import codecs
import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

CHUNK_BYTES = 1 << 20
"""Read and decoded at once."""
DETECT = "detect"
"""The setting `encoding` that asks for a guess."""
SHOWN_BYTES = 100_000
"""Bytes of a file that cannot be decoded that are kept around the error, to be looked at, or to guess from."""
FEW_BROKEN = 0.001
"""Share of a page's bytes; if no more are broken, its encoding is taken to be the declared one all the same."""
NO_CONTROL = bytes(byte for byte in range(256) if byte >= 0x20 or chr(byte).isspace() or byte in (0x08, 0x1A, 0x1B))
MOST_CONTROL = 0.1
"""A file is no text if more of its first bytes than this share are control characters."""
COMPRESSED = {
    b"\x1f\x8b\x08": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"BZh": "bzip2",
}  # fmt: skip
"""First bytes of compressed files; none but bzip2's, which is asked for its seventh byte, too, begins a text."""
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
AS_BROWSERS = {
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "iso8859-9": "cp1254",
    "shift_jis": "cp932",
    "gb2312": "gb18030",
}
"""Encodings that stand for larger ones (WHATWG Encoding Standard, section 4.2)."""


class UndecodableError(Exception):
    """A byte that the encoding does not allow; `position` counts from the beginning of the file."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason)
        self.reason, self.position = reason, position


def printable(name: str) -> str:
    """File names may hold bytes that are not UTF-8; Arrow and JSON may not."""
    return name.encode("utf-8", "backslashreplace").decode()


def escaped(raw: bytes, encoding: str = "utf-8") -> str:
    """Bytes that are not the text they should be, in a form that can be written and looked at."""
    if encoding.startswith(("utf-16", "utf-32")):
        return raw.decode("latin-1")
    return printable(raw.decode(encoding, "backslashreplace"))


def peek(stream: BinaryIO, size: int = 4096) -> bytes:
    """The first bytes of a stream that can be sought in, which are then read again."""
    head = stream.read(size)
    stream.seek(0)
    return head


def look(head: bytes, compressed: str, encoding: str) -> tuple[str, str | None]:
    """The encoding by the first bytes of a file, else the given one; and why they are no text, if so.

    Args:
        compressed: the suffix of the compression in which they lay; "" if in none.
    """
    for begin, kind in COMPRESSED.items():
        if head.startswith(begin) and (kind != "bzip2" or head[4:7] == b"1AY"):
            again = f"is {compressed} within which lies {kind}" if compressed else f"begins as {kind} does"
            return encoding, f"not text: the file {again} ({begin[:2].hex(' ')}); unpack it, or name it by what it is"
    for mark, marked in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return marked, None
    if encoding == DETECT:
        first, second = (half.count(0) * 3 > len(half) for half in (head[::2], head[1::2]))
        if first != second:  # half of most characters is zero
            return "utf-16-be" if first else "utf-16-le", None
        encoding = "utf-8"
    else:
        encoding = codecs.lookup(encoding).name
    control = head.translate(None, delete=NO_CONTROL)
    if len(control) > MOST_CONTROL * len(head) and not encoding.startswith(("utf-16", "utf-32")):
        common = Counter(control).most_common(1)[0][0]
        return encoding, (
            f"not text: {len(control):,} of the first {len(head):,} bytes are control characters, most of them "
            f"{common:#04x}, as in UTF-16 without a byte-order mark and in files that are no text"
        )
    return encoding, None


def as_utf8(stream: BinaryIO, encoding: str) -> Iterator[bytes]:
    """The text of a file without the byte-order mark at its beginning.

    Raises:
        UndecodableError: at the first byte that the encoding does not allow.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    position, begun, ended = 0, False, False
    while not ended:
        raw = stream.read(CHUNK_BYTES)
        before, ended = len(decoder.getstate()[0]), not raw
        try:
            text = decoder.decode(raw, ended)
        except UnicodeDecodeError as error:
            raise UndecodableError(error.reason, position - before + error.start) from None
        except UnicodeError as error:  # utf-16 without its mark
            raise UndecodableError(f"{error}; utf-16-le and utf-16-be need none", 0) from None
        yield (text if begun else text.removeprefix("\ufeff")).encode()
        begun = begun or bool(text)
        position += len(raw)


def check(stream: BinaryIO, encoding: str, ahead: int) -> None:
    """Decode `ahead` bytes, and go back to the beginning.

    Raises:
        UndecodableError: as `as_utf8`.
    """
    for chunk in as_utf8(stream, encoding):
        ahead -= len(chunk)
        if ahead < 0:
            break
    stream.seek(0)


def guess(sample: bytes) -> str | None:
    """The encoding of bytes that are not UTF-8, by how often they follow one another; None where no guess fits.

    >>> guess("Größe und Straße, schön für die Übung".encode("latin-1"))
    'cp1252'
    """
    from resiliparse.parse.encoding import detect_encoding

    with contextlib.suppress(LookupError, UnicodeDecodeError):
        name = codecs.lookup(detect_encoding(sample, html5_compatible=False) or "").name
        name = AS_BROWSERS.get(name, name)
        codecs.getincrementaldecoder(name)().decode(sample)
        return name
    return None


def guess_at(stream: BinaryIO, position: int) -> str | None:
    """The encoding of a text file, by what stands around a byte that is no UTF-8; back at its beginning then."""
    start = max(0, position - SHOWN_BYTES // 2)
    stream.seek(start)
    sample = stream.read(SHOWN_BYTES)
    stream.seek(0)
    return guess(
        sample[sample.find(b"\n", 0, position - start) + 1 :]
    )  # from a line's beginning, or that of the sample


def page_text(raw: bytes, declared: str | None, encoding: str) -> tuple[str | None, str]:
    """The text of a page that may say how it is encoded, and what it was taken for, if that is no plain reading.

    A byte-order mark counts first, then what the page or its server declares, then the setting. With `detect`, a few
    broken bytes are replaced by U+FFFD; where there are more, a guess is made.

    >>> page_text(b"gr\\xfcn", "latin-1", "utf-8"), page_text(b"gr\\xfcn", None, "utf-8")
    (('grün', ''), (None, 'not utf-8: invalid start byte at byte 2'))
    """
    marked, _ = look(raw[:4], "", "utf-8")
    known = None
    with contextlib.suppress(LookupError):
        known = codecs.lookup(declared or "").name
        known = AS_BROWSERS.get(known, known)
    first = (
        marked if raw.startswith(tuple(BYTE_ORDER_MARKS)) else known or ("utf-8" if encoding == DETECT else encoding)
    )
    try:
        return raw.decode(first).removeprefix("\ufeff"), ""
    except UnicodeError as error:
        wrong = f"{getattr(error, 'reason', error)} at byte {getattr(error, 'start', 0):,}"
    if encoding != DETECT:
        return None, f"not {first}: {wrong}"
    for each in dict.fromkeys(("utf-8", first)):
        text = raw.decode(each, "replace")
        if text.count("\ufffd") <= FEW_BROKEN * len(raw):
            return text.removeprefix("\ufeff"), f"{each}, broken bytes replaced"
    guessed = guess(raw)
    if guessed is None:
        return None, f"not {first}: {wrong}"
    return raw.decode(guessed, "replace"), guessed
