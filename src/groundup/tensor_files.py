"""Files of tensors: GGUF files whole, of safetensors files what they say, and whether their numbers are finite.

Nothing that a file says is believed before it is compared with the bytes that are there. No torch.

A GGUF file (ggml's docs/gguf.md) is a header of entries, and of the name, shape, type and place of each tensor; then,
from a multiple of the alignment on, the tensors' bytes. Versions 2 and 3 are read, little-endian.
"""

import itertools
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from groundup.errors import DamagedError, UnsupportedError
from groundup.files import explaining_write_errors

MOST = 1 << 16
"""Tensors and entries of a file, and bytes of a short text: in Python each takes more than in the file."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    type: str
    shape: tuple[int, ...]
    """Rows first, as in torch."""
    raw: npt.NDArray[np.uint8]


# --- safetensors ---

EXPONENT = {
    "F64": ("<i8", 0x7FF << 52),
    "F32": ("<i4", 0xFF << 23),
    "F16": ("<i2", 0x1F << 10),
    "BF16": ("<i2", 0xFF << 7),
    "F8_E5M2": ("<i1", 0x7C),
    "F8_E4M3": ("<i1", 0x7F),
}
"""Type of a tensor → integers of its size, and the bits of the exponent, which are all set only in NaN and Inf."""
NUMBERS_AT_ONCE = 1 << 22
SIZES = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E5M2": 8, "F8_E4M3": 8, "I64": 64, "I32": 32, "I16": 16,
         "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8}  # fmt: skip
"""Type of a tensor in a safetensors file → bits of a number."""
LONGEST_HEADER = 100_000_000  # bytes; that of the safetensors library


def read_safetensors(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, in its order, memory-mapped.

    Raises:
        DamagedError: cut, or with sizes, places or names that contradict each other or the file, by what is wrong.
        OSError: missing.
    """
    size = file.stat().st_size
    try:
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(size - 8, LONGEST_HEADER):
                raise ValueError(f"it says that its header has {length:,} bytes; the file has {size:,}")
            header = stream.read(length)
        if header.count(b'"data_offsets"') > MOST:
            raise ValueError(f"it has more than {MOST:,} tensors")
        said = json.loads(header, object_pairs_hook=_once)
        if not isinstance(said, dict):
            raise ValueError("its header is no JSON object")
        said.pop("__metadata__", None)
        places = {name: _place(name, tensor, size - 8 - length) for name, tensor in said.items()}
        end = 0
        for first, last, name in sorted((first, last, name) for name, (_, _, first, last) in places.items()):
            if first < end:
                raise ValueError(f"{name} lies within another tensor")
            end = last
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{file} is not a whole safetensors file: {error}") from None
    held = np.memmap(file, np.uint8, "r")[8 + length :] if end else np.zeros(0, np.uint8)
    return {name: Stored(kind, shape, held[first:last]) for name, (kind, shape, first, last) in places.items()}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        raise ValueError("a name is there twice")
    return read


def _place(name: str, tensor: dict[str, Any], room: int) -> tuple[str, tuple[int, ...], int, int]:
    kind, shape, (first, last) = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
    numbers = [*shape, first, last]
    if not all(type(each) is int and 0 <= each < 1 << 63 for each in numbers) or len(shape) > 16:
        raise ValueError(f"{name} has shape {shape} and place {first} to {last}; they should be whole numbers from 0")
    wanted = math.prod(shape) * SIZES[kind] // 8
    if last - first != wanted or last > room:
        raise ValueError(f"{name}, {kind} of shape {shape}, lies at {first:,} to {last:,} of {room:,} bytes")
    return kind, tuple(shape), first, last


def not_finite(file: Path) -> Iterator[str]:
    """The tensors of a safetensors file that hold NaN or Inf. Each number is read once, as an integer."""
    for name, tensor in read_safetensors(file).items():
        if tensor.type in EXPONENT:
            kind, exponent = EXPONENT[tensor.type]
            numbers, mask = tensor.raw.view(kind), np.array(exponent, kind)
            starts = range(0, len(numbers), NUMBERS_AT_ONCE)
            if any(((numbers[at : at + NUMBERS_AT_ONCE] & mask) == mask).any() for at in starts):
                yield name


# --- GGUF, read ---

MAGIC = b"GGUF"
ALIGNMENT = 32


@dataclass(frozen=True)
class Type:
    """How numbers lie in a tensor: `numbers` of them, neighbours in a row, in `size` bytes."""

    id: int
    numbers: int
    size: int


TYPES = {
    "F32": Type(0, 1, 4),
    "F16": Type(1, 1, 2),
    "Q4_0": Type(2, 32, 18),
    "Q4_1": Type(3, 32, 20),
    "Q8_0": Type(8, 32, 34),
    "BF16": Type(30, 1, 2),
}
OTHERS = {6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K",
          16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
          24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0",
          39: "MXFP4"}  # fmt: skip
