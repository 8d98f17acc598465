"""Benchmark files: found under a person's directory, checked, and read. Without torch.

`benchmarks.toml` tells which forms of each there are: the authors' own first, then those that others made of it.
"""

import bz2
import csv
import gzip
import hashlib
import io
import lzma
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import orjson
import pyarrow.parquet

from groundup.errors import DataError, MissingError, SettingsError

UNPACKERS = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError)
MALFORMED = (ValueError, LookupError, TypeError, csv.Error, ElementTree.ParseError)


@dataclass(frozen=True)
class Form:
    """One form in which a benchmark file is published."""

    form: str
    """`original` is the authors' own, `reworked: …` says what others made of it."""
    names: tuple[str, ...]
    """How its path may end; * is any part. A zip archive counts as a folder; .gz, .bz2 and .xz are left out."""
    records: int
    """Lines, rows or objects that it has."""
    parts: int = 1
    """Files of one folder that it consists of."""
    sha256: str | None = None
    """Of its content, uncompressed; of several parts one after another, by name."""
    get: str = ""
    """Where it is published."""
    hub: str | None = None
    """The data set of the Hugging Face hub, owner/name, that has files of these names."""

    @property
    def advice(self) -> str:
        return f"get it from {self.get or f'https://huggingface.co/datasets/{self.hub}'}"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark file that was read."""

    form: str
    path: Path
    parts: dict[str, list[Any]]
    """The stem of each part's name → its records."""

    @property
    def is_reworked(self) -> bool:
        return self.form.startswith("reworked")

    @property
    def records(self) -> list[Any]:
        return [record for part in self.parts.values() for record in part]


@cache
def forms() -> dict[str, tuple[Form, ...]]:
    """The forms of each benchmark file by its name here."""
    tables = tomllib.loads(Path(__file__).with_name("benchmarks.toml").read_text("utf-8"))
    return {
        name: tuple(Form(**{**table, "names": tuple(table["names"])}) for table in each)
        for name, each in tables.items()
    }


@dataclass(frozen=True)
class _File:
    """A file on the disk, or in a zip archive there."""

    path: Path
    name: PurePosixPath
    """Its path from the directory on, without the endings of compression and archives."""
    member: str | None = None

    def content(self) -> bytes:
        if self.member is not None:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.member)
        raw = self.path.read_bytes()
        return UNPACKERS[self.path.suffix](raw) if self.path.suffix in UNPACKERS else raw


@dataclass(frozen=True)
class Files:
    """Where a person keeps benchmark files, in whatever folders."""

    directory: Path
    read: dict[str, str] = field(default_factory=dict)
    """Name of each file that was read → its form."""

    def open(self, name: str) -> Benchmark:
        """The file of that name in `benchmarks.toml`, in the first form in which it is there and whole.

        Raises:
            DataError: missing, cut, altered or not readable; says what to get from where.
        """
        wrong: list[DataError] = []
        for form in forms()[name]:
            for files in self._candidates(form):
                try:
                    found = _read(form, files)
                except DataError as error:
                    wrong.append(error)
                else:
                    self.read[name] = form.form
                    return found
        if wrong:
            raise wrong[0]
        first = forms()[name][0]
        damaged = "".join(f". {path} could not be opened: get it again" for path in self._inside[1])
        raise MissingError(f"{self.directory} has no {first.names[0]}: {first.advice}{damaged}")

    def _candidates(self, form: Form) -> Iterator[list[_File]]:
        """What may be the form by its name: the files of one folder where it has several parts."""
        folders: dict[PurePosixPath, dict[str, _File]] = {}
        for file in self._inside[0]:
            path = f"/{file.name}".lower()
            if any(fnmatchcase(path, f"*/{name}".lower()) for name in form.names):
                folder = file.name if form.parts == 1 else file.name.parent
                folders.setdefault(folder, {}).setdefault(file.name.name, file)
        for parts in folders.values():
            yield [parts[name] for name in sorted(parts)]

    @cached_property
    def _inside(self) -> tuple[list[_File], list[Path]]:
        """All files in the directory and below, and the archives there that cannot be opened."""
        if not self.directory.is_dir():
            raise MissingError(
                f"{self.directory} is not a directory; it should be the one that has the benchmark files"
            )
        root, files, damaged = self.directory.resolve(), list[_File](), list[Path]()
        for path in sorted(path for path in self.directory.rglob("*") if path.is_file()):
            name = PurePosixPath(root.name, path.relative_to(self.directory).as_posix())
            if path.suffix != ".zip":
                files.append(_File(path, name.with_suffix("") if path.suffix in UNPACKERS else name))
                continue
            try:
                with zipfile.ZipFile(path) as archive:
                    members = [info.filename for info in archive.infolist() if not info.is_dir()]
            except DAMAGED:
                damaged.append(path)
            else:
                files += (_File(path, name.with_suffix("") / member, member) for member in members)
        return files, damaged


