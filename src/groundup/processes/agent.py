"""Ranks as processes: how they are started, joined, started again and ended.

On one machine `run_ranks` starts them under torch's elastic agent; under torchrun each process is a rank already, and
only joins. An error is told once, by the rank where it happened first: to the process that started the ranks, which
raises it again, or by itself.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.rendezvous import rendezvous

from groundup import errors
from groundup.errors import GroundupError, ResourceError, SavedAndStopped, SettingsError
from groundup.files import Progress, no_progress, write_text
from groundup.machine import available_cores
from groundup.parallel.settings import ParallelSettings
from groundup.words import plural

GRACE_SECONDS = 5.0
"""A rank whose peers are gone waits so long before it ends, too: who ended first is then known to the agent."""
LONGER_THAN_WATCHED = 2
"""Times `timeout_seconds` after which a collective itself gives up: the watch ends a hung run before, and says why."""


class RankError(Exception):
    """A bug that one rank met; its traceback is part of the text."""


def run_ranks(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    ranks: int,
    settings: ParallelSettings,
    progress: Progress = no_progress,
    say: Callable[[str], None] = print,
) -> Any:
    """Call `function(*arguments, device, ranks, progress)` in each of `ranks` processes, which have joined one process
    group; what it returned on rank 0. The device is the rank's own; the progress of rank 0 reaches `progress`.

    A process that torchrun started is a rank already: it calls the function itself, and `ranks` is not read. Elsewhere
    the ranks are processes of this machine; if one dies, all are started again, up to `settings.restarts` times, so the
    function goes on from what it saved. Ctrl-C and SIGTERM are passed on to them once.

    Args:
        function: a function of a module, as other processes have to find it; its arguments are pickled.
        say: gets a sentence about each new start.

    Raises:
        GroundupError: the one of the rank where it happened first.
        ResourceError: ranks that died once too often.
        RankError: a bug, with the traceback of the rank where it happened first.
    """
    if dist.is_torchelastic_launched():
        return _join_and_call(function, arguments, settings, progress)
    settings.sizes(ranks)
    threads = max(1, available_cores() // ranks)
    with tempfile.TemporaryDirectory(prefix="groundup-ranks-") as folder, _torch_silent(), _handlers_kept():
        word = Word(Path(folder))
        spec = WorkerSpec(
            role="rank",
            local_world_size=ranks,
            entrypoint=_begin,
            args=(threads, function, arguments, settings, word),
            rdzv_handler=get_rendezvous_handler(
                RendezvousParameters("c10d", "localhost:0", "groundup", 1, 1, local_addr="localhost")
            ),
            max_restarts=settings.restarts,
            monitor_interval=0.1,
            local_addr="localhost",
        )
        agent = _Agent(spec, DefaultLogsSpecs(log_dir=folder), settings.timeout_seconds, word, progress, say)
        result, asked = agent.outcome()
        error = word.error()
    if error is not None:
        raise error
    if asked is not None:
        signal.raise_signal(asked)
        raise ResourceError(f"the ranks were ended by {asked.name} before anything was saved: run the command again")
    assert result is not None
    if result.is_failed():
        raise ResourceError(
            f"{_causes(result)}, after {plural(settings.restarts, 'new start')} (parallel.restarts): if memory ran "
            "out, the system's log says so; the same command goes on from the newest checkpoint"
        )
    return result.return_values[0]


def own_device() -> torch.device:
    """The GPU with this rank's number on its machine, where there is one, else the CPU."""
    local_rank = dist.get_node_local_rank(0)
    return torch.device("cuda", local_rank) if local_rank < torch.cuda.device_count() else torch.device("cpu")


