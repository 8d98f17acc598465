"""Processes that do one task at a time: one that is killed is known by its task, and the others go on.

They are started as a program of their own, so that a script which builds a corpus needs no `if __name__` guard.
"""

import contextlib
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class KilledError(Exception):
    """The process that did a task ended, or took longer than it may."""


class Pool(Generic[T, R]):
    """Does a function's tasks in other processes; a context manager that ends them.

    Args:
        function: sent to each process once; with its tasks and results it goes through `pickle`.
        processes: 0 does everything here.
        seconds: that a task may take.

    >>> with Pool(abs, processes=2) as pool:
    ...     list(pool.map([-1, 2, -3]))
    [1, 2, 3]
    """

    def __init__(self, function: Callable[[T], R], processes: int, seconds: float | None = None) -> None:
        self.function, self.processes, self.seconds = function, processes, seconds
        self._free: queue.SimpleQueue[subprocess.Popen[bytes] | None] = queue.SimpleQueue()
        self._running = set[subprocess.Popen[bytes]]()
        self._ended = False
        for _ in range(processes):
            self._free.put(None)

    def __enter__(self) -> "Pool[T, R]":
        return self

    def __exit__(self, *error: object) -> None:
        self._ended = True
        for process in list(self._running):
            self._end(process)

    def map(self, tasks: Iterable[T], otherwise: Callable[[T], R] | None = None) -> Iterator[R]:
        """The results in the tasks' order, of which no more than a few are ahead.

        Args:
            otherwise: what is done here instead, where a process was killed twice on a task.

        Raises:
            KilledError: a process was killed twice, and there is no `otherwise`.
        """
        if not self.processes:
            yield from map(self.function, tasks)
            return
        waiting = deque[Future[R]]()
        with ThreadPoolExecutor(self.processes) as threads:
            try:
                for task in tasks:
                    waiting.append(threads.submit(self._twice, task, otherwise))
                    while len(waiting) > 2 * self.processes:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BaseException:  # also where the caller takes no more
                for future in waiting:
                    future.cancel()
                self.__exit__()
                raise

    def _twice(self, task: T, otherwise: Callable[[T], R] | None) -> R:
        for _ in range(2):
            try:
                return self._do(task)
            except KilledError:
                continue
        if otherwise is None:
            raise KilledError
        return otherwise(task)

    def _do(self, task: T) -> R:
        process = self._free.get()
        timer: threading.Timer | None = None
        try:
            process = process or self._start()
            if self.seconds is not None:
                timer = threading.Timer(self.seconds, process.kill)
                timer.start()
            assert process.stdin is not None and process.stdout is not None
            _send(process.stdin, task)
            error, result = _receive(process.stdout)
        except (OSError, EOFError):
            if process is not None:
                self._end(process)
            process = None
            raise KilledError from None
        finally:
            if timer is not None:
                timer.cancel()
            self._free.put(process)
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]  # what the function gave

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.communicate()  # closes the pipes
        self._running.discard(process)

    def _start(self) -> "subprocess.Popen[bytes]":
        if self._ended:
            raise EOFError
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen([sys.executable, "-m", __name__], **pipes)  # type: ignore[call-overload]
        self._running.add(process)
        _send(process.stdin, sys.path)
        _send(process.stdin, self.function)
        return process  # type: ignore[no-any-return]


def _send(stream: IO[bytes], value: Any) -> None:
    raw = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    stream.write(struct.pack("<Q", len(raw)))
    stream.write(raw)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    header = stream.read(8)
    raw = stream.read(struct.unpack("<Q", header)[0]) if len(header) == 8 else b""
    if not raw:
        raise EOFError
    return pickle.loads(raw)


def serve() -> None:
    """Be one of the processes: do what comes in through standard input, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the first process ends the others
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints goes elsewhere
    with contextlib.suppress(EOFError, BrokenPipeError):
        sys.path[:] = _receive(sys.stdin.buffer)
        function = _receive(sys.stdin.buffer)
        while True:
            task = _receive(sys.stdin.buffer)
            error: Exception | None = None
            result = None
            try:
                result = function(task)
            except Exception as raised:
                error = raised
            _send(out, (error, result))


if __name__ == "__main__":
    serve()