"""The types that are refused, by ggml's numbers for them."""
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class Strings:
    """A list of texts in the file, which are decoded as they are asked for."""

    raw: memoryview
    """From the length of the first on."""
    count: int

    def __iter__(self) -> Iterator[str]:
        at = 0
        for _ in range(self.count):
            (size,) = struct.unpack_from("<Q", self.raw, at)
            at += 8 + size
            yield str(self.raw[at - size : at], "utf-8", "replace")


@dataclass(frozen=True)
class GGUF:
    """A file, of which every tensor lies where the file says."""

    path: Path
    metadata: Mapping[str, Any]
    """Numbers, texts, arrays of numbers, or `Strings`, among which is a single long text."""
    tensors: Mapping[str, Stored]


class _Cursor:
    """Reads a header front to back, and never beyond the end of the file."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        self.raw = np.memmap(path, np.uint8, "c")  # copied as it is written to, as by training
        self.view = self.raw.data

    def damaged(self, why: str) -> DamagedError:
        return DamagedError(f"{self.path} is no whole GGUF file: {why}")

    def take(self, size: int, what: str) -> int:
        """Where the next `size` bytes begin."""
        left = len(self.view) - self.at
        if size > left:
            raise self.damaged(f"{what} should have {size:,} bytes, but {left:,} are left at byte {self.at:,}")
        self.at += size
        return self.at - size

    def number(self, kind: str, what: str) -> Any:
        (value,) = struct.unpack_from(f"<{kind}", self.view, self.take(struct.calcsize(f"<{kind}"), what))
        return float(str(np.float32(value))) if kind == "f" else value  # 1e-5, not 9.99999974737875e-06

    def count(self, what: str) -> int:
        count = int(self.number("Q", what))
        if count > MOST:
            raise self.damaged(f"{what} is {count:,}, more than {MOST:,}")
        return count

    def name(self, what: str, taken: Mapping[str, Any]) -> str:
        text = self.text(what)
        if not isinstance(text, str) or text in taken or len(text) > 128 or not text.isprintable():
            raise self.damaged(f"{what} is {text!r:.60}; each should have its own, of at most 128 printable characters")
        return text

    def text(self, what: str) -> "str | Strings":
        size = self.number("Q", f"the length of {what}")
        start = self.take(size, what)
        if size > MOST:
            return Strings(self.view[start - 8 : self.at], 1)
        return str(self.view[start : self.at], "utf-8", "replace")

    def value(self, kind: int, what: str) -> Any:
        if kind == STRING:
            return self.text(what)
        if kind == ARRAY:
            return self.array(what)
        if kind not in SCALARS:
            raise self.damaged(f"{what} is of type {kind}, which there is not")
        return self.number(SCALARS[kind], what)

    def array(self, what: str) -> "npt.NDArray[Any] | Strings":
        kind, count = self.number("I", f"the type of {what}"), self.number("Q", f"the length of {what}")
        if kind in SCALARS:
            dtype = np.dtype(SCALARS[kind]).newbyteorder("<")
            start = self.take(count * dtype.itemsize, what)
            return np.frombuffer(self.view, np.uint8, count * dtype.itemsize, start).view(dtype)
        if kind != STRING:
            raise self.damaged(f"{what} is a list of type {kind}, which there is not, or of lists")
        start = at = self.take(0, what)
        length, last = struct.Struct("<Q").unpack_from, len(self.view) - 8
        for number in range(count):  # there may be hundreds of thousands
            if at > last:
                raise self.damaged(f"{what} should have {count:,} texts, but the file ends after {number:,}")
            at += 8 + length(self.view, at)[0]
        self.take(at - start, what)
        return Strings(self.view[start:at], count)


def is_gguf(path: Path) -> bool:
    """Whether a file is one by its name or by its first bytes."""
    if not path.is_file():
        return False
    with open(path, "rb") as stream:
        return path.suffix.lower() == ".gguf" or stream.read(len(MAGIC)) == MAGIC


def read_gguf_file(path: Path) -> GGUF:
    """
    Raises:
        DamagedError: cut, or with sizes, offsets or names that contradict each other or the file, by what is wrong.
        UnsupportedError: another version, a part of several files, or a type of numbers that is not read.
    """
    if path.stat().st_size < 24:
        raise DamagedError(f"{path} is no whole GGUF file: it has {path.stat().st_size} bytes")
    cursor = _Cursor(path)
    if bytes(cursor.view[cursor.take(4, "the first word") : 4]) != MAGIC:
        raise cursor.damaged(f"it does not begin with {MAGIC.decode()}")
    version = cursor.number("I", "the version")
    if version not in (2, 3):
        raise UnsupportedError(
            f"{path} is a GGUF file of version {version}, or big-endian; 2 and 3 are read, little-endian"
        )
    n_tensors, n_entries = cursor.count("the number of tensors"), cursor.count("the number of entries")
    metadata: dict[str, Any] = {}
    for _ in range(n_entries):
        key = cursor.name("the name of an entry", metadata)
        metadata[key] = cursor.value(cursor.number("I", f"the type of {key}"), key)
    if metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedError(f"{path} is one of several files: join them with llama-gguf-split --merge")
    return GGUF(path, metadata, _read_tensors(cursor, n_tensors, metadata.get("general.alignment", ALIGNMENT)))


def _read_tensors(cursor: _Cursor, count: int, alignment: Any) -> dict[str, Stored]:
    if not isinstance(alignment, int) or not 8 <= alignment <= MOST or alignment & (alignment - 1):
        raise cursor.damaged(f"general.alignment is {alignment!r}; it should be a power of two from 8")
    said: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name = cursor.name("the name of a tensor", said)
        n_dimensions = cursor.number("I", f"the dimensions of {name}")
        if not 1 <= n_dimensions <= 4:
            raise cursor.damaged(f"{name} has {n_dimensions} dimensions; 1 to 4 are possible")
        shape = tuple(cursor.number("Q", f"the shape of {name}") for _ in range(n_dimensions))[::-1]
        kind, start = _type_named(cursor, name), cursor.number("Q", f"the place of {name}")
        per_block, size = TYPES[kind].numbers, TYPES[kind].size
        if shape[-1] % per_block or not all(shape):
            raise cursor.damaged(f"{name} has the shape {shape}; rows in {kind} are multiples of {per_block}, above 0")
        said[name] = (kind, shape, start, math.prod(shape) // per_block * size)
    data = -(-cursor.at // alignment) * alignment
    end = 0
    for name, (_, _, start, size) in sorted(said.items(), key=lambda entry: entry[1][2]):
        if start % alignment or start < end:
            raise cursor.damaged(f"{name} lies at {start:,}, which is " + (
                f"no multiple of {alignment}" if start % alignment else "within another tensor"))  # fmt: skip
        end = start + size
        if end > len(cursor.raw) - data:
            raise cursor.damaged(f"{name} should end at byte {data + end:,} of {len(cursor.raw):,}")
    return {name: Stored(kind, shape, cursor.raw[data + start : data + start + size])
            for name, (kind, shape, start, size) in said.items()}  # fmt: skip


def _type_named(cursor: _Cursor, tensor: str) -> str:
    number = cursor.number("I", f"the type of {tensor}")
    known = next((name for name, each in TYPES.items() if each.id == number), None)
    if known is None and number not in OTHERS:
        raise cursor.damaged(f"{tensor} is of type {number}, which there is not")
    if known is None:
        raise UnsupportedError(
            f"{cursor.path}: {tensor} is in {OTHERS[number]}, which is not read here: ask for the model in Q8_0, BF16 "
            f"or one of {', '.join(TYPES)}"
        )
    return known


# --- GGUF, written ---

FORMATS = {bool: 7, int: 4, float: 6, str: STRING}
"""Type in Python → the type in the file; llama.cpp wants whole numbers in 32 bits without a sign, floats in 32 bits."""


def write_gguf_file(
    path: Path,
    entries: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    packed: Callable[[str], npt.NDArray[np.uint8]],
) -> None:
    """Write a file, whole or not at all; the tensors one after another.

    Args:
        entries: numbers, texts, or lists of them.
        tensors: name → type, one of `TYPES`, and shape.
        packed: name → the bytes of that tensor.
    """
    header = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(entries))]
    header += [_text(key) + _entry(value) for key, value in entries.items()]
    at = 0
    for name, (kind, shape) in tensors.items():
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        header.append(_text(name) + sizes + struct.pack("<IQ", TYPES[kind].id, at))
        at += _padded(math.prod(shape) // TYPES[kind].numbers * TYPES[kind].size)
    partial = path.with_name(f".{path.name}.partial")
    with explaining_write_errors(path):
        try:
            with open(partial, "wb") as stream:
                first = np.frombuffer(b"".join(header), np.uint8)
                for raw in itertools.chain([first], map(packed, tensors)):
                    stream.write(raw.data)
                    stream.write(bytes(_padded(raw.size) - raw.size))
                os.fsync(stream.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _entry(value: Any) -> bytes:
    """A value behind its type."""
    if isinstance(value, list | tuple):
        each = type(value[0]) if value else str
        numbers = 5 if each is int else FORMATS[each]  # lists of whole numbers have a sign
        items = map(_text, value) if each is str else [np.asarray(value, np.dtype(SCALARS[numbers])).tobytes()]
        return struct.pack("<IIQ", ARRAY, numbers, len(value)) + b"".join(items)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    kind = FORMATS[type(value)] if type(value) is not int or 0 <= value < 1 << 32 else 11
    return struct.pack(f"<I{SCALARS[kind]}", kind, value)
