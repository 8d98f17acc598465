"""Sources: files, folders and archives → records → documents. What cannot be read comes out too, with the reason."""

import errno
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO

from groundup.corpus.archives import ARCHIVES, CRAWLS, DAMAGE, BombError, Member, bounded, why
from groundup.corpus.decoding import printable
from groundup.corpus.document import Document
from groundup.corpus.formats import SPLIT, Record, documents, records_of, whole_record
from groundup.corpus.settings import CorpusSettings, Source, path_of
from groundup.errors import DataError, MissingError
from groundup.files import OPENERS, locate, reading

PACKAGED = {"groundup:storybook": "storybook.jsonl.gz", "groundup:shakespeare": "shakespeare.txt.gz"}
NAMES_KEPT = 5
"""Names that are kept of the files left out for one reason."""
MOST_ARCHIVES = 2
"""In one another; a .tar.gz counts once."""
HIDDEN = "hidden, its name begins with a dot"
MARKS = (
    "<|endoftext|>", "<|end_of_text|>", "<|eos|>", "<eos>", "<EOS>", "[EOS]", "</s>", "<|startoftext|>",
    "<|begin_of_text|>",
)  # fmt: skip
"""What tools put between texts in one file: those of GPT-2, Llama 3, Gemma, SentencePiece, gpt-2-simple."""


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
    ...     for name in ("a.txt", "b.png"):
    ...         _ = Path(folder, name).write_text("Once upon a time.", "utf-8")
    ...     found = find(CorpusSettings(sources=(folder,)), Path())
    >>> [path.name for _, path in found.files], found.left_out
    (['a.txt'], Counter({'.png': 1}))
    """
    found = Found()
    for source in map(path_of, settings.sources):
        root = _locate(source, beside)
        if root.is_file():
            if not is_readable(root):
                raise DataError(f"source {source}: nothing here reads {kind_of(root)!r} files; it reads {readable()}")
            found.files.append((source, root))
            continue
        if not root.is_dir():
            raise DataError(f"source {source} ({root}) is a pipe, socket or device; it should be a file or a folder")
        before = len(found.files)
        left_out: Counter[str] = Counter()
        for parts, path, reason in sorted(_walk(root), key=lambda entry: entry[0]):
            name = printable("/".join([source.rstrip("/"), *parts]))
            if reason is None:
                found.files.append((name, path))
                continue
            left_out[reason] += 1
            names = found.left_out_names.setdefault(reason, [])
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
    if not is_readable(path):
        return kind_of(path)
    return None if os.access(path, os.R_OK) else "not readable (Permission denied)"


def describe_left_out(left_out: Mapping[str, int], names: Mapping[str, list[str]]) -> str:
    """What was left out in words, with some names: `3 × .png (texts/a.png, texts/b.png, …)`."""
    parts = []
    for reason, number in sorted(left_out.items()):
        some = names.get(reason, [])[:2]
        parts.append(f"{number:,} × {reason} ({', '.join([*some, '…'] if number > len(some) else some)})")
    return ", ".join(parts)


def _locate(source: str, beside: Path) -> Path:
    if source.startswith("groundup:"):
        if source not in PACKAGED:
            raise DataError(f"no packaged corpus {source}; there is {', '.join(PACKAGED)}")
        return Path(str(resources.files("groundup.data") / PACKAGED[source]))
    return locate(source, beside, "source")


def is_compressed(path: PurePath) -> bool:
    return path.suffix.lower() in OPENERS


def kind_of(path: PurePath) -> str:
    """The suffix that says how a file is read, in small letters: that of `a.TXT.gz` is .txt.

    >>> kind_of(Path("a.TXT.Gz")), kind_of(Path("a.gz")), kind_of(Path("README")), kind_of(Path("a.tgz"))
    ('.txt', '.gz', '(no suffix)', '.tgz')
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if len(suffixes) > 1 and is_compressed(path):
        suffixes.pop()
    return printable(suffixes[-1]) if suffixes else "(no suffix)"


def readable() -> str:
    """The suffixes that are read, for messages."""
    return f"{', '.join((*SPLIT, *ARCHIVES, *CRAWLS))}, also with {', '.join(OPENERS)}"


def is_readable(path: PurePath) -> bool:
    return kind_of(path) in (SPLIT | ARCHIVES | CRAWLS)


def source_of(name: str, settings: CorpusSettings) -> int:
    """The number of the source that a file of this name is of: the longest that its name begins with."""
    paths = [path_of(source).rstrip("/") for source in settings.sources]
    fitting = [number for number, path in enumerate(paths) if name == path or name.startswith(f"{path}/")]
    return max(fitting, key=lambda number: len(paths[number]), default=0)


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


