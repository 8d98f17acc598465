"""The doctor: seeded faults are named, exactly these, and nothing is named where all is well."""

import dataclasses
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from groundup.batch import Batch
from groundup.building import build, examine
from groundup.errors import DataError, DivergedError, ResourceError
from groundup.model.attention import Causal, dot_product_attention
from groundup.optim.masters import Masters
from groundup.optim.optimizer import make_optimizer
from groundup.pretrain.doctor import run as doctor
from groundup.pretrain.doctor.run import Subject
from groundup.pretrain.doctor.verdict import Verdict, error, refuse_errors
from groundup.recipe import Recipe
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train import loader, losses
from groundup.train.fit import Loss

SubjectOf = Callable[..., Subject]


def named(lines: list[Verdict]) -> set[str]:
    return {line.check for line in lines if line.level != "ok"}


@dataclass(frozen=True)
class Leaky:
    """Attention within a document that looks `ahead`, in one layer or all."""

    document: Tensor
    ahead: int
    only: int | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int, **options: Any) -> Tensor:
        index = torch.arange(q.shape[2])
        distance = (index[:, None] - index)[None, None]
        ahead = self.ahead if self.only in (None, layer) else 0
        same = self.document[:, None, :, None] == self.document[:, None, None, :]
        return dot_product_attention(q, k, v, same & (distance >= -ahead), distance, **options)


def with_loss(subject: Subject, loss: Loss) -> Subject:
    return dataclasses.replace(subject, assembled=dataclasses.replace(subject.assembled, loss=loss))


def leaking(subject: Subject, ahead: int, only: int | None = None) -> Subject:
    return with_loss(subject, partial(losses.next_token, attending=lambda batch: Leaky(batch.document, ahead, only)))


def across_documents(subject: Subject) -> Subject:
    return with_loss(subject, partial(losses.next_token, attending=lambda batch: Causal()))


def shifted(subject: Subject, shift: int) -> Subject:
    """Rows whose targets are the tokens so many positions ahead."""

    def rows(first: int, count: int) -> Batch:
        batch = subject.rows(first, count)
        return dataclasses.replace(batch, targets=batch.tokens.roll(-shift, dims=1))

    return dataclasses.replace(subject, rows=rows)


def shifted_in_the_loss(subject: Subject, shift: int) -> Subject:
    def loss(model: Any, batch: Batch) -> Any:
        return losses.next_token(model, dataclasses.replace(batch, targets=batch.targets.roll(1 - shift, dims=1)))

    return with_loss(subject, loss)


def ordered(subject: Subject, number: Callable[[int, int], int]) -> Subject:
    """Rows in an order of one's own: number(i, n) is the i-th."""
    length, train = subject.config.context_length, subject.train
    n = train.n_rows(length)

    def rows(first: int, count: int) -> Batch:
        numbers = [number(i, n) for i in range(first, first + count)]
        return loader.cut(train, np.array(numbers) * length, length)

    return dataclasses.replace(subject, rows=rows)


def in_a_buffer(i: int, n: int) -> int:
    block = i % n // 24 * 24
    within = np.random.default_rng(block).permutation(min(24, n - block))
    return int(block + within[i % n - block])


def of_another_tokenizer(subject: Subject) -> Subject:
    text = "Der König und der kleine Fuchs gingen über den Hügel, einen goldenen Apfel zu finden. " * 40
    return dataclasses.replace(
        subject, tokenizer=Tokenizer.learn([text + "".join(map(chr, range(33, 800)))], vocab_size=512)
    )


def with_dead_units(subject: Subject, layers: tuple[int, ...], units: int, by: str) -> Subject:
    with torch.no_grad():
        for layer in layers:
            up = subject.assembled.model.blocks[str(layer)].feedforward.up  # type: ignore[union-attr]
            if by == "bias":
                up.bias[:units] = -10.0  # type: ignore[union-attr, index]
            else:
                up.weight[:units] = 0.0  # type: ignore[union-attr, index]
    return subject


