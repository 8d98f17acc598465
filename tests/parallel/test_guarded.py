"""What is bad on one rank alone is left out by all of them, and all go back to the same place."""

import hashlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from groundup.batch import Batch
from groundup.building import build
from groundup.errors import SettingsError
from groundup.files import read_lines
from groundup.optim.state import own
from groundup.parallel.settings import ParallelSettings
from groundup.pretrain import run as stage
from groundup.pretrain.ranks import PretrainJob, pretrain_rank
from groundup.pretrain.run import pretrain
from groundup.recipe import Recipe
from groundup.train.guard import Guard, Trouble
from groundup.train.ranks import ManyRanks
from groundup.train.session import Session

ROWS, STEPS = 5, 20  # no even shares: one rank reads a row less
BAD = {1: "loss", 2: "loss", 3: "loss", 10: "verdict", 15: "loss", 16: "gradient", 17: "loss"}
"""Batch, counted from 0 → what is no number in it, or only found bad. Three in a row make the guard go back: the first
time there is no checkpoint yet, the second time step 8 is old enough."""
LAYOUTS: dict[str, dict[str, Any]] = {"shard": {"shard": 2}, "tensor": {"tensor": 2}, "replicate": {"replicate": 2}}
TABLE = {
    "name": "guarded",
    "corpus": {"sources": ["tales"]},
    "tokenizer": {"vocab_size": 320},
    "model": {"context_length": 16, "d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32},
    "pretrain": {
        "steps": STEPS, "batch_tokens": ROWS * 16, "micro_batch_rows": 1, "precision": "float32", "device": "cpu",
        "compile": False, "validate_every": 10, "validation_tokens": 100, "sample_every": STEPS, "sample_tokens": 1,
        "checkpoint_every": 4, "schedule": "constant",
        "guard": {"window": 32, "warmup_steps": 30, "patience": 3, "steps_back": 2, "rollbacks": 2},
    },
}  # fmt: skip


HALVES = {"shard": {"shard": 2}, "pipeline": {"pipeline": 2}}


def half_precision(recipe: Recipe) -> Recipe:
    """In float16, with a scale from which the first steps overflow."""
    half = ["pretrain.precision=float16", "pretrain.precision.initial_scale=1e9", "pretrain.steps=12"]
    return recipe.override([*half, "pretrain.batch_tokens=64", "model.n_layers=2"])


# What the ranks do


def spoiled(batches: Iterator[Batch], first_row: int, bad: bool) -> Iterator[Batch]:
    """The batches, those with a bad loss being no number if `bad`."""
    for number, batch in enumerate(batches, first_row // ROWS):
        State.batch = number
        if bad and BAD.get(number) == "loss":
            batch.weight.fill_(math.nan)
        yield batch


class State:
    """What the wrapped functions remember of the training that runs."""

    batch = 0
    seen: list[list[Any]] = []
    """Of each step its number, whether it was taken, and a digest of this rank's weights after it; of each time that
    weights were loaded, the step of the checkpoint, `loaded`, and the digest."""


def digest(session: Session[Any]) -> str:
    weights = session.assembled.masters.copies.values()
    return hashlib.sha256(b"".join(own(each.detach()).numpy().tobytes() for each in weights)).hexdigest()


def watched(rank: int) -> list[Any]:
    """Patches under which a training on this rank meets what is bad, and remembers its weights."""
    own_batches, clip_gradients = stage.own_batches, ManyRanks.clip_gradients
    after, load, trouble = Session._after, Session._load, Guard._trouble

    def reading(*arguments: Any) -> Iterator[Batch]:
        return spoiled(own_batches(*arguments), arguments[4], rank == 1)

    def clipping(ranks: ManyRanks, parameters: Any, max_norm: float) -> torch.Tensor:
        parameters = list(parameters)
        if rank == 1 and BAD.get(State.batch) == "gradient":
            own(parameters[0].grad).fill_(math.nan)
        return clip_gradients(ranks, parameters, max_norm)

    def judging(guard: Guard, loss: float, grad_norm: float) -> Trouble | None:
        if rank == 1 and BAD.get(State.batch) == "verdict":
            return Trouble("only this rank", loss, grad_norm, None, None)
        return trouble(guard, loss, grad_norm)

    def after_step(session: Session[Any], step: Any, *rest: Any) -> None:
        State.seen.append([step.number, step.accepted, digest(session)])
        after(session, step, *rest)

    def loading(session: Session[Any]) -> Any:
        loaded = load(session)
        State.seen.append([session.step, "loaded", digest(session)])
        return loaded

    return [
        mock.patch.object(stage, "own_batches", reading),
        mock.patch.object(ManyRanks, "clip_gradients", clipping),
        mock.patch.object(Guard, "_trouble", judging),
        mock.patch.object(Session, "_after", after_step),
        mock.patch.object(Session, "_load", loading),
    ]


def work(rank: int, folder: Path) -> None:
    """All cases in one launch."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(minutes=5))
    recipe, device = Recipe.from_table(TABLE), torch.device("cpu")
    for name, layout in HALVES.items():
        half, parallel = half_precision(recipe), ParallelSettings.from_table(layout)
        training = PretrainJob(half.model, half.pretrain, parallel, folder / f"half {name}", {})
        pretrain_rank(training, "", device, 2)
    for patch in watched(rank):
        patch.start()
    for name, layout in LAYOUTS.items():
        parallel = ParallelSettings.from_table(layout)
        training = PretrainJob(recipe.model, recipe.pretrain, parallel, folder / name, {})
        State.seen = []
        pretrain_rank(training if rank == 0 else None, "", device, 2)
        (folder / f"{name} {rank}.json").write_text(json.dumps(State.seen))
    try:
        pretrain_rank(training, f"recipe of {rank}", device, 2)
    except SettingsError as error:
        (folder / f"refused {rank}").write_text(str(error))
    dist.destroy_process_group()


# What must hold


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, settle: Callable[[Path], Path]) -> Path:
    """A run by each layout, and one by a process alone that meets the same."""
    folder = tmp_path_factory.mktemp("guarded")
    settle(folder)
    recipe = Recipe.from_table({**TABLE, "corpus": {"sources": [str(folder / "tales")]}})
    build(recipe, run=folder / "alone", last="pack", say=lambda text: None)
    for name in (*LAYOUTS, "half alone", *(f"half {layout}" for layout in HALVES)):
        shutil.copytree(folder / "alone", folder / name)
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), folder]) for rank in range(2)]
    half = half_precision(recipe)
    pretrain(half.model, half.pretrain, folder / "half alone", {}, say=lambda text: None)
    plain = stage.batches
    with (
        mock.patch.dict(BAD, dict.fromkeys(BAD, "loss")),
        mock.patch.object(stage, "batches", lambda *all: spoiled(plain(*all), all[4], True)),
    ):
        pretrain(recipe.model, recipe.pretrain, folder / "alone", {}, say=lambda text: None)
    assert [rank.wait(timeout=600) for rank in ranks] == [0, 0]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_ranks_leave_out_what_is_bad_on_one_and_go_back_together(runs: Path, layout: str) -> None:
    """With rows that do not divide over the ranks, from fewer shards than ranks."""
    seen = [json.loads((runs / f"{layout} {rank}.json").read_text()) for rank in range(2)]
    assert [line[:2] for line in seen[0]] == [line[:2] for line in seen[1]]
    assert [step for step, what, _ in seen[0] if what == "loaded"] == [0, 0, 8]
    assert [step for step, what, _ in seen[0] if what is False] == [2, 3, 7, 12, 13], "and what made it go back"
    for lines in seen:
        saved, before = {}, None
        for step, what, weights in lines:
            if what == "loaded":
                assert weights == saved.setdefault(step, weights)
            else:
                assert (weights != before) == what
                saved[step] = weights
            before = weights
    lines, alone = (
        {line["step"]: line for line in read_lines(runs / name / "pretrain" / "metrics.jsonl") if "loss" in line}
        for name in (layout, "alone")
    )
    assert len(lines) == STEPS
    for step, line in alone.items():
        assert lines[step]["tokens"] == line["tokens"]
        if line.get("accepted", True):
            assert lines[step]["loss"] == pytest.approx(line["loss"], rel=1e-4)  # float32, added up in another order


@pytest.mark.slow
@pytest.mark.parametrize("layout", HALVES)
def test_a_float16_scaler_leaves_out_the_same_steps_on_all_ranks(runs: Path, layout: str) -> None:
    """As in one process, though the loss of a pipeline is on its last stage alone."""
    ours, alone = (runs / f"half {name}" / "pretrain" for name in (layout, "alone"))
    overflows, expected = (
        [
            {name: value for name, value in line.items() if name != "at"}
            for line in read_lines(run / "events.jsonl")
            if line["event"] == "overflow"
        ]
        for run in (ours, alone)
    )
    assert overflows == expected != []
    losses, others = (
        [line["loss"] for line in read_lines(run / "metrics.jsonl") if "loss" in line] for run in (ours, alone)
    )
    assert losses == pytest.approx(others, rel=1e-3)  # float16 has 11 bits


@pytest.mark.slow
def test_ranks_with_different_recipes_do_not_begin(runs: Path) -> None:
    for rank in range(2):
        told = (runs / f"refused {rank}").read_text()
        assert told.startswith("ranks differ in the recipe: rank 0 has recipe of 0, rank 1 has recipe of 1")


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