def read(name: str, path: Path, settings: CorpusSettings, ahead: int = sys.maxsize) -> Iterator[Document]:
    """The documents of one file, none longer than `max_document_bytes`: `records`, each understood at once.

    Args: and Raises: as `records`, whose `name`, `path`, `settings` and `ahead` they are.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "a.jsonl")
    ...     _ = file.write_text('{"text": "Once.", "year": 1812}\\n[]\\n')
    ...     found = list(read("a.jsonl", file, CorpusSettings(sources=(folder,))))
    >>> [(each.text, each.source, each.metadata) for each in found[:1]], found[1].reason
    ([('Once.', 'a.jsonl:1', '{"year":1812}')], 'a JSON list, not an object')
    """
    for record in records(name, path, settings, ahead):
        yield from documents(record, settings)


def records(name: str, path: Path, settings: CorpusSettings, ahead: int = sys.maxsize) -> Iterator[Record]:
    """What one file holds, not yet understood: `documents` does that, in any process.

    Args:
        name: what the documents' `source` begins with, and by which their own source is found among the settings.
        path: one of those that `find` gives.
        ahead: how many decoded bytes are looked at first: fewer, where only a sample will be taken.

    Raises:
        DataError: when the file cannot be opened, or its compression is damaged or cut short. (Of an archive what is
            damaged is a record with the reason.)
    """
    source = settings.sources[source_of(name, settings)]
    own = source if isinstance(source, Source) else Source(path=source)
    chosen = {field: value for field in ("text_field", "encoding") if (value := getattr(own, field)) is not None}
    settings = settings.model_copy(update=chosen)
    more = {"licence": own.licence} if own.licence else {}
    with reading(path) as stream:
        packed = path.suffix if is_compressed(path) else ""
        content = bounded(stream, path.stat().st_size) if packed else stream
        try:
            for record in _records(content, name, kind_of(path), packed, settings, ahead):
                yield replace(record, metadata={**more, **record.metadata}) if more else record
        except BombError as error:
            yield Record(name, b"", reason=why(error))


def _records(
    stream: BinaryIO, name: str, kind: str, packed: str, settings: CorpusSettings, ahead: int, depth: int = 0
) -> Iterator[Record]:
    """Args:
    packed: the suffix of the compression; "" if there is none.
    depth: of the archives in which it lies.
    """
    if kind in CRAWLS:
        for member in CRAWLS[kind](stream):
            yield from _answers(member, name, settings)
    elif kind in ARCHIVES:
        try:
            for member in ARCHIVES[kind](stream):
                yield from _in_member(member, f"{name}!{member.name}", settings, ahead, depth + 1)
        except DAMAGE as error:
            yield Record(name, b"", reason=why(error))
    else:
        yield from records_of(stream, name, kind, packed, settings, ahead)


def _in_member(member: Member, name: str, settings: CorpusSettings, ahead: int, depth: int) -> Iterator[Record]:
    path = PurePosixPath(member.name)
    kind, reason = kind_of(path), member.reason
    if reason is None and not is_readable(path):
        reason = f"not read: {kind}"
    elif reason is None and kind in ARCHIVES and depth >= MOST_ARCHIVES:
        reason = f"refused: an archive in more than {MOST_ARCHIVES - 1} other"
    if reason is not None or member.content is None:
        yield Record(name, b"", reason=reason)
        return
    content = member.content
    try:
        if packed := path.suffix if is_compressed(path) else "":
            size = content.seek(0, os.SEEK_END)
            content.seek(0)
            with OPENERS[packed.lower()](content) as stream:
                yield from _records(bounded(stream, size), name, kind, packed, settings, ahead, depth)
        else:
            yield from _records(content, name, kind, "", settings, ahead, depth)
    except (*DAMAGE, DataError) as error:
        yield Record(name, b"", reason=why(error))


def _answers(member: Member, name: str, settings: CorpusSettings) -> Iterator[Record]:
    """The record of a crawl, if it is one of those that hold a page; others tell of pages, and are no documents."""
    name, about = f"{name}@{member.name}", member.headers
    said = {"url": "warc-target-uri", "date": "warc-date", "record": "warc-record-id"}
    metadata = {field: about[header].strip("<>") for field, header in said.items() if header in about}
    if member.reason is not None or member.content is None:
        yield Record(name, b"", reason=member.reason, metadata=metadata)
    elif about.get("warc-type") in ("response", "resource", "conversion"):
        declared, raw = about.get("content-type", ""), member.content.read()
        is_http = "/http" in declared or raw.startswith(b"HTTP/")
        record = whole_record(name, raw, "http" if is_http else "web", settings)
        yield replace(record, declared=declared, metadata=metadata)
