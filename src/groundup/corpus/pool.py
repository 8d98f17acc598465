"""Processes that do one task at a time: one that is killed is known by its task, and the others go on.

They are started as a program of their own, so that a script which builds a corpus needs no `if __name__` guard.
"""

import contextlib
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class KilledError(Exception):
    """The process that did a task ended, or took longer than it may."""


@dataclass(frozen=True)
class Worker:
    """One of the processes."""

    process: subprocess.Popen[bytes]
    connection: Any
    """Through which tasks go and results come."""


class Pool(Generic[T, R]):
    """Does a function's tasks in other processes; a context manager that ends them.

    Args:
        function: sent to each process once; it, tasks and results should be what `multiprocessing` sends.
        processes: 0 does everything here.
        seconds: that a task may take.

    >>> with Pool(abs, processes=2) as pool:
    ...     list(pool.map([-1, 2, -3]))
    [1, 2, 3]
    """

    def __init__(self, function: Callable[[T], R], processes: int, seconds: float | None = None) -> None:
        self.function, self.processes, self.seconds = function, processes, seconds
        self._free: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
        self._running = set[Worker]()
        self._ended, self._ending = False, threading.Lock()
        for _ in range(processes):
            self._free.put(None)

    def __enter__(self) -> "Pool[T, R]":
        return self

    def __exit__(self, *error: object) -> None:
        self._ended = True
        for worker in list(self._running):
            self._end(worker)

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
                return self.do(task)
            except KilledError:
                continue
        if otherwise is None:
            raise KilledError
        return otherwise(task)

    def do(self, task: T) -> R:
        """The result of one task.

        Raises:
            KilledError: the process was killed.
        """
        worker = self._free.get()
        timer: threading.Timer | None = None
        try:
            worker = worker or self._start()
            if self.seconds is not None:
                timer = threading.Timer(self.seconds, worker.process.kill)
                timer.start()
            worker.connection.send(task)
            error, result = worker.connection.recv()
        except (OSError, EOFError):
            if worker is not None:
                self._end(worker)
            worker = None
            raise KilledError from None
        finally:
            if timer is not None:
                timer.cancel()
            self._free.put(worker)
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]  # what the function gave

    def _end(self, worker: Worker) -> None:
        with self._ending:
            if worker not in self._running:
                return
            self._running.remove(worker)
        worker.process.kill()
        worker.process.wait()
        worker.connection.close()

    def _start(self) -> Worker:
        if self._ended:
            raise EOFError
        here, there = Pipe()
        command, nothing = [sys.executable, "-m", __name__, str(there.fileno())], subprocess.DEVNULL
        worker = Worker(subprocess.Popen(command, pass_fds=[there.fileno()], stdin=nothing, stdout=nothing), here)
        there.close()
        self._running.add(worker)
        here.send(sys.path)
        here.send(self.function)
        here.recv()  # it has begun: only now its time counts
        return worker


def serve(number: int) -> None:
    """Be one of the processes: do what comes in through this file descriptor, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the first process ends the others
    with Connection(number) as connection, contextlib.suppress(EOFError, OSError):
        sys.path[:] = connection.recv()
        function = connection.recv()
        connection.send("ready")
        while True:
            task = connection.recv()
            error: Exception | None = None
            result = None
            try:
                result = function(task)
            except Exception as raised:
                error = raised
            connection.send((error, result))


if __name__ == "__main__":
    serve(int(sys.argv[1]))
