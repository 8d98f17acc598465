"""The terminal: progress, tables, how errors and Ctrl-C end. Plain text wherever nobody is watching."""

import codecs
import contextlib
import errno
import io
import itertools
import json
import os
import shlex
import shutil
import signal
import sys
import textwrap
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

import typer

from groundup.errors import (
    DataError,
    GroundupError,
    ResourceError,
    SavedAndStopped,
    SettingsError,
    escaped,
    refuse_not_utf8,
)

if TYPE_CHECKING:
    from groundup.building import Say
    from groundup.files import Progress
    from groundup.pretrain.doctor.verdict import Verdict

SECONDS_BETWEEN_LINES = 10.0
DEBUG = "--debug"


def run(app: typer.Typer) -> int:
    """Run the command line; the exit code is that of the error, if any (docs/architecture.md lists them)."""
    if sys.platform.startswith("win"):
        why = "Windows lacks the file locks that runs need (fcntl): run it under WSL 2, see docs/platforms.md"
        return _tell(why, ResourceError.exit_code)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    debug = DEBUG in words[:end]
    try:
        os.getcwd()  # fails where it was removed
        _refuse_paths_not_utf8(words)
        try:
            app([word for word in words[:end] if word != DEBUG] + words[end:])
        except SystemExit as end_of_command:  # how typer ends, after an error of usage too
            sys.stdout.flush()
            return int(end_of_command.code or 0)
        return 0
    except BaseException as error:
        if debug:
            traceback.print_exc()
        return _answer(error, debug)


def _refuse_paths_not_utf8(words: Sequence[str]) -> None:
    """Words that are no UTF-8 may be a text, which is read all the same; as a path they are refused."""
    for word in words:
        path = word.partition("=")[2] if word.startswith("--") else word
        if os.path.lexists(path) or os.path.isdir(os.path.dirname(path)):
            refuse_not_utf8(path)


class _Output(io.FileIO):
    """A descriptor to write to. Once nobody reads the other end, what is written goes nowhere, and the work goes on."""

    has_reader = True

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            self.has_reader = False
            if error.errno != errno.EPIPE:  # such as a full disk: reported once
                raise
            return len(data)


def has_reader() -> bool:
    """Whether standard output may still be read: not once the other end of a pipe, such as `head`, has ended."""
    return getattr(getattr(sys.stdout.buffer, "raw", None), "has_reader", True)


def open_standard_streams() -> None:
    """Make the process's streams fit for any text, and open on nothing those that it was started without: else the next
    file that is opened would take their place, and get what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    codecs.register_error("groundup.escape", _escape)
    warnings.showwarning = _show_warning
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (open as long as the process)
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.stdout, sys.stderr = _fit_for_any_text(sys.stdout, 1), _fit_for_any_text(sys.stderr, 2)


def _fit_for_any_text(stream: TextIO | None, number: int) -> TextIO:
    """A stream to this descriptor, and in the encoding of the one that Python made; another program's own is left."""
    if stream is not None:
        try:
            if stream.fileno() != number:
                return stream
        except OSError:
            return stream
        stream.flush()
    raw = _Output(number, "w", closefd=False)
    encoding = "utf-8" if stream is None else stream.encoding
    by_line = number == 2 or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "groundup.escape", line_buffering=by_line)


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""Escape characters that the terminal's encoding does not have; bytes of names that are not UTF-8 as \xe9."""
    assert isinstance(error, UnicodeEncodeError), "only for writing"
    return escaped(error.object[error.start : error.end]), error.end


def _answer(error: BaseException, debug: bool) -> int:
    """Tell what went wrong; the exit code."""
    match error:
        case SavedAndStopped():
            return _tell(f"{error}. Go on with: {command(*sys.argv[1:])}", error.exit_code)
        case GroundupError():
            return _tell(str(error), error.exit_code)
        case Interrupted():
            return _tell("stopped", 128 + error.args[0])
        case MemoryError():
            return _tell(OUT_OF_MEMORY, ResourceError.exit_code)
        case FileNotFoundError() if error.filename is None:
            why = "the working directory does not exist any more: change to one that does"
            return _tell(why, ResourceError.exit_code)
        case OSError() if error.errno in MISSING and error.filename is not None:
            return _tell(f"{_name(error.filename)}: {error.strerror}", DataError.exit_code)
        case OSError() if error.errno in REFUSED or (error.errno and error.filename is not None):
            return _tell(f"{_name(error.filename or 'writing')}: {error.strerror}", ResourceError.exit_code)
        case UnicodeEncodeError() if any("\ud800" <= c <= "\udfff" for c in error.object[error.start : error.end]):
            name = error.object.encode("utf-8", "groundup.escape").decode()
            return _tell(f"{name} is not UTF-8 and cannot be used here: rename it", SettingsError.exit_code)
        case Exception() if "out of memory" in str(error) or "can't allocate memory" in str(error):
            return _tell(f"{OUT_OF_MEMORY} ({error})", ResourceError.exit_code)
        case Exception():
            if not debug:
                traceback.print_exception(error)
            return _tell("this is a bug in groundup, not your mistake; the lines above say where", 1)
    raise error


