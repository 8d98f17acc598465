"""Preemption: a signal is remembered, and obeyed where nothing is lost."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    """Whether a signal asked this process to stop, and which."""

    asked: str | None = None


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

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
