"""Checkpoints: everything a run needs to go on, written whole or not at all, checked before it is believed.

A checkpoint is a directory `step-00001000/` with safetensors (weights in float32, the optimizer's state) in Hugging
Face's layout, which torch.distributed.checkpoint reads too, and `state.json` (where the data was). It holds no pickle.
Where several ranks train, each writes the pieces of tensors that it has, and any number of ranks, in any layout, reads
what it needs.
"""

import contextlib
import copy
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from groundup.artifacts import Draft, Manifest, damage, making, read_manifest, remove_unless_held
from groundup.errors import DamagedError, DataError, GroundupError, PeerLost, ResourceError
from groundup.files import canonical_json, explaining_write_errors, sha256_of_file
from groundup.settings import differences
from groundup.train.peers import ALONE, Peers
from groundup.train.pieces import OFFSETS, Piece, Shares, layout_of, opened, piece_of, read_pieces, share_out
from groundup.weights.write import write_tensors

STEP_NAME = re.compile(r"step-(\d{8})$")
WEIGHTS = "model-00001-of-00001.safetensors"
"""All tensors, where one rank has them all."""
INDEX = "model.safetensors.index.json"
STATE = "state.json"
THREAD = "checkpoint"
"""Name of the thread that writes."""
Refusal = Callable[[Path, str], None]
"""Called with a checkpoint that was passed over, and why."""
Tell = Callable[..., None]
"""`tell(event, sentence, **details)`, called with what became of a save; the sentence is for the screen, if any."""


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
    tensors: Mapping[str, Tensor | Piece],
    state: Mapping[str, Any],
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    statistics: Mapping[str, Any] | None = None,
    peers: Peers = ALONE,
    shares: Shares | None = None,
) -> Path:
    """Write `checkpoints/step-N`, and read it back. With peers, all of them call it at the same time.

    Args:
        tensors: contiguous, on the CPU; those of this rank.
        state: `step` and whatever else the run needs to go on, as JSON values.
        settings: of the run, by table.
        inputs: name of each input of the run → its digest; a run with others will not take this checkpoint.
        statistics: of the run at this step, such as `validation_bits_per_byte`.
        peers: the ranks that train together.
        shares: who writes what, where that was agreed before.

    Raises:
        ResourceError: disk full or read-only, for whichever rank; the checkpoints that were there are untouched.
        DamagedError: what was written does not read back.
        PeerLost: another rank is gone.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder), {"model.gain": torch.ones(2)}, {"step": 10}, settings={}, inputs={}).name
    'step-00000010'
    """
    pieces = {name: piece_of(tensor) for name, tensor in tensors.items()}
    shares = shares or share_out(pieces, peers)
    directory = checkpoints / f"step-{state['step']:08d}"
    draft: Draft | None = None
    with contextlib.ExitStack() as drafting:

        def begin() -> str | None:
            nonlocal draft
            if peers.rank == 0:
                draft = drafting.enter_context(making(directory, "checkpoint", settings, inputs))
            return draft.path.name if draft else None

        def write() -> list[Any]:
            with explaining_write_errors(directory):
                return _write_share(checkpoints / str(partial_name), pieces, shares)

        def finish() -> None:
            if draft is not None:
                with explaining_write_errors(directory):
                    draft.digests = {name: (size, sha256) for name, size, sha256 in filter(None, written)}
                    draft.statistics |= statistics or {}
                    _write_json_files(draft, shares, state)
                    drafting.close()  # gives it its manifest and its name

        partial_name = peers.all_do(begin, ResourceError)[0]
        written = peers.all_do(write, ResourceError)
        peers.all_do(finish, ResourceError)
    return directory


