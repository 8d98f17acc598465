"""Checkpoints: everything a run needs to go on, written whole or not at all, checked before it is believed.

A checkpoint is a directory `step-00001000/` with safetensors (weights in float32, the optimizer's state), written
through torch.distributed.checkpoint, and `state.json` (where the data was). It holds no pickle: DCP's own storage
format has one (`.metadata`), the storage here has none.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from groundup.artifacts import Manifest, making, read_manifest, remove_unless_held, verify
from groundup.errors import DataError, GroundupError, ResourceError
from groundup.settings import differences

STEP_NAME = re.compile(r"step-(\d{8})$")
WEIGHTS = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"
STATE = "state.json"
THREAD = "checkpoint"
"""Name of the thread that writes."""
BLOCK_BYTES = 1 << 24
"""Bytes that are digested and written at a time; both let other threads run."""
Refusal = Callable[[Path, str], None]
"""Called with a checkpoint that was passed over, and why."""
Tell = Callable[..., None]
"""`tell(event, **details)`, called with what became of a save."""


def tensors_of(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and optimizer state under one flat set of names: `model.NAME`, `optimizer.NAME.exp_avg`, …

    Args:
        weights: by name, the tensors that `optimizer` steps, themselves and all of them.

    Raises:
        ValueError: `optimizer` holds other tensors, so that the state of some would be lost.

    >>> weight = torch.zeros(2, requires_grad=True)
    >>> optimizer = torch.optim.Adam([weight])
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> sorted(tensors_of({"gain": weight}, optimizer))
    ['model.gain', 'optimizer.gain.exp_avg', 'optimizer.gain.exp_avg_sq', 'optimizer.gain.step']
    """
    ours, held = set(weights.values()), {each for group in optimizer.param_groups for each in group["params"]}
    if lost := [name for name, weight in weights.items() if weight not in held]:
        raise ValueError(
            f"the optimizer does not hold {_first_of(lost)}; give the tensors themselves that it steps, such as "
            "dict(model.named_parameters()), and not the copies that model.state_dict() has"
        )
    if unclaimed := [str(tuple(each.shape)) for each in (held | optimizer.state.keys()) - ours]:
        raise ValueError(
            f"the optimizer holds tensors that have no name among the weights, of shape {_first_of(unclaimed)}; give "
            "all that it steps"
        )
    tensors = {f"model.{name}": weight.detach() for name, weight in weights.items()}
    for name, weight in weights.items():
        for key, value in optimizer.state.get(weight, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def _first_of(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def save(
    checkpoints: Path,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    statistics: Mapping[str, Any] | None = None,
) -> Path:
    """Write `checkpoints/step-N`, and read it back.

    Args:
        tensors: contiguous, on the CPU.
        state: `step` and whatever else the run needs to go on, as JSON values.
        settings: of the run, by table.
        inputs: name of each input of the run → its digest; a run with others will not take this checkpoint.
        statistics: of the run at this step, such as `validation_bits_per_byte`.

    Raises:
        ResourceError: disk full or read-only; the checkpoints that were there are untouched.
        DamagedError: what was written does not read back.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder), {"model.gain": torch.ones(2)}, {"step": 10}, settings={}, inputs={}).name
    'step-00000010'
    """
    directory = checkpoints / f"step-{state['step']:08d}"
    with making(directory, "checkpoint", settings, inputs) as draft:
        storage = _Safetensors(draft.path)
        try:
            with _one_process():
                state_dict_saver.save(dict(tensors), storage_writer=storage, no_dist=True)
        except CheckpointException as error:
            raise _wrapped_in(error) from None
        (draft.path / STATE).write_text(json.dumps(dict(state), indent=1), "utf-8")
        draft.meant |= storage.digests
        draft.statistics |= statistics or {}
    return directory


class _Safetensors(StorageWriter):
    """Writes each tensor straight from its memory into one safetensors file, and digests it on the way.

    torch's Hugging Face storage makes two copies of everything first, and holds Python's lock while it does so:
    the training would stand still.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.digests: dict[str, str] = {}
        """File → sha256 of what was given to it."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        items = sorted(plan.items, key=lambda item: (-_itemsize(item), item.index.fqn))  # aligned, as safetensors does
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for item in items:
            assert item.tensor_data is not None, "a checkpoint holds tensors"
            shape = list(item.tensor_data.size)
            begin, end = end, end + _itemsize(item) * item.tensor_data.size.numel()
            kind = TYPES[item.tensor_data.properties.dtype]
            header[item.index.fqn] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(self._directory / WEIGHTS, "wb") as stream:
            file = _Digested(stream)
            file.write(len(text).to_bytes(8, "little") + text)
            for item in items:
                tensor = planner.resolve_data(item)
                assert isinstance(tensor, Tensor), "a checkpoint holds tensors"
                file.write(tensor.flatten().view(torch.uint8).numpy().data)
        self.digests[WEIGHTS] = file.digest.hexdigest()
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(item.index, 0, None) for item in items])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        names = sorted(metadata.state_dict_metadata)
        size = (self._directory / WEIGHTS).stat().st_size
        index = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(names, WEIGHTS)}
        text = json.dumps(index, indent=2).encode()
        with open(self._directory / INDEX, "wb") as stream:
            file = _Digested(stream)
            file.write(text)
        self.digests[INDEX] = file.digest.hexdigest()

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None: ...

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of types in safetensors."""


def _itemsize(item: WriteItem) -> int:
    assert item.tensor_data is not None, "a checkpoint holds tensors"
    return item.tensor_data.properties.dtype.itemsize


@dataclass
class _Digested:
    """A file that is written, and the sha256 of what was given to it."""

    stream: BinaryIO
    digest: Any = field(default_factory=hashlib.sha256)

    def write(self, data: bytes | memoryview) -> None:
        for start in range(0, len(data), BLOCK_BYTES):
            block = data[start : start + BLOCK_BYTES]
            self.digest.update(block)
            self.stream.write(block)


class Snapshot:
    """Copies of tensors in memory that is kept from one time to the next; pinned where the tensors are on a GPU."""

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors` as they are now; of a sharded one, this rank's shard. On a GPU this is only begun, in order
        with what comes after it there."""
        tensors = {name: each.to_local() if isinstance(each, DTensor) else each for name, each in tensors.items()}
        if _shapes(tensors) != _shapes(self._copies):
            self._copies = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                for name, tensor in tensors.items()
            }
        self._copied = None
        for name, tensor in tensors.items():
            self._copies[name].copy_(tensor, non_blocking=tensor.is_cuda)
            if tensor.is_cuda and self._copied is None:
                self._copied = torch.cuda.Event()
        if self._copied is not None:
            self._copied.record()

    def wait(self) -> Mapping[str, Tensor]:
        """The copies, once they are whole."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._copies


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Kept:
    """Which checkpoints stay when a newer one has been written."""

    newest: int
    every_steps: int | None = None
    """And those of steps that are multiples of this."""
    best: bool = False
    """And the one with the lowest validation bits per byte, of those at whose step it was measured."""

    def reasons(self, bits: Mapping[int, float | None]) -> dict[int, str]:
        """Step of each checkpoint that stays → why; `bits` has the validation bits per byte of each that is there.

        >>> Kept(newest=2, every_steps=30, best=True).reasons({10: 2.0, 20: 1.5, 30: 1.9, 40: 1.8, 50: None})
        {20: 'best', 30: 'every 30 steps', 40: 'newest 2', 50: 'newest 2'}
        """
        why: dict[int, list[str]] = {step: [] for step in sorted(bits)}
        for step in list(why)[-self.newest :]:
            why[step].append(f"newest {self.newest}")
        measured = {step: value for step, value in bits.items() if value is not None}
        if self.best and measured:
            why[min(measured, key=lambda step: (measured[step], -step))].append("best")
        for step, reasons in why.items():
            if self.every_steps and step % self.every_steps == 0:
                reasons.append(f"every {self.every_steps} steps")
        return {step: ", ".join(reasons) for step, reasons in why.items() if reasons}


class Saver:
    """Saves while the training goes on: a save takes a copy and returns; a thread writes it, one at a time.

    A save that fails is reported and the training goes on; the next one tries again. Leaving the context waits.
    """

    def __init__(
        self,
        checkpoints: Path,
        kept: Kept,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        *,
        failures: int,
        tell: Tell,
    ) -> None:
        """
        Args:
            settings: of the run, as for `save`.
            inputs: of the run, as for `save`.
            failures: how many in a row raise `ResourceError`.
            tell: called with `saved` and `save failed`, in the thread of whoever calls.
        """
        self._checkpoints, self._kept, self._settings, self._inputs = checkpoints, kept, settings, inputs
        self._most_failures, self._tell = failures, tell
        self._snapshot = Snapshot()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._report: dict[str, Any] = {}
        self._failures: list[Exception] = []
        self._quiet = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):  # the next save meets it again, and tells
            remove_old(self._checkpoints, self._kept)  # of which a process that was killed just after a save left some
        self._quiet.enter_context(_one_process())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._quiet:
            try:
                self.wait()
            except GroundupError:
                if kind is None:
                    raise  # else what ended the training is the news

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], statistics: Mapping[str, Any]) -> None:
        """Begin to write `step-N`; see `checkpoint.save`. A save that is still being written is waited for.

        Raises:
            ResourceError: when this many in a row could not be written.
        """
        began = time.monotonic()
        waits = self._thread is not None and self._thread.is_alive()
        self.wait()
        waited = time.monotonic() - began
        self._snapshot.take(tensors)
        self._report = {"step": state["step"], "stall_seconds": round(time.monotonic() - began, 3)}
        if waits:
            self._report["waited_seconds"] = round(waited, 3)  # for the one before
        self._thread = threading.Thread(
            target=self._write, args=(json.loads(json.dumps(dict(state))), dict(statistics)), name=THREAD
        )
        self._thread.start()

    def poll(self) -> None:
        """Report a save that has ended by now; raises as `wait` does."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self, *, last: bool = False) -> None:
        """Wait until nothing is being written, and report what became of it.

        Args:
            last: what comes now relies on the last save: one failure is too many.

        Raises:
            ResourceError: when too many in a row could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            error, self._error = self._error, None
            if error is None:
                self._failures = []
                self._tell("saved", **self._report)
            elif isinstance(error, (GroundupError, OSError)):
                self.fail(self._report["step"], error)
            else:
                raise error
        if last and self._failures:
            raise self._given_up()

    def fail(self, step: int, error: Exception) -> None:
        """Count a save that could not be.

        Raises:
            ResourceError: when too many in a row could not be.
        """
        self._failures.append(error)
        self._tell("save failed", step=step, why=str(error), in_a_row=len(self._failures))
        if len(self._failures) >= self._most_failures:
            raise self._given_up()

    def _given_up(self) -> ResourceError:
        count, newest = len(self._failures), list_checkpoints(self._checkpoints)[-1:]
        what = "the last checkpoint" if count == 1 else f"{count} checkpoints in a row"
        where = f"the newest whole one is {newest[0].name}" if newest else "there is none"
        return ResourceError(f"{what} could not be written, {where}: {self._failures[-1]}")

    def _write(self, state: dict[str, Any], statistics: dict[str, Any]) -> None:
        began = time.monotonic()
        try:
            tensors = self._snapshot.wait()
            save(self._checkpoints, tensors, state, self._settings, self._inputs, statistics)
            remove_old(self._checkpoints, self._kept)
        except BaseException as error:
            self._error = error
        self._report["write_seconds"] = round(time.monotonic() - began, 3)


def remove_old(checkpoints: Path, kept: Kept) -> None:
    """Remove checkpoints that are not to be kept, unless another process reads them."""
    there = {step_of(directory): directory for directory in list_checkpoints(checkpoints)}
    reasons = kept.reasons(bits_of(there.values()) if kept.best else dict.fromkeys(there, None))
    for step, directory in there.items():
        if step not in reasons:
            remove_unless_held(directory)


def bits_of(directories: Iterable[Path]) -> dict[int, float | None]:
    """Step of each checkpoint → its validation bits per byte; None if not measured then, or not readable."""
    bits: dict[int, float | None] = {}
    for directory in directories:
        bits[step_of(directory)] = None
        with contextlib.suppress(DataError):
            bits[step_of(directory)] = read_manifest(directory).statistics.get("validation_bits_per_byte")
    return bits


def step_of(directory: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(directory.name.removeprefix("step-"))


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    if not checkpoints.is_dir():
        return []
    return sorted(path for path in checkpoints.iterdir() if STEP_NAME.match(path.name))


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint said besides its tensors, to `load_newest`."""

    state: dict[str, Any]
    changed: dict[str, tuple[Any, Any]]
    """Settings, by dotted name, that were other ones when it was written: before and now."""


