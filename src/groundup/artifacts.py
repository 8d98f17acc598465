"""Directories that are whole or absent: written aside, digested, renamed into place, checked before use.

Every artifact is a directory whose `manifest.json` is written last. The digest of a directory is the sha256 of the
canonical JSON of its manifest without `made`, so two directories with equal contents and origins have equal digests.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import platform
import shlex
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from groundup.errors import DamagedError, DataError, ResourceError, SettingsError, refuse_not_utf8
from groundup.files import (
    Progress,
    canonical_json,
    explaining_write_errors,
    json_text,
    no_progress,
    sha256_of_file,
    sync_directory,
    write_json,
)

FORMAT = 1
SMALL = 1 << 26
"""Bytes of a file that is quickly digested: what is opened often is verified up to this."""
COMMANDS = {"corpus": "corpus", "tokenizer": "tokenizer", "shards": "pack", "model": "pretrain", "evals": "eval"}
"""The stages of a run in their order, each by the name of its directory, which is also its kind → its command."""


@dataclass(frozen=True)
class Manifest:
    """What a directory is, what made it, and the sha256 of every file in it; by `verify` or `read_manifest`."""

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


@dataclass
class Draft:
    """A directory while it is being made, by `making`: write files under `path`, then leave `statistics` behind."""

    path: Path
    statistics: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Relative path → (bytes, sha256), of files whose writers have digested them and put them on the disk."""
    seconds_before: float = 0.0
    """Time spent before the directory was opened; recorded with the rest."""


@contextlib.contextmanager
def making(directory: Path, kind: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> Iterator[Draft]:
    """Make `directory` all at once: the caller fills `draft.path`; on success it gets its manifest and its name.

    An exception leaves nothing behind; a killed process leaves a `.partial` directory that the next attempt removes.

    Args:
        kind: a word for what it is, by which `verify` knows it.
        settings: that it is made with, as JSON values.
        inputs: name of each thing that it is made from → its digest.

    Raises:
        ResourceError: disk full, or a directory that may not be written, naming it.

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
    with explaining_write_errors(directory):
        refuse_in_the_way(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            draft = Draft(partial)
            yield draft
            manifest = Manifest(
                kind=kind,
                settings=dict(settings),
                inputs=dict(inputs),
                files=_finish_files(partial, draft.digests),
                statistics=draft.statistics,
                made=_provenance(draft.seconds_before + time.monotonic() - started),
            )
            write_manifest(partial, manifest)
            _rename_over(partial, directory)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def refuse_in_the_way(directory: Path) -> None:
    """Refuse a path that holds something other than an artifact: it may be a person's own.

    Raises:
        SettingsError: naming it.
    """
    if directory.exists() and not is_made(directory):
        raise SettingsError(
            f"{directory} is in the way: it is not an artifact of groundup, or has lost its manifest.json. "
            "Move it, or use another --run"
        )


def _finish_files(directory: Path, digested: Mapping[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """Give the files in a new directory the mode that `open` gives, as some libraries write for their owner alone, put
    them on the disk, and digest those that are not.

    The directory itself shows what the umask allows; to ask the process for it is to change it in all threads.
    """
    wanted = directory.stat().st_mode & 0o666
    files = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with contextlib.suppress(PermissionError):  # a file system whose modes are fixed
                path.chmod(stat.S_IMODE(path.stat().st_mode) | wanted)
            name = path.relative_to(directory).as_posix()
            if name in digested:
                files[name] = digested[name]
                continue
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
            files[name] = (path.stat().st_size, sha256_of_file(path))
    return files


def _provenance(seconds: float) -> dict[str, Any]:
    torch = sys.modules.get("torch")  # recorded if this process used it; never imported for this
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
    sync_directory(partial)
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    sync_directory(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


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
        if written.decode() != json_text(_sealed(raw)):
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
    """Set `made.seal` to the sha256 of all the rest."""
    made = {name: value for name, value in raw["made"].items() if name != "seal"}
    seal = hashlib.sha256(canonical_json({**raw, "made": made})).hexdigest()
    return {**raw, "made": {**made, "seal": seal}}


def verify(directory: Path, kind: str | None = None, digest_up_to: int | None = None) -> Manifest:
    """Read the manifest of `directory`, of this `kind` if one is given, and check every byte against it; where a number
    of bytes is given, `digest_up_to`, of larger files only the size.

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
    manifest = read_manifest(directory, kind)
    for why in damage(directory, manifest, digest_up_to):
        raise DamagedError(f"{directory} is damaged: {why}{_make_again(directory)}")
    return manifest


def _make_again(directory: Path) -> str:
    """The next step for a person whose run is damaged."""
    run = directory.parent
    if not (run / "recipe.toml").is_file():
        return ""
    return f". Make it again: `groundup {shlex.join(['build', f'{run}/recipe.toml', '--run', str(run), '--replace'])}`"


def damage(
    directory: Path, manifest: Manifest, digest_up_to: int | None = None, progress: Progress = no_progress
) -> Iterator[str]:
    """Describe each file that is missing, of another size, or changed."""
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
    with explaining_write_errors(target):
        shutil.copytree(source, partial, copy_function=_link_or_copy)
        _rename_over(partial, target)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextlib.contextmanager
def hold(directory: Path) -> Iterator[Path]:
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
    with explaining_write_errors(path):
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
    """The note of the process that took the lock, and whether it holds it still; if not, it was killed."""
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