def untied(subject: Subject) -> Subject:
    model = subject.assembled.model
    assert model.head is not None and model.embed is not None
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())
    return subject


def with_coarse_state(subject: Subject, only: str) -> Subject:
    optimizer, copies = subject.assembled.optimizer, subject.assembled.masters.copies

    def coarsen(*_: Any) -> None:
        for name, weight in copies.items():
            if only in name:
                optimizer.state[weight]["exp_avg_sq"] = optimizer.state[weight]["exp_avg_sq"].bfloat16()

    optimizer.register_step_post_hook(coarsen)
    return subject


def without_masters(subject: Subject) -> Subject:
    model = subject.assembled.model.bfloat16()
    masters = Masters(model, torch.float32)  # takes the weights for float32 ones, and steps them themselves
    optimizer = make_optimizer(masters.copies.items(), subject.settings.optimizer)
    assembled = dataclasses.replace(subject.assembled, model=model, masters=masters, optimizer=optimizer)
    return dataclasses.replace(subject, assembled=assembled)


def leaving_out(subject: Subject) -> Subject:
    last = subject.assembled.optimizer.param_groups[0]["params"].pop()
    assert last.ndim == 2
    return subject


FAULTS: dict[str, tuple[str, Callable[[SubjectOf], Subject]]] = {
    "a mask that looks one ahead": ("mask", lambda subject_of: leaking(subject_of(), 1)),
    "a mask that looks seven ahead": ("mask", lambda subject_of: leaking(subject_of(), 7)),
    "a mask that leaks in the last layer": ("mask", lambda subject_of: leaking(subject_of(), 1, only=2)),
    "a mask that crosses documents": ("mask", lambda subject_of: across_documents(subject_of())),
    "a mask that leaks in bfloat16": (
        "mask",
        lambda subject_of: leaking(subject_of("pretrain.precision=bfloat16"), 1, only=1),
    ),
    "labels that are not shifted": ("targets", lambda subject_of: shifted(subject_of(), 0)),
    "labels that are shifted by two": ("targets", lambda subject_of: shifted(subject_of(), 2)),
    "labels that are shifted back": ("targets", lambda subject_of: shifted(subject_of(), -1)),
    "a loss that does not shift": ("targets", lambda subject_of: shifted_in_the_loss(subject_of(), 0)),
    "a loss that shifts by two": ("targets", lambda subject_of: shifted_in_the_loss(subject_of(), 2)),
    "rows in the order of the text": ("order of rows", lambda subject_of: ordered(subject_of(), lambda i, n: i % n)),
    "rows backwards": ("order of rows", lambda subject_of: ordered(subject_of(), lambda i, n: n - 1 - i % n)),
    "rows shuffled in a small buffer": ("order of rows", lambda subject_of: ordered(subject_of(), in_a_buffer)),
    "the same order in every epoch": (
        "order of rows",
        lambda subject_of: ordered(subject_of(), lambda i, n: int(loader._permutation(0, 0, n)[i % n])),
    ),
    "rows drawn twice": (
        "order of rows",
        lambda subject_of: ordered(subject_of(), lambda i, n: int(np.random.default_rng(i).integers(n))),
    ),
    "another tokenizer": ("shards", lambda subject_of: of_another_tokenizer(subject_of())),
    "a learning rate of 100 times": (
        "learning rate",
        lambda subject_of: subject_of("pretrain.optimizer.learning_rate=0.5"),
    ),
    "one dead layer": ("dead units", lambda subject_of: with_dead_units(subject_of(), (1,), 64, "bias")),
    "all layers dead": ("dead units", lambda subject_of: with_dead_units(subject_of(), (0, 1, 2), 64, "bias")),
    "half a layer dead": ("dead units", lambda subject_of: with_dead_units(subject_of(), (2,), 32, "weight")),
    "a dead layer of gated units": (
        "dead units",
        lambda subject_of: with_dead_units(subject_of("model.feedforward=swiglu"), (0,), 64, "weight"),
    ),
    "untied weights": ("tied weights", lambda subject_of: untied(subject_of())),
    "a coarse optimizer": ("optimizer state", lambda subject_of: with_coarse_state(subject_of(), "")),
    "one coarse moment": (
        "optimizer state",
        lambda subject_of: with_coarse_state(subject_of(), "blocks.1.attention.query"),
    ),
    "no master copies": ("optimizer state", lambda subject_of: without_masters(subject_of())),
    "a weight that is not stepped": ("optimizer state", lambda subject_of: leaving_out(subject_of())),
}


