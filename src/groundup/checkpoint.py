"""Checkpoints: everything a run needs to go on, written whole or not at all, checked before it is believed.

A checkpoint is a directory `step-00001000/` with safetensors (weights in float32, the optimizer's state), written
through torch.distributed.checkpoint, and `state.json` (where the data was). It holds no pickle: DCP's own storage
format has one (`.metadata`), its Hugging Face format has none.
"""

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from groundup.errors import DataError
from groundup.files import Manifest, making, verify
from groundup.optim.state import prepare_state
from groundup.settings import differences

STEP_NAME = re.compile(r"step-(\d{8})$")
Refusal = Callable[[Path, str], None]
"""Is told which checkpoint was passed over, and why."""


def tensors_of(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and optimizer state under one flat set of names: `model.NAME`, `optimizer.NAME.exp_avg`, …"""
    tensors = {f"model.{name}": weight.detach() for name, weight in weights.items()}
    for name, weight in weights.items():
        for key, value in optimizer.state[weight].items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def save(
    checkpoints: Path,
    weights: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    keep: int,
) -> Path:
    """Write `checkpoints/step-N`, then remove all but the newest `keep`.

    Args:
        state: `step` and whatever else the run needs to go on, as JSON values.
        settings: those of the run, and
        inputs: the name of each of its inputs → its digest; a run with others will not take this checkpoint.

    Raises:
        ResourceError: disk full or read-only; the checkpoints that were there are untouched.
    """
    directory = checkpoints / f"step-{state['step']:08d}"
    with making(directory, "checkpoint", settings, inputs) as draft:
        writer = HuggingFaceStorageWriter(str(draft.path))
        try:
            with _one_process():
                state_dict_saver.save(tensors_of(weights, optimizer), storage_writer=writer, no_dist=True)
        except CheckpointException as error:  # a BaseException that wraps what happened, such as a full disk
            raise next(iter(error.failures.values()))[0] from None
        (draft.path / "state.json").write_text(json.dumps(dict(state), indent=1))
    for old in found(checkpoints)[:-keep]:
        shutil.rmtree(old)
    return directory


def found(checkpoints: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    if not checkpoints.is_dir():
        return []
    return sorted(path for path in checkpoints.iterdir() if STEP_NAME.match(path.name))


def step_of(directory: Path) -> int:
    """The step after which a checkpoint was written."""
    match = STEP_NAME.match(directory.name)
    assert match is not None, "named by `save`"
    return int(match[1])


def load_newest(
    checkpoints: Path,
    weights: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    refused: Refusal,
) -> dict[str, Any] | None:
    """Load the newest whole checkpoint of this run into `weights` and `optimizer`, in place; return its state.

    A damaged one, or one of a run with other settings or inputs, is passed over: `refused` is told, and once another
    has been loaded it is renamed to `….refused`. None when there is none to load.

    Raises:
        DataError: when there are checkpoints and every one of them is damaged.
    """
    for partial in checkpoints.glob(".step-*"):
        shutil.rmtree(partial)  # left by a process that was killed while it saved
    candidates = found(checkpoints)
    useless, newest = [], ""
    for directory in reversed(candidates):
        try:
            manifest = verify(directory, "checkpoint")
            if (manifest.settings, manifest.inputs) != (settings, inputs):
                raise DataError(f"{directory} was written by a run with {_what_differs(manifest, settings, inputs)}")
            state = _load(directory, weights, optimizer)
        except DataError as error:
            refused(directory, str(error))
            newest = newest or str(error)
            useless.append(directory)
            continue
        for other in useless:
            _set_aside(other)
        return state
    if candidates:
        raise DataError(
            f"none of the {len(candidates)} checkpoints in {checkpoints} can be used ({newest}); remove that folder to "
            "begin this training anew"
        )
    return None


def _what_differs(manifest: Manifest, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Of an input both digests, so that a wrong tokenizer is seen to be one."""
    changed = [name for name in {**manifest.inputs, **inputs} if manifest.inputs.get(name) != inputs.get(name)]
    told = []
    for name in changed:
        wrote, has = (digests.get(name, "nothing")[:8] for digests in (manifest.inputs, inputs))
        told.append(f"{name} {wrote}…, this run has {has}…")
    if manifest.settings != settings:
        told += [f"another {name}" for name in differences(dict(manifest.settings), dict(settings))]
    return "; ".join(told)


def _set_aside(directory: Path) -> None:
    """Keep a refused checkpoint for whoever wants to look, where it no longer counts as one."""
    aside = directory.with_name(f"{directory.name}.refused")
    shutil.rmtree(aside, ignore_errors=True)
    directory.rename(aside)


def _load(directory: Path, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    prepare_state(optimizer)
    tensors = tensors_of(weights, optimizer)
    try:
        with _one_process(), torch.no_grad():
            state_dict_loader.load(tensors, storage_reader=HuggingFaceStorageReader(str(directory)), no_dist=True)
    except (CheckpointException, RuntimeError, KeyError) as error:
        raise DataError(f"{directory} does not fit this model: {error}") from None
    state: dict[str, Any] = json.loads((directory / "state.json").read_text())
    return state


@contextmanager
def _one_process() -> Iterator[None]:
    """DCP warns that no process group exists; here that is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
