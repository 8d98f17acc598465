"""Watch: whether ranks agree on what they must, which of them hangs, which is slow, and what their time goes into."""

import contextlib
import faulthandler
import functools
import json
import os
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, Work
from torch.distributed.distributed_c10d import _get_default_store

from groundup.errors import ResourceError, SettingsError
from groundup.files import explaining_write_errors
from groundup.processes.agent import tell
from groundup.words import plural

LOOKS = 20
"""How often within `timeout_seconds` a rank looks after the others, but at least once in `SECONDS_BETWEEN_LOOKS`."""
SECONDS_BETWEEN_LOOKS = 10.0
SLOWER = 1.5
"""A rank is slow when it computes so many times as long as the middle one, and"""
SECONDS_SLOWER = 0.5
"""so much longer: less may be any machine's unrest."""


def compare(facts: Mapping[str, str]) -> None:
    """Refuse ranks that differ in what all must have alike.

    Args:
        facts: this rank's, by what they are in words, such as "torch" → its version.

    Raises:
        SettingsError: on every rank, naming a fact that differs, a rank, and both values.
    """
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, dict(facts))
    for what, first in everyone[0].items():
        others = {rank: theirs.get(what) for rank, theirs in enumerate(everyone) if theirs.get(what) != first}
        if others:
            rank, value = next(iter(others.items()))
            more = f", {plural(len(others) - 1, 'other rank')} differ, too" if len(others) > 1 else ""
            raise SettingsError(
                f"ranks differ in {what}: rank 0 has {first}, rank {rank} has {value}{more}. Start all of them "
                "from the same recipe, code and shards"
            )


# Time and bytes


class Meter:
    """What collectives take of this process, while its context is entered: torch's own methods are wrapped, which costs
    about a microsecond a call."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """In which a thread waited for a collective to end."""
        self.sent = 0.0
        """Bytes by the formula of a ring, an all-reduce being a reduce-scatter and an all-gather."""
        self.finished = 0
        """Collectives that were waited for."""
        self.waiting = 0
        """Threads that wait now."""
        self._last = (time.monotonic(), 0.0, 0.0)
        self._plain: list[tuple[type, str, Any]] = []

    def __enter__(self) -> "Meter":
        self._wrap(Work, "wait", self._timed)
        for name, volume in VOLUMES.items():
            if name in vars(ProcessGroup):  # some are called otherwise in other versions of torch
                self._wrap(ProcessGroup, name, functools.partial(self._counted, volume))
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, method in self._plain:
            setattr(owner, name, method)

    def _wrap(self, owner: type, name: str, wrapped: Callable[[Any], Any]) -> None:
        plain = getattr(owner, name)
        self._plain.append((owner, name, vars(owner)[name]))  # what `getattr` gives would no more be bound to a group
        setattr(owner, name, wrapped(plain))

    def _timed(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def wait(work: Work, *rest: Any) -> Any:
            began = time.monotonic()
            self.waiting += 1
            try:
                return plain(work, *rest)
            finally:
                self.waiting -= 1
                self.finished += 1
                self.seconds += time.monotonic() - began

        return wait

    def _counted(self, volume: Callable[[int, Any, Any], float], plain: Callable[..., Any]) -> Callable[..., Any]:
        def collective(group: ProcessGroup, first: Any, *rest: Any) -> Any:
            self.sent += volume(group.size(), first, rest[0] if rest else None)
            return plain(group, first, *rest)

        return collective

    def read(self) -> dict[str, float]:
        """Seconds since the last reading, how many of them in collectives, and bytes sent."""
        now = (time.monotonic(), self.seconds, self.sent)
        names = ("seconds", "collectives", "bytes")
        reading = dict(zip(names, (new - old for new, old in zip(now, self._last, strict=True)), strict=True))
        self._last = now
        return reading


def _bytes(tensors: Any) -> int:
    return sum(each.nbytes for each in ([tensors] if isinstance(tensors, Tensor) else tensors))


def _ring(whole: Callable[[Any, Any], Any], times: int = 1) -> Callable[[int, Any, Any], float]:
    """Each rank sends all parts of the whole but one."""
    return lambda n, first, second: times * (n - 1) / n * _bytes(whole(first, second))


VOLUMES: dict[str, Callable[[int, Any, Any], float]] = {
    "allreduce": _ring(lambda first, second: first, 2),
    "_allgather_base": _ring(lambda first, second: first),
    "all_gather_single": _ring(lambda first, second: first),
    "_reduce_scatter_base": _ring(lambda first, second: second),
    "reduce_scatter_single": _ring(lambda first, second: second),
    "alltoall_base": _ring(lambda first, second: second),
    "all_to_all_single": _ring(lambda first, second: second),
    "broadcast": lambda n, first, second: _bytes(first),
    "send": lambda n, first, second: _bytes(first),
}
"""Method of a process group → bytes that one of its n ranks sends, of the method's first two arguments."""