PLAIN = {
    "a mask that looks one ahead",
    "a mask that crosses documents",
    "labels that are not shifted",
    "a loss that shifts by two",
    "rows in the order of the text",
    "the same order in every epoch",
    "another tokenizer",
    "a learning rate of 100 times",
    "one dead layer",
    "untied weights",
    "one coarse moment",
}
"""The others are variants of these."""


@pytest.mark.parametrize(
    "fault", [fault if fault in PLAIN else pytest.param(fault, marks=pytest.mark.slow) for fault in FAULTS]
)
def test_a_seeded_fault_is_named_and_no_other(subject_of: SubjectOf, fault: str) -> None:
    expected, seed = FAULTS[fault]
    lines = list(doctor.quick_checks(seed(subject_of)))
    assert named(lines) == {expected}, [line for line in lines if line.level != "ok"]
    if expected != "learning rate":
        assert any(line.level == "error" and line.exit_code in (2, 3, 5) for line in lines)


KINDS = [
    ["pretrain.loss.kind=multi_token", "pretrain.loss.extra_tokens=2", "pretrain.precision=bfloat16"],
    ["pretrain.precision=autocast"],
    ["pretrain.precision=bfloat16"],
    ["model.dropout=0.2", "model.head.tied=false"],
    ["model.feedforward.kind=experts"],
    ["model.attention.window=8"],
    ["model.attention.kind=latent", "model.feedforward.kind=gelu"],
    ["model.position.kind=alibi", "model.block.kind=parallel"],
    ["model.position.kind=learned", "model.norm.kind=layernorm", "model.attention.bias=all"],
]


@pytest.mark.parametrize(
    "settings", [[], KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])], ids=str
)
def test_nothing_is_named_where_all_is_well(subject_of: SubjectOf, settings: list[str]) -> None:
    lines = list(doctor.quick_checks(subject_of(*settings)))
    assert named(lines) == set(), [line for line in lines if line.level != "ok"]
    assert len(lines) == 19


@pytest.mark.slow
def test_the_whole_set_tries_learning_going_on_and_cost(subject_of: SubjectOf, home: Path) -> None:
    """On a model this small; nothing is left behind, and neither model nor training is touched."""
    before = sorted(path.name for path in (home / "run").iterdir())
    lines = list(doctor.all_checks(subject_of("model.n_layers=2"), watts=100.0, price_per_hour=3.6))
    seen = {line.check: line for line in lines}
    assert [line for line in lines if line.level == "error"] == []
    assert seen["resume"].finding.startswith("bit for bit the unbroken training")
    assert seen["energy"].finding.endswith("at 100 W (as given)")
    assert {"learning-rate range", "overfits one batch", "memory", "speed", "whole run", "price"} <= seen.keys()
    assert sorted(path.name for path in (home / "run").iterdir()) == before


@pytest.mark.slow
def test_a_learning_rate_of_100_times_is_stopped_by_the_sweep(subject_of: SubjectOf) -> None:
    """The published rates are worth a warning; that it loses all it learned is shown by trying."""
    lines = list(doctor.all_checks(subject_of("model.n_layers=2", "pretrain.optimizer.learning_rate=0.5")))
    assert {line.check: line.level for line in lines if line.level != "ok"} == {
        "learning rate": "warning",
        "learning-rate range": "error",
    }
    with pytest.raises(DivergedError, match="times too high"):
        refuse_errors(lines)