def _read(form: Form, files: Sequence[_File]) -> Benchmark:
    """
    Raises:
        DataError: not what `form` says.
    """
    path = files[0].path if form.parts == 1 or files[0].member else files[0].path.parent
    parts, digest = dict[str, list[Any]](), hashlib.sha256()
    for file in files:
        try:
            content = file.content()
            parts[file.name.stem] = _records(file, content)
        except (*DAMAGED, *MALFORMED) as error:
            raise DataError(f"{file.path} cannot be read ({error}): {form.advice}") from None
        digest.update(content)
    found = Benchmark(form.form, path, parts)
    fault = None
    if len(files) != form.parts:
        fault = f"has {len(files)} files such as {files[0].name.name}, and should have {form.parts}"
    elif len(found.records) != form.records:
        fault = f"has {len(found.records):,} records, and should have {form.records:,}"
    elif form.sha256 not in (None, digest.hexdigest()):
        fault = f"was altered: its SHA-256 is {digest.hexdigest()}, and should be {form.sha256}"
    if fault is not None:
        raise DataError(f"{path} {fault}: {form.advice}")
    return found


class _Record(dict[str, Any]):
    """A record that says where it comes from if it lacks a field."""

    def __init__(self, table: dict[str, Any], origin: Path) -> None:
        super().__init__(table)
        self.origin = origin

    def __missing__(self, name: str) -> Any:
        raise DataError(f"a record of {self.origin} has no {name!r}: it has {', '.join(self)}; get the file again")


def _records(file: _File, content: bytes) -> list[Any]:
    if file.name.suffix == ".parquet":
        return [_Record(row, file.path) for row in pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()]
    text = content.decode("utf-8-sig")
    lines = text.removesuffix("\n").split("\n")
    match file.name.suffix:
        case ".jsonl":
            return [_Record(orjson.loads(line), file.path) for line in lines if line.strip()]
        case ".json":
            value = orjson.loads(text)
            return [_Record(each, file.path) for each in (value if isinstance(value, list) else value["Data"])]
        case ".csv":
            return list(csv.reader(io.StringIO(text, newline="")))
        case ".tsv":
            return [line.rstrip("\r").split("\t") for line in lines]
        case ".xml":
            return ElementTree.fromstring(content).findall("schema")
        case _:
            return list(lines)


def fetch(name: str, directory: Path) -> None:
    """Get a benchmark file from the Hugging Face hub, into a folder of `directory` that is called as its data set.

    Raises:
        SettingsError: it is not on the hub, or the hub's library is not installed.
        DataError: the hub does not answer, or has no such file.
    """
    form = next((form for form in forms()[name] if form.hub), None)
    if form is None or form.hub is None:
        raise SettingsError(f"{name} is not on the Hugging Face hub: {forms()[name][0].advice}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise SettingsError("to fetch files, the hub's library is needed: pip install 'groundup[hub]'") from None
    patterns = ["*" + each.removeprefix(f"{form.hub}/") for each in form.names]
    try:
        snapshot_download(form.hub, repo_type="dataset", allow_patterns=patterns, local_dir=directory / form.hub)
    except (OSError, ValueError) as error:
        raise DataError(f"{form.hub} could not be fetched from the Hugging Face hub: {error}") from None