def by_rank(readings: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Meters' readings of all ranks as seconds by rank: `computing`, `collectives`, and of these `waiting` for slower
    ranks, which is what the rank that waited least did not need; and `bytes` sent.

    >>> by_rank([{"seconds": 3, "collectives": 2, "bytes": 8}, {"seconds": 3, "collectives": 0.5, "bytes": 8}])
    {'computing': [1, 2.5], 'collectives': [2, 0.5], 'waiting': [1.5, 0.0], 'bytes': [8, 8]}
    """
    collectives = [each["collectives"] for each in readings]
    return {
        "computing": [each["seconds"] - each["collectives"] for each in readings],
        "collectives": collectives,
        "waiting": [each - min(collectives) for each in collectives],
        "bytes": [each["bytes"] for each in readings],
    }


def slow_ranks(computing: Sequence[float]) -> list[int]:
    """Ranks that compute much longer than the middle one.

    >>> slow_ranks([1.0, 1.1, 4.0, 0.9])
    [2]
    """
    usual = statistics.median_low(computing)
    return [rank for rank, seconds in enumerate(computing) if seconds > max(SLOWER * usual, usual + SECONDS_SLOWER)]


# Hangs


@dataclass(frozen=True)
class Mark:
    """How far a rank is, as it tells the others."""

    beat: int
    """Grows as long as its process runs."""
    step: int
    where: str
    waits: bool
    """Whether it is in a collective."""
    host: str
    process: int


class Watch:
    """Looks after the ranks from a thread in each of them: one that others wait for longer than `timeout_seconds` is
    named, every rank's stack is written, and all end.

    Each rank tells the others through the store how far it is. Who waits so long in one collective looks at what they
    told: a rank that tells nothing any more has hung, or else one that does not wait itself, or one that is steps
    behind.
    """

    def __init__(self, directory: Path, timeout_seconds: float) -> None:
        self._stacks, self._timeout = directory / "stacks", timeout_seconds
        self._rank, self._size = dist.get_rank(), dist.get_world_size()
        self._interval = min(timeout_seconds / LOOKS, SECONDS_BETWEEN_LOOKS)
        self._store = _get_default_store().clone()  # type: ignore[attr-defined]
        self._store.set_timeout(timedelta(seconds=timeout_seconds))
        self._place = (0, "the start")
        self._beat = 0
        self._collective = (0, 0.0)
        """Number of the collective that is waited for, and since when."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="watch", daemon=True)
        self.meter = Meter()

    def __enter__(self) -> "Watch":
        with explaining_write_errors(self._stacks):
            self._stacks.mkdir(parents=True, exist_ok=True)
        self._file = open(self._stacks / f"rank-{self._rank}.txt", "w", encoding="utf-8")
        self.meter.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self.meter.__exit__()
        self._file.close()

    def mark(self, step: int, where: str) -> None:
        """Remember how far this rank is, for what is said of one that hangs."""
        self._place = (step, where)

    def _look_after(self) -> None:
        while not self._ended.wait(self._interval):
            # from the timer of C, which runs though the interpreter may be held
            faulthandler.dump_traceback_later(self._timeout, file=self._file)
            unreachable = threading.Timer(self._timeout, self._end_alone)
            unreachable.daemon = True
            unreachable.start()
            try:
                self._look()
            except dist.DistError:
                return self._end_alone()
            finally:
                unreachable.cancel()
        return None

    def _look(self) -> None:
        waits, now = self.meter.waiting > 0, time.monotonic()
        number = self.meter.finished if waits else -1
        if number != self._collective[0] or not waits:
            self._collective = (number, now)
        self._beat += 1
        mark = Mark(self._beat, *self._place, waits, socket.gethostname(), os.getpid())
        self._store.set(f"mark/{self._rank}", json.dumps(vars(mark)))
        if self._store.check(["hung"]):
            self._end_with_all()
        waited = now - self._collective[1]
        if waits and waited >= self._timeout:
            own = str(self._rank)
            if self._store.compare_set("accuser", "", own).decode() == own:
                self._accuse(waited)

    def _marks(self) -> dict[int, Mark]:
        keys = {rank: f"mark/{rank}" for rank in range(self._size)}
        return {
            rank: Mark(**json.loads(self._store.get(key))) for rank, key in keys.items() if self._store.check([key])
        }

    def _accuse(self, waited: float) -> None:
        """Say which rank has hung, have every rank write its stack, and end."""
        before = self._marks()
        time.sleep(3 * self._interval)
        marks = self._marks()
        if any(before[rank].step < marks[rank].step for rank in before):
            self._store.delete_key("accuser")  # they go on after all
            return
        silent = [rank for rank in before if rank != self._rank and before[rank].beat == marks[rank].beat]
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - waited))
        error = ResourceError(
            f"{self._suspect(marks, silent)}; others have waited for {waited:.0f} s, since {since}. Where every rank "
            f"is stands in {self._stacks}. Run the same command again: it goes on from the newest checkpoint. If a "
            f"step may take so long, raise parallel.timeout_seconds (now {self._timeout:g})"
        )
        self._store.set("hung", "")
        self._write_stack()
        patience = time.monotonic() + 5 * self._interval
        while self._store.add("stacks", 0) < self._size - len(silent) and time.monotonic() < patience:
            time.sleep(self._interval / 4)
        for rank in silent:
            if marks[rank].host == socket.gethostname():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(marks[rank].process, signal.SIGKILL)
        tell(error, aloud=True)
        self._store.set("told", "")
        os._exit(error.exit_code)

    def _suspect(self, marks: Mapping[int, Mark], silent: Sequence[int]) -> str:
        """Which rank has hung, and why that is believed."""
        absent = [rank for rank in range(self._size) if rank not in marks]
        busy = [rank for rank, theirs in marks.items() if not theirs.waits]
        first = min(marks, key=lambda rank: marks[rank].step)
        if absent:
            return f"rank {absent[0]} has hung before it began"
        if silent:
            rank, why = silent[0], "it does not answer: it was stopped, or its machine or network is gone"
        elif busy:
            rank, why = busy[0], "it computes, or waits for something else than a rank"
        elif marks[first].step < max(theirs.step for theirs in marks.values()):
            rank, why = first, "it waits, too, and is behind"
        else:
            return f"all ranks wait for each other at step {marks[0].step:,} ({marks[0].where})"
        theirs = marks[rank]
        return (
            f"rank {rank} (machine {theirs.host}, process {theirs.process}) has hung at step {theirs.step:,} "
            f"({theirs.where}): {why}"
        )

    def _write_stack(self) -> None:
        faulthandler.dump_traceback(file=self._file, all_threads=True)
        self._store.add("stacks", 1)

    def _end_with_all(self) -> None:
        """A rank has hung, and another rank says so."""
        self._write_stack()
        patience = time.monotonic() + 10 * self._interval
        while not self._store.check(["told"]) and time.monotonic() < patience:
            time.sleep(self._interval / 4)
        os._exit(ResourceError.exit_code)

    def _end_alone(self) -> None:
        """The store, through which ranks speak, does not answer."""
        faulthandler.dump_traceback(file=self._file, all_threads=True)
        os.write(
            2,
            f"groundup: rank {self._rank} on {socket.gethostname()} has not reached the first rank's machine for "
            f"{self._timeout:g} s (parallel.timeout_seconds): it ended, or the network is cut. Run the same command "
            "again: it goes on from the newest checkpoint\n".encode(),
        )
        os._exit(ResourceError.exit_code)