def _write_share(directory: Path, pieces: Mapping[str, Piece], shares: Shares) -> list[Any]:
    """Write this rank's file and read it back; its name, bytes and sha256, or nothing."""
    if shares.file is None:
        return []
    if not directory.is_dir():
        raise ResourceError(f"{directory} was made by rank 0 and is not here: put the run where all see the same files")
    path, own = directory / shares.file, {name: piece for name, piece in pieces.items() if name in shares.own}
    tensors = {name: piece.local for name, piece in own.items()}
    offsets = json.dumps({name: {"saved_offsets": piece.offset} for name, piece in own.items()})
    write_tensors(path, tensors, {OFFSETS: offsets} if shares.n_files > 1 else {})
    _read_back(path, tensors)
    return [shares.file, path.stat().st_size, sha256_of_file(path)]


def _write_json_files(draft: Draft, shares: Shares, state: Mapping[str, Any]) -> None:
    size = sum(size for size, _ in draft.digests.values())
    index = {"metadata": {"total_size": size}, "weight_map": shares.weight_map}
    (draft.path / INDEX).write_text(json.dumps(index, indent=2), "utf-8")
    (draft.path / STATE).write_text(json.dumps(dict(state), indent=1), "utf-8")


def _read_back(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """
    Raises:
        DamagedError: the file does not hold these tensors to the last bit.
    """
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
    with opened(path) as file:
        for name, tensor in tensors.items():
            if not torch.equal(_bytes_of(file.get_tensor(name)), _bytes_of(tensor)):
                raise DamagedError(f"{name} was written to {path}, but reads back as something else: check that disk")


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8)