class _Agent(LocalElasticAgent):
    """The elastic agent of this machine. What a rank reported is final: it is not tried again."""

    def __init__(
        self,
        spec: WorkerSpec,
        logs: DefaultLogsSpecs,
        patience: int,
        word: "Word",
        progress: Progress,
        say: Callable[[str], None],
    ) -> None:
        super().__init__(spec, logs, shutdown_timeout=patience)
        self._word, self._progress, self._say, self._most = word, progress, say, spec.max_restarts

    def outcome(self) -> tuple[RunResult | None, signal.Signals | None]:
        """What became of the ranks, or the signal that this process got."""
        try:
            return self.run(), None
        except SignalException as stopped:
            return None, signal.Signals(stopped.sigval)
        finally:
            self._worker_group.spec.rdzv_handler.shutdown()

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        hangup = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGQUIT)}
        started: dict[int, Any] = super()._start_workers(worker_group)
        for number, handler in hangup.items():  # torch takes these signals, too, and with them nohup's effect
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(number, handler)
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if (done := self._word.progress()) is not None:
            self._progress(*done)
        if result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
            if self._word.error() is not None:
                self._remaining_restarts = 0
            elif self._remaining_restarts:
                number = self._most - self._remaining_restarts + 1
                self._say(f"{_causes(result)}: all ranks are started again ({number} of at most {self._most} times)")
        return result


def _causes(result: RunResult) -> str:
    """Which ranks ended and how, in words."""
    return " and ".join(
        f"rank {rank} "
        + (f"was ended by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with code {failure.exitcode}")
        for rank, failure in sorted(result.failures.items())
    )


@contextlib.contextmanager
def _torch_silent() -> Iterator[None]:
    """The agent's own warnings and tracebacks are not shown: what they say is said here in a sentence."""
    agent, spawn = logging.getLogger("torch.distributed.elastic"), logging.getLogger("torch.multiprocessing.spawn")
    before, nothing = (agent.propagate, spawn.disabled), logging.NullHandler()
    agent.propagate, spawn.disabled = False, True
    agent.addHandler(nothing)
    try:
        yield
    finally:
        agent.propagate, spawn.disabled = before
        agent.removeHandler(nothing)


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Signals are afterwards handled as before: the agent sets handlers of its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError):  # not the main thread, where the agent has set none
                signal.signal(number, handler)


@dataclass
class Word:
    """What ranks tell the process that started them, in files that are whole even if a rank is killed."""

    folder: Path
    _read: str = ""

    def tell_error(self, kind: str, text: str) -> None:
        write_text(self.folder / "error.json", json.dumps({"kind": kind, "text": text}))

    def error(self) -> Exception | None:
        """The error that a rank reported."""
        if not (path := self.folder / "error.json").exists():
            return None
        told = json.loads(path.read_bytes())
        error: Exception = vars(errors).get(told["kind"], RankError)(told["text"])
        return error

    def tell_progress(self, done: int, total: int, note: str) -> None:
        path = self.folder / "progress.json"
        path.with_suffix(".new").write_text(json.dumps([done, total, note]), encoding="utf-8")
        path.with_suffix(".new").replace(path)

    def progress(self) -> tuple[int, int, str] | None:
        """The progress of rank 0, if there is some since the last time."""
        path = self.folder / "progress.json"
        told = path.read_text("utf-8") if path.exists() else ""
        if told == self._read:
            return None
        self._read = told
        done, total, note = json.loads(told)
        return done, total, note


# In the ranks


def _begin(threads: int, function: Callable[..., Any], *rest: Any) -> Any:
    """A process that `run_ranks` started."""
    os.setpgid(0, 0)  # Ctrl-C in a terminal reaches the agent alone, which passes it on: once, not twice
    torch.set_num_threads(threads)
    return _join_and_call(function, *rest)


