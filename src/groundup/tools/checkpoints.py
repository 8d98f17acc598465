"""The checkpoints of a run: list and verify them, compare two, average several."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groundup.artifacts import Manifest, damage, hold, is_made, making, read_manifest, verify
from groundup.errors import DamagedError, DataError, SettingsError
from groundup.files import Progress, no_progress, require_path
from groundup.generation.settings import Sampling
from groundup.model.settings import ModelConfig
from groundup.settings import differences
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train import checkpoint
from groundup.train.checkpoint import STEP_NAME, Kept
from groundup.train.pieces import read_whole, stored_pieces
from groundup.weights.write import write_model

Weights = Mapping[str, Callable[[], Tensor]]
"""The weights in a directory by their names in the model, each read when it is called."""


def checkpoints_in(path: Path) -> list[Path]:
    """The checkpoints that a path stands for, oldest first: one, those of a run, or those of a folder.

    Raises:
        DataError: when there are none.
    """
    require_path(path, "run or checkpoint")
    if STEP_NAME.match(path.name):
        return [path]
    found = checkpoint.list_checkpoints(path / "pretrain" / "checkpoints") or checkpoint.list_checkpoints(path)
    if not found:
        raise DataError(
            f"{path} is no checkpoint and has none: name a run that trains or has trained, or a step-… in it"
        )
    return found


# List and verify


@dataclass(frozen=True)
class CheckpointRow:
    """One checkpoint in a list."""

    path: str
    step: int
    at: str | None
    """The time when it was written, UTC."""
    bytes: int
    loss: float | None
    """The loss of the batch at its step, in nats."""
    validation_bits_per_byte: float | None
    """None if it was not measured at its step."""
    kept: str
    """The reason why it has not been removed."""
    damage: list[str]


def list_checkpoints(path: Path, progress: Progress = no_progress) -> list[CheckpointRow]:
    """The checkpoints that `path` stands for, every byte of them checked."""
    directories = checkpoints_in(path)
    beside = checkpoint.list_checkpoints(directories[0].parent)
    settings: Mapping[str, Any] = {}
    for directory in beside:
        with suppress(DataError):
            settings = read_manifest(directory, "checkpoint").settings.get("pretrain", {})
    kept = Kept(settings.get("keep_checkpoints", 1), settings.get("keep_every_steps"), settings.get("keep_best", False))
    reasons = kept.reasons(checkpoint.bits_of(beside))
    return [_examine(directory, reasons, progress) for directory in directories]


def _examine(directory: Path, reasons: Mapping[int, str], progress: Progress) -> CheckpointRow:
    made: Mapping[str, Any] = {}
    statistics: Mapping[str, Any] = {}
    try:
        with hold(directory):
            manifest = read_manifest(directory, "checkpoint")
            made, statistics = manifest.made, manifest.statistics
            found = list(damage(directory, manifest, progress=progress))
    except DataError as error:
        found = [str(error)]
    return CheckpointRow(
        path=str(directory),
        step=checkpoint.step_of(directory),
        at=made.get("at"),
        bytes=sum(file.stat().st_size for file in directory.iterdir()),
        loss=statistics.get("loss"),
        validation_bits_per_byte=statistics.get("validation_bits_per_byte"),
        kept=reasons.get(checkpoint.step_of(directory), "read when it was to be removed"),
        damage=found,
    )


def list_rows(found: Sequence[CheckpointRow]) -> list[tuple[str, ...]]:
    """A table for the terminal."""

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.4f}"

    return [
        ("step", "written (UTC)", "bytes", "loss", "bits/byte", "kept as", "state"),
        *(
            (f"{each.step:,}", (each.at or "–").replace("T", " ").removesuffix("Z"), f"{each.bytes:,}",
             number(each.loss), number(each.validation_bits_per_byte), each.kept,
             f"damaged: {each.damage[0]}" if each.damage else "whole")
            for each in found
        ),
    ]  # fmt: skip


# Diff


@dataclass(frozen=True)
class TensorChange:
    """One tensor of two checkpoints."""

    name: str
    shape: list[int] | None
    """None when it is not the same in both, or one does not have it."""
    norm: float | None
    """Norm of the first."""
    change: float | None
    """Norm of the difference."""
    relative: float | None
    """Its share of `norm`; None where that is zero."""


@dataclass(frozen=True)
class Difference:
    """The differences of two checkpoints."""

    settings: dict[str, tuple[Any, Any]]
    inputs: dict[str, tuple[Any, Any]]
    steps: tuple[int | None, int | None]
    tensors: list[TensorChange]


def diff(first: Path, second: Path) -> Difference:
    """Compare settings, inputs and weights of two checkpoints or models. A run stands for its newest checkpoint.

    Raises:
        DataError: one that is damaged.
    """
    with ExitStack() as opened:
        (one, first_weights), (two, second_weights) = (_open(path, opened) for path in (first, second))
        names = dict.fromkeys([*first_weights, *second_weights])
        return Difference(
            settings=differences(dict(one.settings), dict(two.settings)),
            inputs=differences(dict(one.inputs), dict(two.inputs)),
            steps=(_last_step(one), _last_step(two)),
            tensors=[_compare_tensor(name, first_weights, second_weights) for name in names],
        )


def _last_step(manifest: Manifest) -> Any:
    """The last step of a checkpoint or a model; None if it was not trained."""
    return manifest.statistics.get("step", manifest.statistics.get("steps"))


def _open(path: Path, opened: ExitStack) -> tuple[Manifest, Weights]:
    is_model = (path / "config.json").is_file()
    directory = opened.enter_context(hold(path if is_model else checkpoints_in(path)[-1]))
    manifest = verify(directory, "model" if is_model else "checkpoint")
    prefix, pieces = "" if is_model else "model.", stored_pieces(directory)
    names = sorted(name for name in pieces if name.startswith(prefix))
    return manifest, {name.removeprefix(prefix): partial(read_whole, pieces[name]) for name in names}


def _compare_tensor(name: str, first: Weights, second: Weights) -> TensorChange:
    one, two = (weights[name]().double() if name in weights else None for weights in (first, second))
    if one is None or two is None or one.shape != two.shape:
        return TensorChange(name, None, None, None, None)
    norm, change = one.norm().item(), (two - one).norm().item()
    return TensorChange(name, list(one.shape), norm, change, change / norm if norm else None)


def setting_rows(found: Difference) -> list[tuple[str, ...]]:
    """The settings and inputs that differ."""
    changed = {"step": found.steps, **found.settings, **found.inputs}
    rows = [(name, str(old), str(new)) for name, (old, new) in changed.items() if old != new]
    return [("setting or input", "first", "second"), *rows] if rows else [("the same settings",)]


def weight_rows(found: Difference) -> list[tuple[str, ...]]:
    """How far each weight has moved."""

    def cells(each: TensorChange) -> tuple[str, ...]:
        if each.shape is None:
            return each.name, "not the same in both", "", "", ""
        relative = "–" if each.relative is None else f"{each.relative:.2%}"
        return each.name, " × ".join(map(str, each.shape)), f"{each.norm:.4g}", f"{each.change:.4g}", relative

    return [("weight", "shape", "norm", "change", "relative"), *map(cells, found.tensors)]


# Average


def average(paths: Sequence[Path], out: Path, last: int | None = None, progress: Progress = no_progress) -> list[Path]:
    """Write a model whose weights are the mean of those of several checkpoints, which are returned.

    Args:
        paths: checkpoints, or runs, which stand for all of their checkpoints.
        last: use only so many of each run, the newest.

    Raises:
        SettingsError: fewer than two checkpoints, of models that differ, or `out` is there already.
        DataError: one that is damaged, or whose tokenizer is gone.
    """
    if out.exists():
        raise SettingsError(f"{out} exists and is left as it is: choose another --out, or move it away")
    directories = [directory for path in paths for directory in checkpoints_in(path)[-(last or 0) :]]
    directories = list(dict.fromkeys(directories))
    if len(directories) < 2:
        raise SettingsError(f"{', '.join(map(str, paths))}: one checkpoint is its own mean; name several")
    with ExitStack() as opened:
        found = []
        for number, directory in enumerate(directories):
            progress(number, len(directories) * 2, directory.name)
            found.append(_open(directory, opened))
        first = found[0][0]
        for directory, (manifest, _) in zip(directories, found, strict=True):
            _refuse_another(manifest, first, directory, directories[0])
        tokenizer = _tokenizer_of(directories[0], first)
        weights = {}
        names = [name for name in found[0][1] if not name.startswith("multi_token.")]
        for number, name in enumerate(names):
            progress(len(names) + number, 2 * len(names), name)
            weights[name] = (sum(each[name]().double() for _, each in found) / len(found)).to(torch.float32)  # type: ignore[union-attr]
    config = ModelConfig.from_table(dict(first.settings["model"])).with_vocabulary(len(weights["embed.weight"]))
    inputs = {str(directory): manifest.digest for directory, (manifest, _) in zip(directories, found, strict=True)}
    settings = {"model": config.table(), "average": {"checkpoints": len(directories)}}
    with making(out, "model", settings, {**inputs, "tokenizer": first.inputs["tokenizer"]}) as draft:
        write_model(draft, config, weights, tokenizer, Sampling().table())
        draft.statistics |= {
            "steps": max(map(checkpoint.step_of, directories)),
            "tokens": max(manifest.statistics.get("tokens", 0) for manifest, _ in found),
        }
    return directories


def _refuse_another(manifest: Manifest, first: Manifest, directory: Path, other: Path) -> None:
    changed = differences(dict(manifest.settings.get("model", {})), dict(first.settings.get("model", {})))
    reasons = [f"model.{name} is {mine!r} and {its!r}" for name, (mine, its) in changed.items()]
    if manifest.inputs.get("tokenizer") != first.inputs.get("tokenizer"):
        reasons.append("they have other tokenizers")
    if reasons:
        raise SettingsError(
            f"{directory} and {other} are of different models, which have no mean: {'; '.join(reasons)}"
        )


def _tokenizer_of(directory: Path, manifest: Manifest) -> Tokenizer:
    """The tokenizer of the run that a checkpoint stands in."""
    place = directory.resolve().parents[2] / "tokenizer"
    if not is_made(place) or read_manifest(place).digest != manifest.inputs.get("tokenizer"):
        raise DataError(f"the tokenizer that {directory} was trained with is not at {place}: leave it in its run")
    return Tokenizer.load(place)


def refuse_damaged(found: Sequence[CheckpointRow]) -> None:
    """
    Raises:
        DamagedError: naming each file that is not as it was written.
    """
    lines = [f"{each.path}: {why}" for each in found for why in each.damage]
    if lines:
        raise DamagedError("\n  ".join(["not whole:", *lines, "training goes on from the newest whole one"]))