class Snapshot:
    """Copies of tensors in memory that is kept from one time to the next; pinned where the tensors are on a GPU."""

    def __init__(self) -> None:
        self._copies: dict[str, Piece] = {}
        self._copied: torch.cuda.Event | None = None

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor | Piece]) -> None:
        """Copy `tensors` as they are now; of a sharded one, this rank's piece. On a GPU this is only begun, in order
        with what comes after it there."""
        pieces = {name: piece_of(tensor) for name, tensor in tensors.items()}
        if layout_of(pieces) != layout_of(self._copies):
            self._copies = {name: replace(piece, local=_room_for(piece.local)) for name, piece in pieces.items()}
        for name, piece in pieces.items():
            self._copies[name].local.copy_(piece.local, non_blocking=piece.local.is_cuda)
        on_gpu = any(piece.local.is_cuda for piece in pieces.values())
        self._copied = torch.cuda.current_stream().record_event() if on_gpu else None

    def wait(self) -> Mapping[str, Piece]:
        """The copies, once they are whole."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._copies


def _room_for(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


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


@dataclass
class Saver:
    """Saves while the training goes on: a save takes a copy and returns; a thread writes it, one at a time.

    A save that fails is reported and the training goes on; the next one tries again. Leaving the context waits.
    """

    checkpoints: Path
    kept: Kept
    settings: Mapping[str, Any]
    """The run's settings, as for `save`."""
    inputs: Mapping[str, str]
    """The run's inputs, as for `save`."""
    _: KW_ONLY
    most_failures: int
    """How many in a row raise `ResourceError`."""
    tell: Tell
    """Called with `saved`, `save failed` and `checkpoint refused`, in the thread of whoever calls, on rank 0."""
    peers: Peers = ALONE
    """The ranks that train together, who call the same at the same step; what they say here goes through a group of
    processes of its own."""

    def __post_init__(self) -> None:
        self._snapshot = Snapshot()
        self._agreed: list[Any] = []
        """Of every rank, the digest of the layout that the shares were agreed for."""
        self._shares: Shares | None = None
        self._thread = ThreadPoolExecutor(1, THREAD)
        self._writing: Future[float] | None = None
        self._report: dict[str, Any] = {}
        self._failures: list[Exception] = []

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):  # the next save meets it again, and tells
            self._remove_old()  # of which a process that was killed just after a save left some
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._thread:
            try:
                self.wait()
            except GroundupError:
                if kind is None:
                    raise  # else what ended the training is the news

    def load(self, tensors: Mapping[str, Tensor], may_change: Callable[[str], bool]) -> "Loaded | None":
        """`load_newest` of this run's checkpoints; those that are passed over are told."""

        def refused(directory: Path, why: str) -> None:
            self._tell("checkpoint refused", f"passed over {directory.name}: {why}", checkpoint=directory.name, why=why)

        return load_newest(self.checkpoints, tensors, self.settings, self.inputs, refused, may_change, self.peers)

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], statistics: Mapping[str, Any]) -> None:
        """Begin to write `step-N`; see `checkpoint.save`. A save that is still being written is waited for.

        Raises:
            ResourceError: when this many in a row could not be written.
            PeerLost: another rank is gone.
        """
        began = time.monotonic()
        waits = self._writing is not None and not self._writing.done()
        self.wait()
        waited = time.monotonic() - began
        pieces = {name: piece_of(tensor) for name, tensor in tensors.items()}
        shares = self._agree_on_shares(pieces)
        self._snapshot.take({name: piece for name, piece in pieces.items() if name in shares.own})
        self._report = {"step": state["step"], "stall_seconds": round(time.monotonic() - began, 3)}
        if waits:
            self._report["waited_seconds"] = round(waited, 3)  # for the one before
        self._writing = self._thread.submit(self._write, copy.deepcopy(dict(state)), dict(statistics), shares)

    def _agree_on_shares(self, pieces: Mapping[str, Piece]) -> Shares:
        """Those of the last time, unless some rank's pieces have other shapes now."""
        digest = hashlib.sha256(canonical_json(layout_of(pieces))).hexdigest()
        agreed = self.peers.all_do(lambda: digest, ResourceError)
        if self._shares is None or agreed != self._agreed:
            self._agreed, self._shares = agreed, share_out(pieces, self.peers)
        return self._shares

    def poll(self) -> None:
        """Report a save that has ended by now; raises as `wait` does. With peers nothing is reported before `wait`, so
        that all ranks meet it at the same step."""
        if self.peers.size == 1 and self._writing is not None and self._writing.done():
            self.wait()

    def wait(self, *, last: bool = False) -> None:
        """Wait until nothing is being written, and report what became of it.

        Args:
            last: what comes now relies on the last save: one failure is too many.

        Raises:
            ResourceError: when too many in a row could not be written.
            PeerLost: another rank is gone.
        """
        if self._writing is not None:
            error = self._writing.exception()  # waits
            written, self._writing = self._writing, None
            if isinstance(error, (GroundupError, OSError)) and not isinstance(error, PeerLost):
                self.fail(self._report["step"], error)
            else:
                self._report["write_seconds"] = round(written.result(), 3)
                self._failures = []
                self._tell("saved", "", **self._report)
        if last and self._failures:
            raise self._given_up()

    def fail(self, step: int, error: Exception) -> None:
        """Count a save that could not be.

        Raises:
            ResourceError: when too many in a row could not be.
        """
        self._failures.append(error)
        sentence = f"step {step:,} could not be saved, training goes on: {error}"
        self._tell("save failed", sentence, step=step, why=str(error), in_a_row=len(self._failures))
        if len(self._failures) >= self.most_failures:
            raise self._given_up()

    def _given_up(self) -> ResourceError:
        count, newest = len(self._failures), list_checkpoints(self.checkpoints)[-1:]
        what = "the last checkpoint" if count == 1 else f"{count} checkpoints in a row"
        where = f"the newest whole one is {newest[0].name}" if newest else "there is none"
        return ResourceError(f"{what} could not be written, {where}: {self._failures[-1]}")

    def _write(self, state: dict[str, Any], statistics: dict[str, Any], shares: Shares) -> float:
        """Write and remove older ones; returns the seconds that it took."""
        began = time.monotonic()
        pieces = self._snapshot.wait()
        save(self.checkpoints, pieces, state, self.settings, self.inputs, statistics, self.peers, shares)
        self.peers.all_do(self._remove_old, ResourceError)
        return time.monotonic() - began

    def _remove_old(self) -> None:
        if self.peers.rank == 0:
            remove_old(self.checkpoints, self.kept)

    def _tell(self, event: str, sentence: str, **details: Any) -> None:
        if self.peers.rank == 0:
            self.tell(event, sentence, **details)


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
    peers: Peers = ALONE,
) -> Loaded | None:
    """Load the newest whole checkpoint of this run into `tensors`, in place. With peers, all of them call it at the
    same time and load the same one; how many there were when it was saved, and in which layout, does not matter.

    A damaged one, or one of a run with other settings or inputs, is passed over, and once another has been loaded it is
    renamed to `….refused`. None when there is none to load.

    Args:
        tensors: by name, as they were saved; of the sharded ones, this rank's part is read.
        settings: of the run, as given to `save`.
        inputs: of the run, as given to `save`.
        refused: called with each checkpoint that is passed over, and why.
        may_change: whether a checkpoint will do that was written with another value of this dotted setting.
        peers: the ranks that train together.

    Raises:
        DataError: when there are checkpoints and every one of them is damaged.
        PeerLost: another rank is gone.

    >>> import tempfile
    >>> gain = torch.zeros(2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for step in (10, 20):
    ...         _ = save(Path(folder), {"model.gain": step * torch.ones(2)}, {"step": step}, settings={}, inputs={})
    ...     loaded = load_newest(Path(folder), {"model.gain": gain}, settings={}, inputs={}, refused=print)
    >>> loaded.state, gain
    ({'step': 20}, tensor([20., 20.]))
    """
    candidates = peers.all_do(lambda: _tidy(checkpoints) if peers.rank == 0 else [], DataError)[0]
    useless, newest = [], ""
    for directory in (checkpoints / name for name in reversed(candidates)):
        try:
            changed = _agree_on(directory, settings, inputs, may_change, peers)
            state = peers.all_do(partial(_load, directory, tensors), DataError)[0]
        except DataError as error:
            refused(directory, str(error))
            newest = newest or str(error)
            useless.append(directory)
            continue
        for other in useless if peers.rank == 0 else ():
            _set_aside(other)
        return Loaded(state, changed)
    if candidates:
        raise DataError(
            f"none of the {len(candidates)} checkpoints in {checkpoints} can be used ({newest}); remove that folder to "
            "begin this training anew"
        )
    return None