def _join_and_call(
    function: Callable[..., Any], arguments: Sequence[Any], settings: ParallelSettings, above: Word | Progress
) -> Any:
    """Join the process group, call the function, and leave when all ranks are done; what rank 0's call returned.

    Args:
        above: the process that started the ranks, where the first error is told; or without one, the progress.
    """
    timeout = timedelta(seconds=LONGER_THAN_WATCHED * settings.timeout_seconds)
    shared, rank, size = next(rendezvous("env://", timeout=timeout))
    store = PrefixStore(_agree_on_start(shared, rank, size), shared)
    used = ranks_that_fit(settings, size)
    if rank >= used:
        _stand_by(store)
        return None
    word = above if isinstance(above, Word) else None
    progress = above.tell_progress if isinstance(above, Word) else above
    device = own_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=used, timeout=timeout)
        if word is not None:
            _get_default_store().set("folder", str(word.folder))
        result = function(*arguments, device, used, progress if rank == 0 else no_progress)
        dist.barrier()
        if rank == 0:
            store.set("done", "")
        return result if rank == 0 else None
    except Exception as error:
        _end(error, rank, word is not None)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _agree_on_start(store: Store, rank: int, size: int) -> str:
    """A name that just these processes have in common: ranks that are started again find the same store, in which what
    the ranks before them wrote, such as their addresses, still stands."""
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("start", own)
        joined = [store.get(f"{own}/{other}").decode() for other in range(1, size)]  # waits for each
        store.set(f"{own}/joined", " ".join(joined))
        return own
    start = ""
    while not store.check(["start"]):  # as long as the first rank takes for what comes before
        time.sleep(0.2)
    while True:
        if (newest := store.get("start").decode()) != start:
            start = newest
            store.set(f"{start}/{rank}", own)
        if store.check([f"{start}/joined"]) and own in store.get(f"{start}/joined").decode().split():
            return start
        time.sleep(0.05)


def ranks_that_fit(settings: ParallelSettings, size: int) -> int:
    """How many of `size` ranks train: all, or with `elastic` the most that the sizes of `[parallel]` divide."""
    for used in range(size, 0, -1) if settings.elastic else ():
        with contextlib.suppress(SettingsError):
            settings.sizes(used)
            return used
    return size


def _stand_by(store: Store) -> None:
    """A rank too many for the layout waits until the others are done, or the agent starts all of them again."""
    while not store.check(["done"]):
        time.sleep(1.0)


def _end(error: Exception, rank: int, by_agent: bool) -> None:
    """End this rank after an error, which the first rank that met one tells.

    Raises:
        SystemExit: when another rank or process tells the error.
        Exception: the error, when this process is to tell it.
    """
    if _lost_peers(error):
        time.sleep(GRACE_SECONDS)
        if by_agent:
            raise SystemExit(ResourceError.exit_code)
        raise ResourceError(
            f"rank {rank} on {socket.gethostname()} lost the connection to other ranks: one of them ended, or the "
            f"network is cut ({error})"
        ) from error
    told = tell(error)
    if isinstance(error, SavedAndStopped):
        with contextlib.suppress(RuntimeError):
            dist.barrier()  # the first process to end takes the others with it, who may still be writing
    if told:
        raise SystemExit(error.exit_code if isinstance(error, GroundupError) else 1)
    raise error


def _lost_peers(error: BaseException | None) -> bool:
    """Whether an error only says that other ranks do not answer any more."""
    while error is not None:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def tell(error: Exception, aloud: bool = False) -> bool:
    """Report the error that ends all ranks, unless another rank did before.

    Args:
        aloud: print it where no process waits for the report.

    Returns:
        Whether it needs no more telling here.
    """
    if not dist.is_initialized():
        return False
    store = _get_default_store()
    if store.add("errors", 1) > 1:
        return True
    if not store.check(["folder"]):
        if aloud:
            print(f"groundup: {error}", file=sys.stderr, flush=True)
        return aloud
    word = Word(Path(store.get("folder").decode()))
    if isinstance(error, GroundupError):
        word.tell_error(type(error).__name__, str(error))
    else:
        where = f"rank {dist.get_rank()} on {socket.gethostname()}"
        word.tell_error("RankError", f"{where}: {''.join(traceback.format_exception(error))}")
    return True
