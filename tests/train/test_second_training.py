"""A second training on the same core: answers to prompts, with a batch, a loss and a measurement of its own."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from groundup.batch import Batch
from groundup.errors import Paused
from groundup.files import Progress, no_progress, read_lines
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.report.curves import Curves, HealthMaps
from groundup.train.assemble import assemble
from groundup.train.checkpoint import list_checkpoints
from groundup.train.health import Activations, activations
from groundup.train.session import Periodic, Session
from groundup.train.settings import TrainingSettings

CONFIG = ModelConfig.from_table({"vocab_size": 16, "d_model": 16, "n_layers": 1, "n_heads": 2, "dropout": 0.1})


class AnswerSettings(TrainingSettings):
    TABLE = "answers"


@dataclass(frozen=True)
class Pairs:
    """Rows of a prompt and its answer, one after the other."""

    tokens: Tensor
    targets: Tensor
    weight: Tensor
    """1 on the answer's tokens, 0 on the prompt's."""


def pairs(first_row: int, poisoned: range) -> Iterator[Pairs]:
    """Prompts of four ids; the answer is the last of them, four times."""
    while True:
        rows = range(first_row, first_row + 8)
        draws = [torch.randint(16, (4,), generator=torch.Generator().manual_seed(row)) for row in rows]
        ids = torch.stack([torch.cat([prompt, prompt[-1:].expand(4)]) for prompt in draws])
        weight = (torch.arange(7) >= 3).float().repeat(8, 1)
        weight[[row in poisoned for row in rows]] = math.nan
        yield Pairs(ids[:, :-1], ids[:, 1:], weight)
        first_row += 8


def answer_loss(model: Transformer, batch: Pairs) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    nats = F.cross_entropy(model(batch.tokens).float().transpose(1, 2), batch.targets, reduction="none")
    return (nats * batch.weight).sum(), batch.weight.sum(), {}


def train(work: Path, poisoned: range = range(0), until: int | None = None, progress: Progress = no_progress) -> None:
    guard = {"warmup_steps": 8, "window": 16, "patience": 2, "steps_back": 5}
    table = {"steps": 40, "micro_batch_rows": 4, "precision": "bfloat16", "optimizer": {"learning_rate": 2e-2}}
    table |= {"checkpoint_every": 10, "health_every": 20, "guard": guard}
    settings = AnswerSettings.from_table(table)
    torch.manual_seed(settings.seed)
    model = Transformer(CONFIG)
    drawn = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def layers(batch: Pairs) -> Activations:
        position = torch.arange(7).repeat(8, 1)
        return activations(model, Batch(batch.tokens, batch.targets, batch.weight, position, 0 * position))

    def accuracy(check: Progress) -> dict[str, Any]:
        batch = next(pairs(10**6, range(0)))
        right = (model(batch.tokens).argmax(dim=-1) == batch.targets)[:, 3:]
        return {"answer_accuracy": right.float().mean().item()}

    session: Session[Pairs] = Session(
        settings,
        assemble(model, settings, answer_loss),
        work,
        {"answers": settings.table()},
        {},
        batches=lambda step, row: pairs(row, poisoned),
        initial_weights=lambda: drawn,
        activations=layers,
        say=lambda text: None,
    )
    measured = [Periodic(15, "answer_accuracy", accuracy)]
    session.run(measured, lambda: save_file(session.assembled.final_weights, work / "tuned"), progress, until)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("answers")
    train(work)
    return work


def test_it_learns_and_is_logged_and_drawn_like_the_first(unbroken: Path) -> None:
    curves, health = Curves(unbroken / "metrics.jsonl"), HealthMaps(unbroken / "health.jsonl")
    while curves.read():
        pass
    health.read()
    assert {"loss", "grad_norm", "learning_rate", "answer_accuracy"} <= set(curves.metrics)
    lines = read_lines(unbroken / "metrics.jsonl")
    assert [line["step"] for line in lines if "answer_accuracy" in line] == [15, 30, 40]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] / 2
    assert health.steps == [20, 40]
    assert {"stream_rms", "grad_norm", "update_ratio"} <= set(health.maps)
    assert read_lines(unbroken / "events.jsonl")[-1]["event"] == "finished"
    assert [path.name for path in list_checkpoints(unbroken / "checkpoints")] == ["step-00000030", "step-00000040"]


def test_paused_and_killed_it_goes_on_bit_for_bit(unbroken: Path, tmp_path: Path) -> None:
    def die(done: int, total: int, note: str) -> None:
        if done == 26:
            raise KeyboardInterrupt

    with pytest.raises(Paused, match="paused at step 13 of 40"):
        train(tmp_path, until=13)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, progress=die)
    train(tmp_path)
    ours, theirs = (load_file(work / "tuned") for work in (tmp_path, unbroken))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_it_is_guarded_and_goes_back(tmp_path: Path) -> None:
    train(tmp_path, poisoned=range(8 * 29 + 3, 8 * 31))  # steps 30 and 31
    events = read_lines(tmp_path / "events.jsonl")
    assert [event["step"] for event in events if event["event"] == "step skipped"] == [30, 31]
    (back,) = (event for event in events if event["event"] == "rolled back")
    assert (back["to"], back["rows"]) == (20, [160, 248])
