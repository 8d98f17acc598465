"""Directories that are whole or absent: written aside, digested, renamed into place, checked before use.

Every artifact is a directory whose `manifest.json` is written last. The digest of a directory is the sha256 of the
canonical JSON of its manifest without `made`, so two directories with equal contents and origins have equal digests.
"""

import contextlib
import dataclasses
import difflib
import errno
import fcntl
import gzip
import hashlib
import io
import json
import lzma
import os
import platform
import shlex
import shutil
import socket
import stat
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from groundup.errors import DamagedError, DataError, MissingError, ResourceError, SettingsError, refuse_not_utf8

FORMAT = 1
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
"""Suffixes of files that can run any program when they are loaded. llama2.c's `.bin` files are none."""
UNSEALED = {"code", "torch", "python", "machine", "command", "seconds", "at"}
"""What `made` of a manifest had before manifests were sealed."""
Progress = Callable[[int, int, str], None]
"""How a long job says how far it is: `progress(done, total, note)`; the doors draw it."""


def no_progress(done: int, total: int, note: str) -> None:
    """For callers who do not watch."""


@dataclass(frozen=True)
class Manifest:
    """What a directory is, what made it, and the sha256 of everything in it; by `verify` or `read_manifest`."""

    kind: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Name of each input → its digest."""
    files: Mapping[str, tuple[int, str]]
    """Relative path → (bytes, sha256)."""
    statistics: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """The sha256 of all but `made`: that of the directory."""
        identity = {name: value for name, value in dataclasses.asdict(self).items() if name != "made"}
        return hashlib.sha256(canonical_json(identity)).hexdigest()


def canonical_json(value: Any) -> bytes:
    """One byte string for one value: sorted keys, no blanks, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_of_file(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass
class Draft:
    """A directory while it is being made, by `making`: write files under `path`, then leave `statistics` behind."""

    path: Path
    statistics: dict[str, Any] = field(default_factory=dict)
    seconds_before: float = 0.0
    """What the work took that was done before the directory was opened; recorded with the rest."""
    meant: dict[str, str] = field(default_factory=dict)
    """Path → sha256 of what was given to the system to write; a file that reads back as another is not accepted."""


@contextlib.contextmanager
def making(directory: Path, kind: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> Iterator[Draft]:
    """Make `directory` all at once: the caller fills `draft.path`; on success it gets its manifest and its name.

    An exception leaves nothing behind; a killed process leaves a `.partial` directory that the next attempt removes.

    Args:
        kind: a word for what it is, by which `verify` knows it.
        settings: that it is made with, as JSON values.
        inputs: name of each thing that it is made from → its digest.

    Raises:
        ResourceError: disk full, or a place where nothing may be written, naming it.
        DamagedError: a file that does not read back as it was meant.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with making(Path(folder, "notes"), "note", settings={}, inputs={}) as draft:
    ...         _ = (draft.path / "text").write_text("hello")
    ...         draft.statistics["letters"] = 5
    ...     manifest = verify(Path(folder, "notes"), "note")
    ...     assert read_manifest(Path(folder, "notes")) == manifest
    >>> manifest.statistics, manifest.files["text"][0], manifest.digest[:8]
    ({'letters': 5}, 5, 'ce671987')
    """
    started = time.monotonic()
    partial = directory.with_name(f".{directory.name}.partial")
    with naming_the_place(directory):
        refuse_in_the_way(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            draft = Draft(partial)
            yield draft
            _let_others_read(partial)
            files = _digest_files(partial)
            for name, sha256 in draft.meant.items():
                if files[name][1] != sha256:
                    raise DamagedError(
                        f"{directory / name} was written, but reads back as something else: check that disk"
                    )
            manifest = Manifest(
                kind=kind,
                settings=dict(settings),
                inputs=dict(inputs),
                files=files,
                statistics=draft.statistics,
                made=_provenance(draft.seconds_before + time.monotonic() - started),
            )
            write_manifest(partial, manifest)
            _rename_over(partial, directory)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def refuse_in_the_way(directory: Path) -> None:
    """Refuse a place where something stands that is not an artifact: it may be a person's own.

    Raises:
        SettingsError: naming it.
    """
    if directory.exists() and not is_made(directory):
        raise SettingsError(
            f"{directory} is in the way: it is not an artifact of groundup, or has lost its manifest.json. "
            "Move it, or use another --run"
        )


def _let_others_read(directory: Path) -> None:
    """Give the files in a new directory the mode that `open` gives: some libraries write for their owner alone.

    What the umask allows is told by the directory itself; to ask the process for it is to change it in all threads.
    """
    wanted = directory.stat().st_mode & 0o666
    for path in directory.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_file() and mode | wanted != mode:
            with contextlib.suppress(PermissionError):  # a file system whose modes are fixed
                path.chmod(mode | wanted)


def _digest_files(directory: Path) -> dict[str, tuple[int, str]]:
    files = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
            files[path.relative_to(directory).as_posix()] = (path.stat().st_size, sha256_of_file(path))
    return files


def _provenance(seconds: float) -> dict[str, Any]:
    torch = sys.modules.get("torch")  # told, if this process used it; never imported for this
    return {
        "code": metadata.version("groundup"),
        "torch": str(torch.__version__) if torch else None,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seconds": round(seconds, 3),
        "at": _now(),
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _rename_over(partial: Path, directory: Path) -> None:
    """Give `partial` its final name. Killed between the renames, the old one is gone and its stage runs again."""
    _sync_directory(partial)
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    _sync_directory(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, whole or not at all."""
    write_text(path, _json(value))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write `text` under a temporary name, then rename: a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.partial")
    with naming_the_place(path):
        with open(partial, "w", encoding="utf-8", errors="backslashreplace") as stream:  # names that are not UTF-8
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        _sync_directory(path.parent)


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
        MissingError: naming the places where it is not.
    """
    with contextlib.suppress(RuntimeError):  # `~nobody` has no home
        tried = [beside / Path(name).expanduser(), Path(name).expanduser()]
        for path in tried:
            with contextlib.suppress(OSError):  # such as a name that is too long
                if path.exists():
                    return path
        places = " and ".join(dict.fromkeys(str(path.absolute()) for path in tried))
        hint = f". Nothing in {name} is filled in from the environment: write the path out" if "$" in name else ""
        raise MissingError(f"{what} {name} is missing: looked at {places}{hint}")
    raise MissingError(f"{what} {name} is missing: there is no user of that name")


def refuse_nothing(path: Path, wanted: str) -> None:
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
def naming_the_place(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into a `ResourceError` that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(_existing(path)).free
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


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def is_made(directory: Path) -> bool:
    """Whether there is a finished artifact here."""
    return (directory / "manifest.json").is_file()


def read_manifest(directory: Path, kind: str | None = None) -> Manifest:
    """The manifest of an artifact, `directory`, of the given kind if one is asked for; its files are not read.

    Raises:
        DataError: missing, unreadable or of another kind.

    >>> read_manifest(Path("nowhere"))
    Traceback (most recent call last):
    ...
    groundup.errors.DataError: nowhere is not a finished artifact: it has no manifest.json
    """
    path = directory / "manifest.json"
    if not path.is_file():
        raise DataError(f"{directory} is not a finished artifact: it has no manifest.json")
    try:
        written = path.read_bytes()
        raw = json.loads(written)
        if not set(raw["made"]) <= UNSEALED and written.decode() != _json(_sealed(raw)):
            raise ValueError("it is not what was written")
        manifest = Manifest(**{**raw, "files": {name: tuple(value) for name, value in raw["files"].items()}})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(f"{path} is damaged: {error}{_make_again(directory)}") from None
    if manifest.format != FORMAT:
        raise DataError(f"{directory} has format {manifest.format}; this version reads format {FORMAT}")
    if kind is not None and manifest.kind != kind:
        raise DataError(f"{directory} is of kind {manifest.kind!r}; a directory of kind {kind!r} is wanted here")
    return manifest


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json` with a seal in `made`, so that a change of any byte of it is noticed when it is read."""
    write_json(directory / "manifest.json", _sealed(dataclasses.asdict(manifest)))


def _sealed(raw: dict[str, Any]) -> dict[str, Any]:
    """With the sha256 of all the rest as `made.seal`."""
    made = {name: value for name, value in raw["made"].items() if name != "seal"}
    seal = hashlib.sha256(canonical_json({**raw, "made": made})).hexdigest()
    return {**raw, "made": {**made, "seal": seal}}


def verify(directory: Path, kind: str | None = None) -> Manifest:
    """Read the manifest of `directory`, of this `kind` if one is given, and check every byte against it.

    Raises:
        DataError: naming the first file that is missing, of another size, or changed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with making(Path(folder, "notes"), "note", settings={}, inputs={}) as draft:
    ...         _ = (draft.path / "text").write_text("hello")
    ...     _ = Path(folder, "notes", "text").write_text("jello")
    ...     try:
    ...         verify(Path(folder, "notes"))
    ...     except DamagedError as error:
    ...         print(str(error).partition("damaged: ")[2])
    the sha256 of text is not the one that was written
    """
    return check(directory, kind, digest_up_to=None)


def check(directory: Path, kind: str | None = None, digest_up_to: int | None = 1 << 26) -> Manifest:
    """Read the manifest and check sizes against it, and the digests of files of at most `digest_up_to` bytes.

    Raises:
        DataError: naming the first file that is missing, of another size, or changed.
    """
    manifest = read_manifest(directory, kind)
    for why in damage(directory, manifest, digest_up_to):
        raise DamagedError(f"{directory} is damaged: {why}{_make_again(directory)}")
    return manifest


def _make_again(directory: Path) -> str:
    """The next step where something in a run is damaged."""
    run = directory.parent
    if not (run / "recipe.toml").is_file():
        return ""
    return f". Make it again: `groundup {shlex.join(['build', f'{run}/recipe.toml', '--run', str(run), '--replace'])}`"


def damage(
    directory: Path, manifest: Manifest, digest_up_to: int | None = None, progress: Progress = no_progress
) -> Iterator[str]:
    """For each file that is missing, of another size, or changed: which, and how."""
    done, total = 0, sum(size for size, _ in manifest.files.values())
    for name, (size, sha256) in manifest.files.items():
        path = directory / name
        progress(done, total, name)
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != size:
            yield f"{name} has {path.stat().st_size:,} bytes, {size:,} were written"
        elif (digest_up_to is None or size <= digest_up_to) and sha256_of_file(path) != sha256:
            yield f"the sha256 of {name} is not the one that was written"
        done += size


def share(source: Path, target: Path) -> None:
    """Give a finished artifact a second name without a second copy (hard links; copies where links cannot be)."""
    refuse_in_the_way(target)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with naming_the_place(target):
        shutil.copytree(source, partial, copy_function=_link_or_copy)
        _rename_over(partial, target)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextlib.contextmanager
def held(directory: Path) -> Iterator[Path]:
    """Keep an artifact from being removed by `remove_unless_held` of another process while it is read here.

    Raises:
        DataError: it is not there, or not any more.
    """
    path = directory / "manifest.json"
    try:
        stream = open(path, "rb")  # noqa: SIM115 (closed below)
    except OSError:
        raise DataError(f"{directory} is not a finished artifact: it has no manifest.json") from None
    with stream:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_SH)
        if not path.exists():
            raise DataError(f"{directory} was removed just now")
        yield directory


def remove_unless_held(directory: Path) -> bool:
    """Remove an artifact, at once as far as others can see; not while another process holds it. Whether it is gone."""
    with contextlib.ExitStack() as opened:
        try:
            stream = opened.enter_context(open(directory / "manifest.json", "rb"))
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # no manifest, or a file system without locks
        aside = directory.with_name(f".{directory.name}.removed")
        shutil.rmtree(aside, ignore_errors=True)
        directory.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
    return True


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold `directory/lock` while this process works there; a killed process lets go by itself, and leaves its note.

    Raises:
        ResourceError: naming the process that holds it.
    """
    refuse_not_utf8(directory)
    path = directory / "lock"
    with naming_the_place(path):
        directory.mkdir(parents=True, exist_ok=True)
        stream = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (closed below)
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise ResourceError(
                f"{directory} is in use by {stream.read().strip() or 'another process'}: "
                "wait for it to end, or build elsewhere with --run"
            ) from None
        except OSError as error:
            raise ResourceError(
                f"{path} cannot be locked: {error.strerror}. Build on another disk with --run"
            ) from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}, since {_now()}\n")
        stream.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                stream.truncate(0)


def lock_note(directory: Path) -> tuple[str, bool]:
    """Who wrote their name into the lock, and whether they hold it; a name that holds nothing was killed."""
    try:
        with open(directory / "lock", encoding="utf-8") as stream:
            note = stream.read().strip()
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return note, True
            return note, False
    except (OSError, UnicodeDecodeError):
        return "", False


class _CheckedZstd(io.RawIOBase):
    """zstd frames, one after another. zstandard's own stream reader takes a file cut in half for a whole one."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while len(self._ready) < len(buffer):
            if self._frame is not None and self._frame.eof:
                compressed, self._frame = self._frame.unused_data, None
            else:
                compressed = b""
            compressed = compressed or self._stream.read(1 << 12)  # small: few bytes may unfold into megabytes
            if not compressed:
                if self._frame is not None:
                    raise EOFError("the file ends in the middle of a zstd frame")
                break
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()
            self._ready += self._frame.decompress(compressed)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Digested(io.RawIOBase):
    """A file whose bytes go into a sha256 as they are read."""

    def __init__(self, path: Path, sha256: "hashlib._Hash") -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed below)
        self._sha256 = sha256

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._sha256.update(memoryview(buffer)[:count])
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@contextlib.contextmanager
def reading(path: Path, learn: Callable[[str], None] | None = None) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed by its suffix.

    Args:
        learn: is told the sha256 of the file as it lies on disk, taken of the very bytes that were read here, once the
            block has ended by itself; what it left unread is read then.

    Raises:
        DataError: missing, unreadable, or a compressed stream that is damaged or cut short.
        ResourceError: a zstd frame whose window does not fit into memory.
    """
    sha256 = hashlib.sha256()
    opener = OPENERS.get(path.suffix.lower(), _plain)
    try:
        raw = open(path, "rb") if learn is None else io.BufferedReader(_Digested(path, sha256))  # noqa: SIM115
        with raw, opener(raw) as stream:
            yield stream
            if learn is not None:
                while raw.read(1 << 20):
                    pass
                learn(sha256.hexdigest())
    except zstandard.ZstdError as error:
        if "memory" in str(error):
            raise ResourceError(
                f"{path} needs more memory than there is: {error}. Its zstd window is too long for this machine: "
                "unpack it elsewhere (zstd -d --long=31), and name the unpacked file"
            ) from None
        raise DataError(f"{path} is damaged or cut short: {error}") from None
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged or cut short: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def _plain(raw: BinaryIO) -> BinaryIO:
    return raw


def _unzipped(raw: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.open(raw, "rb"))


def _unpacked_xz(raw: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, lzma.open(raw, "rb"))


def _unpacked_zstd(raw: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_CheckedZstd(raw)))


LARGEST_WINDOW = 1 << 31
"""Bytes of a zstd frame, as `zstd --long=31` writes it. Memory is taken as it fills."""
OPENERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {".gz": _unzipped, ".xz": _unpacked_xz, ".zst": _unpacked_zstd}
"""By the suffix in small letters."""