def _tidy(checkpoints: Path) -> list[str]:
    """Clear away what a process left that was killed while it saved or removed a checkpoint; the names of those there
    are, oldest first."""
    for leftover in checkpoints.glob(".step-*"):
        before = leftover.with_name(leftover.name.removeprefix(".").removesuffix(".old"))
        if leftover.suffix == ".old" and not before.exists():
            leftover.rename(before)  # killed just when the same step was to get its place
        else:
            shutil.rmtree(leftover)
    return [directory.name for directory in list_checkpoints(checkpoints)]


def _agree_on(
    directory: Path,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    may_change: Callable[[str], bool],
    peers: Peers,
) -> dict[str, tuple[Any, Any]]:
    """The settings that have changed since a checkpoint, every byte of which was checked; each rank takes some files.

    Raises:
        DataError: on all ranks, if one will not have it.
    """

    def examine() -> None:
        manifest = read_manifest(directory, "checkpoint")
        own = dict(list(manifest.files.items())[peers.rank :: peers.size])
        for why in damage(directory, replace(manifest, files=own)):
            raise DamagedError(f"{directory} is damaged: {why}")
        changed.update(differences(dict(manifest.settings), dict(settings)))
        if manifest.inputs != inputs or not all(map(may_change, changed)):
            raise DataError(f"{directory} was written by a run with {_what_differs(manifest, changed, inputs)}")

    changed: dict[str, tuple[Any, Any]] = {}
    peers.all_do(examine, DataError)
    return changed


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
    read_pieces(directory, {name: piece_of(tensor) for name, tensor in tensors.items()})
    state: dict[str, Any] = json.loads((directory / STATE).read_bytes())
    return state