def test_learning_is_not_tried_before_the_model_is_mended(subject_of: SubjectOf) -> None:
    lines = list(doctor.all_checks(untied(subject_of())))
    assert named(lines) == {"tied weights"}
    assert lines[-1].finding == "not tried: first correct the errors above"


def test_only_who_took_an_existing_tokenizer_is_told_to_learn_one(
    subject_of: SubjectOf, home: Path, tmp_path: Path
) -> None:
    """Pieces of German for English tales."""
    foreign = of_another_tokenizer(subject_of()).tokenizer
    foreign.save(tmp_path / "tokenizer.json")
    table = Recipe.load(home / "tales.toml").table()
    table["tokenizer"] = {"kind": "existing", "path": str(tmp_path / "tokenizer.json")}
    table["corpus"]["sources"] = [str(home / "tales")]
    lines = list(examine(Recipe.from_table(table), run=tmp_path / "run", only_quick=True, say=lambda told: None))
    vocabulary = next(line for line in lines if line.check == "vocabulary")
    assert vocabulary.level == "warning"
    learned = next(line for line in doctor.quick_checks(subject_of()) if line.check == "vocabulary")
    assert learned.level == "ok"


def test_training_begins_only_after_the_doctor_has_looked(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error ends it, in its exit code, before anything of the training is written."""
    run = recipe.parent / "run"
    bad = error("held-out text", "all of it is in training", "hold other texts out", DataError)
    with monkeypatch.context() as patched:
        patched.setattr(doctor, "quick_checks", lambda subject: iter([bad]))
        with pytest.raises(DataError, match="held-out text: all of it is in training → hold other texts out"):
            build(recipe, ["pretrain.steps=2"], run=run)
    assert not (run / "pretrain").exists()
    build(recipe, ["pretrain.steps=2"], run=run)
    event = json.loads((run / "pretrain" / "events.jsonl").read_text().splitlines()[0])
    assert event["event"] == "doctor"
    assert event["checks"] == 19
    assert "doctor: " in capsys.readouterr().out


@pytest.mark.parametrize("raised", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 TB")])
def test_where_memory_ran_out_the_parts_and_the_smallest_change_are_told(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    def fails(*_: Any) -> None:
        raise raised

    monkeypatch.setattr("groundup.pretrain.run.pretrain", fails)
    with pytest.raises(ResourceError) as caught:
        build(recipe, ["pretrain.micro_batch_rows=4"], run=recipe.parent / "run")
    assert caught.value.exit_code == 4
    for part in ("weights", "optimizer state", "gradients", "activations of feedforward", "scores in the loss"):
        assert part in str(caught.value)
    assert str(caught.value).endswith("set pretrain.micro_batch_rows=2")


@pytest.mark.slow
def test_a_process_that_runs_out_of_memory_ends_in_4_and_leaves_no_half_checkpoint(home: Path) -> None:
    words = [sys.executable, "-m", "groundup", "build", "tales.toml", "--run", "big"]
    words += ["model.d_model=2048", "model.d_ff=16384", "pretrain.precision=float32", "model.n_layers=8"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (5 << 30, 5 << 30))

    done = subprocess.run(words, cwd=home, capture_output=True, text=True, preexec_fn=limit, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "out of memory. This training needs about" in done.stderr
    assert "The smallest change: " in done.stderr
    assert not list((home / "big").rglob("step-*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["storybook", "shakespeare"])
def test_a_shipped_recipe_raises_no_false_alarm(name: str, tmp_path: Path) -> None:
    recipe = Path(__file__).parents[3] / "recipes" / f"{name}.toml"
    lines = list(examine(recipe, run=tmp_path / "run", only_quick=True, say=lambda told: None))
    assert named(lines) == set(), [line for line in lines if line.level != "ok"]