def load_newest(
    checkpoints: Path,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    refused: Refusal,
    may_change: Callable[[str], bool] = lambda name: False,
) -> Loaded | None:
    """Load the newest whole checkpoint of this run into `tensors`, in place.

    A damaged one, or one of a run with other settings or inputs, is passed over, and once another has been loaded it is
    renamed to `….refused`. None when there is none to load.

    Args:
        tensors: by name, as they were saved.
        settings: of the run, as given to `save`.
        inputs: of the run, as given to `save`.
        refused: called with each checkpoint that is passed over, and why.
        may_change: whether a checkpoint will do that was written with another value of this dotted setting.

    Raises:
        DataError: when there are checkpoints and every one of them is damaged.

    >>> import tempfile
    >>> gain = torch.zeros(2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for step in (10, 20):
    ...         _ = save(Path(folder), {"model.gain": step * torch.ones(2)}, {"step": step}, settings={}, inputs={})
    ...     loaded = load_newest(Path(folder), {"model.gain": gain}, settings={}, inputs={}, refused=print)
    >>> loaded.state, gain
    ({'step': 20}, tensor([20., 20.]))
    """
    for leftover in checkpoints.glob(".step-*"):  # by a process that was killed while it saved or removed one
        before = leftover.with_name(leftover.name.removeprefix(".").removesuffix(".old"))
        if leftover.suffix == ".old" and not before.exists():
            leftover.rename(before)  # killed just when the same step was to get its place
        else:
            shutil.rmtree(leftover)
    candidates = list_checkpoints(checkpoints)
    useless, newest = [], ""
    for directory in reversed(candidates):
        try:
            manifest = verify(directory, "checkpoint")
            changed = differences(dict(manifest.settings), dict(settings))
            if manifest.inputs != inputs or not all(map(may_change, changed)):
                raise DataError(f"{directory} was written by a run with {_what_differs(manifest, changed, inputs)}")
            state = _load(directory, tensors)
        except DataError as error:
            refused(directory, str(error))
            newest = newest or str(error)
            useless.append(directory)
            continue
        for other in useless:
            _set_aside(other)
        return Loaded(state, changed)
    if candidates:
        raise DataError(
            f"none of the {len(candidates)} checkpoints in {checkpoints} can be used ({newest}); remove that folder to "
            "begin this training anew"
        )
    return None


