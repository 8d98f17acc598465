"""Preemption: Ctrl-C and SIGTERM are remembered, and obeyed where nothing is lost."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


class AskedToStop(BaseException):
    """A signal asked this process to stop. Not an Exception: whatever is running must let it through."""


@dataclass
class Stop:
    """Whether a signal asked this process to stop, and which."""

    asked: str | None = None
    at_once: bool = False
    """Whether nothing would be lost: then a signal raises `AskedToStop` wherever it comes, such as in a compilation."""

    def check(self, done: int = 0, total: int = 0, note: str = "") -> None:
        """For long jobs that lose nothing but their time, as their `progress`.

        Raises:
            AskedToStop: when a signal came.
        """
        if self.asked:
            raise AskedToStop(self.asked)


@contextlib.contextmanager
def noticing_signals() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM are remembered, to be obeyed between two steps; a second one ends the process at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers; its owner decides
        return

    def remember(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            os._exit(128 + number)
        stop.asked = signal.Signals(number).name
        if stop.at_once:
            stop.check()

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
