"""Bytes on disk: atomic writes, readers of plain, compressed and TOML files, digests, and errors that name the path."""

import bz2
import contextlib
import difflib
import errno
import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
import sys
import tomllib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from groundup.errors import DataError, MissingError, ResourceError, SettingsError, refuse_not_utf8
from groundup.words import shortened

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
"""Suffixes of files that can run any program when they are loaded. llama2.c's `.bin` files are none."""
Progress = Callable[[int, int, str], None]
"""A long job calls `progress(done, total, note)`; the command line draws it."""


def no_progress(done: int, total: int, note: str) -> None:
    """For callers that show no progress."""


def canonical_json(value: Any) -> bytes:
    """One byte string for one value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_of_file(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, whole or not at all."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write `text` under a temporary name, then rename: a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.partial")
    with explaining_write_errors(path):
        with open(partial, "w", encoding="utf-8", errors="backslashreplace") as stream:  # names that are not UTF-8
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        sync_directory(path.parent)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a .jsonl file that a running process appends to; a line that is none is left out."""
    lines = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict)]


def locate(name: str, beside: Path, what: str) -> Path:
    """The path that a recipe names, looked for beside the recipe first, then from the working directory.

    Raises:
        MissingError: naming the paths where it is not.
    """
    try:
        expanded = Path(name).expanduser()
    except RuntimeError:
        raise MissingError(f"{what} {name} is missing: there is no user of that name") from None
    tried = [beside / expanded, expanded]
    for path in tried:
        with contextlib.suppress(OSError):  # such as a name that is too long
            if path.exists():
                return path
    paths = " and ".join(dict.fromkeys(str(path.absolute()) for path in tried))
    hint = f". Nothing in {name} is filled in from the environment: write the path out" if "$" in name else ""
    raise MissingError(f"{what} {name} is missing: looked at {paths}{hint}")


def require_path(path: Path, wanted: str) -> None:
    """
    Raises:
        DataError: when nothing is there, with what may have been meant.
    """
    refuse_not_utf8(path)
    if path.exists():
        return
    there = [*path.parent.glob("*"), *Path("runs").glob("*")]
    run = Path("runs") / path
    near = difflib.get_close_matches(path.name, [other.name for other in there], n=1)
    meant = run if run.exists() else next((other for other in there if [other.name] == near), None)
    raise DataError(f"no {wanted} at {path}" + (f"; did you mean {meant}?" if meant else ""))


@contextlib.contextmanager
def explaining_write_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into a `ResourceError` that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(next(each for each in (path, *path.parents) if each.exists())).free
            raise ResourceError(
                f"no room to write {path}: {error.strerror}, {free:,} bytes free there. "
                "Free some space and run the same command again; nothing half-written was kept"
            ) from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise SettingsError(f"{path} cannot be made: {error.strerror} ({error.filename})") from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise ResourceError(
                f"cannot write {path}: {error.strerror}. Make it writable, or choose another place (a run's with --run)"
            ) from error
        raise


@contextlib.contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed by its suffix.

    Raises:
        DataError: missing, unreadable, or a compressed stream that is damaged or cut short.
        ResourceError: a zstd frame whose window does not fit into memory.
    """
    opener = OPENERS.get(path.suffix.lower(), contextlib.nullcontext)
    try:
        with open(path, "rb") as raw, opener(raw) as stream:
            yield stream
    except zstd.ZstdError as error:
        if "memory" in str(error):
            raise ResourceError(
                f"{path} needs more memory than there is: {error}. Its zstd window is too long for this machine: "
                "unpack it elsewhere (zstd -d --long=31), and name the unpacked file"
            ) from None
        raise DataError(f"{path} is damaged or cut short: {error}") from None
    except DAMAGED as error:
        raise DataError(f"{path} is damaged or cut short: {error}") from None
    except OSError as error:
        damaged = f"{path} is damaged or cut short: {error}"  # as bz2 says it
        raise DataError(f"cannot read {path}: {error.strerror}" if error.strerror else damaged) from None


DAMAGED = (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, zstd.ZstdError)
"""What is raised where a compressed stream is damaged or cut short; bz2 raises OSError."""
ANY_WINDOW = {int(zstd.DecompressionParameter.window_log_max): 31}
"""Frames as `zstd --long=31` writes them are read, too. Memory is taken as it fills."""
OPENERS: dict[str, Callable[[BinaryIO], contextlib.AbstractContextManager[Any]]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw, mode="rb"),
    ".xz": lzma.LZMAFile,
    ".bz2": bz2.BZ2File,
    ".zst": lambda raw: zstd.ZstdFile(raw, options=ANY_WINDOW),
}
"""Suffix in lower case → what decompresses it."""


# TOML

MAX_FILE_BYTES = 1 << 18
"""A recipe is a few kilobytes; a larger file is something else, and is not parsed."""


def read_toml(file: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        DataError: no such file, with what may have been meant.
        SettingsError: not TOML, naming the line; or far too large for a recipe.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.toml").write_text("[pretrain]\\nsteps = 500")
    ...     read_toml(Path(folder, "a.toml"))
    {'pretrain': {'steps': 500}}
    """
    try:
        with open(file, "rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except PermissionError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"no recipe file {file}{_instead_of(file, error)}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise SettingsError(
            f"{file} has {max(len(raw), file.stat().st_size):,} bytes; a recipe is a few kilobytes of TOML, at most "
            f"{MAX_FILE_BYTES:,} are read. If it is text to learn from, name it in a recipe: [corpus] sources = [...]"
        )
    try:
        return tomllib.loads(raw.decode())
    except RecursionError:
        why = "tables or arrays are nested too deeply"
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        why = f"line {line} is not UTF-8 ({error.reason})"
    except tomllib.TOMLDecodeError as error:
        why = _with_the_line(str(error), raw.decode())
    except ValueError:
        why = "it has a number of thousands of digits"
    other = {".yaml": "YAML", ".yml": "YAML", ".json": "JSON"}.get(file.suffix)
    hint = f". By its name it is {other}; a recipe is TOML: [pretrain], and under it steps = 500" if other else ""
    raise SettingsError(f"{file} is not valid TOML: {why}{hint}")


def _instead_of(file: Path, error: Exception) -> str:
    """What may have been meant by a file that is not there."""
    if (file / "recipe.toml").is_file():
        return f": it is a run; `groundup inspect {file}` says how to go on with it"
    if file.with_name(f"{file.name}.toml").is_file():
        return f"; did you mean {file.with_name(f'{file.name}.toml')}?"
    if isinstance(error, OSError) and file.is_dir():
        return ": it is a folder"
    there = sorted(str(path) for path in file.parent.glob("*.toml")) if file.parent.is_dir() else []
    return f"; recipes there: {', '.join(there)}" if there else ""


def _with_the_line(message: str, text: str) -> str:
    """tomllib's complaint, the line first and its text after it."""
    match = re.fullmatch(r"(?s)(.*) \(at line (\d+), column \d+\)", message)
    if not match:
        return message[:1].lower() + message[1:]
    line = text.split("\n")[int(match[2]) - 1].strip()
    quoted = f": {shortened(line)}" if line else ""
    if match[1] == "Invalid value":
        quoted += " (words stand in quotes)"
    return f"line {match[2]}, {match[1][:1].lower()}{match[1][1:]}{quoted}"