OUT_OF_MEMORY = "out of memory: the machine refused this command more of it"
MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.EMFILE)


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM. Not KeyboardInterrupt, which typer would turn into an exit code of its own."""


@contextlib.contextmanager
def keeping(what: str) -> Iterator[None]:
    """Ends an interrupted command as one that can go on, since `what` it finished is kept."""
    try:
        yield
    except Interrupted:
        raise SavedAndStopped(f"stopped; {what} that were finished are kept") from None


def say(is_quiet: bool) -> "Say":
    """Print lines of progress; to standard error where standard output is for programs."""
    return partial(print, file=sys.stderr) if is_quiet else print


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


def _tell(message: str, code: int) -> int:
    print(f"groundup: {_visible(message)}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    print(f"groundup: warning: {_visible(str(message))}", file=sys.stderr)


def _visible(text: str) -> str:
    r"""Control characters, which may come from a file and could steer the terminal, as their escapes.

    >>> _visible("a\x1b[31m\nü")
    'a\\x1b[31m\nü'
    """
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _name(path: str | bytes | int) -> str:
    return os.fsdecode(path) if isinstance(path, str | bytes) else f"descriptor {path}"


def print_json(value: object) -> None:
    """JSON for programs: in ASCII, so that it is the same under every locale."""
    print(json.dumps(value), flush=True)


def typed_or_piped(text: str | None) -> bytes | None:
    """The bytes of a text that was typed, or of standard input where `-` asks for it, or nothing was typed and it is no
    terminal; None if there is neither."""
    if text == "-" or (text is None and not sys.stdin.isatty()):
        return sys.stdin.buffer.read()
    return None if text is None else text.encode("utf-8", "surrogateescape")


def own_name() -> str:
    """The name by which this program was called, as one would type it again."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return "python -m groundup"
    found = shutil.which(called.name)
    if found and called.exists() and called.samefile(found):
        return called.name
    return os.path.relpath(called) if called.is_absolute() else str(called)


def command(*words: object) -> str:
    """A command of ours to be tried next, as one would type it."""
    return f"{own_name()} {shlex.join(map(str, words))}"


Block = str | Sequence[Sequence[str]]
"""A text, or the cells of a table row by row."""


def show(*blocks: Block, then: Sequence[str] = (), instead: object = False) -> None:
    """Print texts and tables with an empty line between two of them, then the commands to try next.

    Args:
        instead: a value to be printed in their place, as JSON; none if it is False.
    """
    if instead is not False:
        print_json(instead)
        return
    parts = [block if isinstance(block, str) else _table(block) for block in blocks if block]
    if then:
        parts.append("\n  ".join(["Try next:", *then]))
    print("\n\n".join(parts))


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Cells in columns, two spaces between them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


MARKS = {"ok": "✓", "warning": "!", "error": "✗"}


def print_verdict(verdict: "Verdict", first_of_group: bool) -> None:
    """Print level, check and finding of a verdict of the doctor, and under it what to do."""
    if first_of_group:
        print(f"\n{verdict.group}")
    head = f"  {MARKS[verdict.level]} {verdict.level:<7}  {verdict.check:<20}  "
    space = " " * len(head)
    width = max(len(space) + 40, shutil.get_terminal_size((120, 24)).columns)
    for text, first, others in ((verdict.finding, head, space), (verdict.advice, f"{space}→ ", f"{space}  ")):
        if text:
            print(textwrap.fill(_visible(text), width, initial_indent=first, subsequent_indent=others), flush=True)


TOKEN_COLOURS = ("#b8e6d3", "#ffd9a8", "#c3dcfa", "#f5cfe6")


def print_pre_tokens(pre_tokens: Sequence[Sequence[str]]) -> None:
    """Pre-tokens between bars, the tokens of one between broken bars; on a terminal also in alternating colours."""
    if not sys.stdout.isatty():
        print(f"│{'│'.join(map('¦'.join, pre_tokens))}│")
        return
    from rich.console import Console
    from rich.text import Text

    styles = (f"#000000 on {colour}" for colour in itertools.cycle(TOKEN_COLOURS))
    marked = [Text("¦").join(Text(token, next(styles)) for token in tokens) for tokens in pre_tokens]
    Console().print(Text("│").join([Text(), *marked, Text()]), soft_wrap=True)


def fact_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A fact a row, its name before it; of a table of sentences a row each."""
    rows = []
    for name, value in facts.items():
        lines = [value]
        if isinstance(value, dict) and any(isinstance(inner, str) for inner in value.values()):
            lines = [f"{key}: {_in_words(inner)}" for key, inner in value.items()]
        labels = itertools.chain([name.replace("_", " ")], itertools.repeat(""))
        rows += [(_visible(label), _visible(_in_words(line))) for label, line in zip(labels, lines, strict=False)]
    return rows


def _in_words(value: object) -> str:
    """
    >>> _in_words({"a": 1200, "b": [0.5, "x"]}), _in_words(None)
    ('a 1,200, b 0.5, x', 'none')
    """
    match value:
        case dict():
            return ", ".join(f"{key} {_in_words(inner)}" for key, inner in value.items()) or "none"
        case list():
            return ", ".join(map(_in_words, value)) or "none"
        case int() if not isinstance(value, bool):
            return f"{value:,}"
        case float():
            return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
        case None:
            return "none"
        case _:
            return str(value)


@contextlib.contextmanager
def watch(stage: str) -> Iterator["Progress"]:
    """A progress bar on a terminal; now and then a plain line elsewhere. Both on standard error."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn(f"{stage:<10}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}", markup=False),
        )  # fmt: skip
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda done, total, note: bar.update(task, completed=done, total=total, description=note)
        return
    last = time.monotonic()

    def plain(done: int, total: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{stage}: {done:,} of {total:,} {note}".rstrip(), file=sys.stderr, flush=True)

    yield plain
