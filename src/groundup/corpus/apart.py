"""A process that understands pages and files which may be hostile, with limits of time and memory.

`python -m groundup.corpus.apart` is that process: it reads requests from its input, and ends where its input ends.
"""

import atexit
import contextlib
import functools
import importlib.util
import os
import signal
import struct
import subprocess
import sys
from typing import Any, BinaryIO

import orjson

from groundup.corpus.extract import Extracted, extract
from groundup.errors import MissingError

SECONDS = 10.0
"""Of processor time that one page or file may take; what else the machine does makes no difference."""
MEMORY_BYTES = 4_000_000_000
EXTRAS = {"pdf": ("pypdf", "pdf"), "wiki": ("mwparserfromhell", "wiki"), "quality": ("trafilatura", "html")}
"""What is read → the package it needs, and the extra of ours that brings it."""


def understand(kind: str, raw: bytes, seconds: float | None = None, **settings: Any) -> Extracted:
    """What `extract` finds in a file, or that it took too long.

    Args:
        kind: one of `extract.EXTRACT`.
        seconds: of processor time; `SECONDS`, if not given.

    Raises:
        MissingError: naming the package that is not installed.
    """
    need(settings.get("mode") if settings.get("mode") in EXTRAS else kind)
    process = _process(os.getpid())
    assert process.stdin and process.stdout
    request = {"kind": kind, "seconds": seconds or SECONDS, "settings": settings}
    try:
        for message in (orjson.dumps(request), raw):
            _send(process.stdin, message)
        answer = _receive(process.stdout)
    except BrokenPipeError:
        answer = None
    if answer is not None:
        return Extracted(**orjson.loads(answer))
    _process.cache_clear()
    code = _end(process)
    if code == -signal.SIGPROF:
        return Extracted(reason=f"not read: takes longer than {seconds or SECONDS:g} seconds")
    return Extracted(reason=f"not read: the process that read it ended with {code}")


@functools.cache
def need(kind: str | None) -> None:
    """
    Raises:
        MissingError: the package that reads this is not installed.
    """
    package, extra = EXTRAS.get(kind or "", ("", ""))
    if package and importlib.util.find_spec(package) is None:
        raise MissingError(f"to read {kind}, {package} is needed: pip install 'groundup[{extra}]'")


@functools.cache
def _process(owner: int) -> "subprocess.Popen[bytes]":
    """The process of this one: `owner` is its id, so that one which is forked from it gets its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "groundup.corpus.apart"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    atexit.register(_end, process)
    return process


def _end(process: "subprocess.Popen[bytes]") -> int:
    if process.returncode is None:
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def _send(stream: BinaryIO | Any, message: bytes) -> None:
    stream.write(struct.pack(">Q", len(message)))
    stream.write(message)
    stream.flush()


def _receive(stream: BinaryIO | Any) -> bytes | None:
    """A message, or None where the other side has ended."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    (size,) = struct.unpack(">Q", head)
    message: bytes = stream.read(size)
    return message if len(message) == size else None


def main() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what libraries print is no answer
    while (request := _receive(sys.stdin.buffer)) is not None:
        raw = _receive(sys.stdin.buffer)
        if raw is None:
            return
        asked = orjson.loads(request)
        signal.setitimer(signal.ITIMER_PROF, asked["seconds"])  # its signal ends this process, wherever it is
        answer = orjson.dumps(extract(asked["kind"], raw, asked["settings"]), option=orjson.OPT_NON_STR_KEYS)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(answers, answer)


if __name__ == "__main__":
    main()