def _what_differs(manifest: Manifest, changed: Iterable[str], inputs: Mapping[str, str]) -> str:
    """Name the inputs and settings that differ, with both digests of each input."""
    others = [name for name in {**manifest.inputs, **inputs} if manifest.inputs.get(name) != inputs.get(name)]
    words = []
    for name in others:
        wrote, has = (digests.get(name, "nothing")[:8] for digests in (manifest.inputs, inputs))
        words.append(f"{name} {wrote}…, this run has {has}…")
    return "; ".join([*words, *(f"another {name}" for name in changed)])


def _set_aside(directory: Path) -> None:
    """Keep a refused checkpoint for whoever wants to look, where it no longer counts as one."""
    aside = directory.with_name(f"{directory.name}.refused")
    shutil.rmtree(aside, ignore_errors=True)
    directory.rename(aside)


def _load(directory: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    try:
        with _one_process(), torch.no_grad():
            reader = HuggingFaceStorageReader(str(directory))
            state_dict_loader.load(dict(tensors), storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        raise DataError(f"{directory} does not fit this model: {_wrapped_in(error)}") from None
    except (RuntimeError, KeyError) as error:
        raise DataError(f"{directory} does not fit this model: {error}") from None
    state: dict[str, Any] = json.loads((directory / STATE).read_bytes())
    return state


def _wrapped_in(error: CheckpointException) -> Exception:
    """The error that happened, such as a full disk. DCP wraps it into a `BaseException` of its own.

    Raises:
        BaseException: one that is no Exception, such as Ctrl-C: it says nothing of the checkpoint.
    """
    for happened, _ in error.failures.values():
        if not isinstance(happened, Exception):
            raise happened
    first: Exception = next(iter(error.failures.values()))[0]  # type: ignore[assignment]
    return first


@contextmanager
def _one_process() -> Iterator[None]:
    """DCP warns that no process group exists; here that is meant."""
    if threading.current_thread().name == THREAD:
        yield  # the Saver did it: the filters of warnings are the process's, and not for a second thread to change
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
