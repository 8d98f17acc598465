"""The doctor: seeded faults are named, exactly these, and nothing is named where all is well."""

import dataclasses
import json
import math
import os
import re
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
from groundup.model.settings import ModelConfig
from groundup.optim.optimizer import make_optimizer
from groundup.optim.precision import Masters
from groundup.optim.settings import AdamW, Bfloat16
from groundup.plan.memory import MemoryNeeds, smallest_change
from groundup.pretrain.doctor import checks, texts
from groundup.pretrain.doctor import run as doctor
from groundup.pretrain.doctor.run import Subject
from groundup.pretrain.doctor.verdict import Verdict, error, ok, refuse_errors
from groundup.pretrain.paths import RunPaths
from groundup.recipe import Recipe
from groundup.shards import Tokens, count_ids
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train import loader, losses
from groundup.train.fit import Loss

WORDS = "the king and the little fox went over the hill to find a golden apple for the old queen who sat by the well"
TALES = """
name = "tales"

[corpus]
sources = ["tales"]

[tokenizer]
vocab_size = 512

[model]
context_length = 32
d_model = 32
n_layers = 3
n_heads = 2
d_ff = 64
feedforward = "relu"

[pretrain]
steps = 400
batch_tokens = 512
device = "cpu"
precision = "float32"
optimizer = { learning_rate = 5e-3 }
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, story_texts: list[str]) -> Path:
    """A recipe on real text, its first stages made by the doctor himself."""
    place: Path = tmp_path_factory.mktemp("doctor")
    (place / "tales").mkdir()
    for number, text in enumerate(story_texts[:120]):
        (place / "tales" / f"{number:03}.txt").write_text(text[:1500])
    (place / "tales.toml").write_text(TALES)
    list(examine(place / "tales.toml", run=place / "run", only_quick=True, say=lambda told: None))
    return place


@pytest.fixture
def subject(home: Path) -> Subject:
    return subject_of(home)


def subject_of(home: Path, *overrides: str) -> Subject:
    chosen = Recipe.load(home / "tales.toml", overrides)
    run = home / "run"
    paths = RunPaths(run / "shards", run / "tokenizer", run / "pretrain", run / "model", run / "corpus")
    return doctor.prepare(chosen.model, chosen.pretrain, paths)


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


def with_held_out_in_training(subject: Subject, every: int, change: int | None, split: str = "validation") -> Subject:
    """Every so many documents of a split stand in training too, each `change`-th of their ids another one."""
    held, train = subject.held_out[split], subject.train
    ids, offsets = [np.asarray(train.ids[:-1])], list(train.offsets)
    for number in range(0, held.n_documents, every):
        copy = np.array(held.ids[held.offsets[number] : held.offsets[number + 1]])
        if change:
            copy[change::change] = (copy[change::change] + 1) % 256
        ids.append(copy)
        offsets.append(offsets[-1] + len(copy))
    joined = np.concatenate([*ids, train.ids[-1:]])
    n_bytes = np.ones(len(offsets) - 1, np.int64)
    longer = dataclasses.replace(subject, train=Tokens(joined, np.array(offsets), n_bytes))
    return ordered(longer, lambda i, n: loader._permutation(0, i // n, n)[i % n])


FAULTS: dict[str, tuple[str, Callable[[Path], Subject]]] = {
    "a mask that looks one ahead": ("mask", lambda home: leaking(subject_of(home), 1)),
    "a mask that looks seven ahead": ("mask", lambda home: leaking(subject_of(home), 7)),
    "a mask that leaks in the last layer": ("mask", lambda home: leaking(subject_of(home), 1, only=2)),
    "a mask that crosses documents": ("mask", lambda home: across_documents(subject_of(home))),
    "a mask that leaks in bfloat16": (
        "mask",
        lambda home: leaking(subject_of(home, "pretrain.precision=bfloat16"), 1, only=1),
    ),
    "labels that are not shifted": ("targets", lambda home: shifted(subject_of(home), 0)),
    "labels that are shifted by two": ("targets", lambda home: shifted(subject_of(home), 2)),
    "labels that are shifted back": ("targets", lambda home: shifted(subject_of(home), -1)),
    "a loss that does not shift": ("targets", lambda home: shifted_in_the_loss(subject_of(home), 0)),
    "a loss that shifts by two": ("targets", lambda home: shifted_in_the_loss(subject_of(home), 2)),
    "rows in the order of the text": ("order of rows", lambda home: ordered(subject_of(home), lambda i, n: i % n)),
    "rows backwards": ("order of rows", lambda home: ordered(subject_of(home), lambda i, n: n - 1 - i % n)),
    "rows shuffled in a small buffer": ("order of rows", lambda home: ordered(subject_of(home), in_a_buffer)),
    "the same order in every epoch": (
        "order of rows",
        lambda home: ordered(subject_of(home), lambda i, n: int(loader._permutation(0, 0, n)[i % n])),
    ),
    "rows drawn twice": (
        "order of rows",
        lambda home: ordered(subject_of(home), lambda i, n: int(np.random.default_rng(i).integers(n))),
    ),
    "another tokenizer": ("shards", lambda home: of_another_tokenizer(subject_of(home))),
    "a learning rate of 100 times": (
        "learning rate",
        lambda home: subject_of(home, "pretrain.optimizer.learning_rate=0.5"),
    ),
    "one dead layer": ("dead units", lambda home: with_dead_units(subject_of(home), (1,), 64, "bias")),
    "all layers dead": ("dead units", lambda home: with_dead_units(subject_of(home), (0, 1, 2), 64, "bias")),
    "half a layer dead": ("dead units", lambda home: with_dead_units(subject_of(home), (2,), 32, "weight")),
    "a dead layer of gated units": (
        "dead units",
        lambda home: with_dead_units(subject_of(home, "model.feedforward=swiglu"), (0,), 64, "weight"),
    ),
    "untied weights": ("tied weights", lambda home: untied(subject_of(home))),
    "a coarse optimizer": ("optimizer state", lambda home: with_coarse_state(subject_of(home), "")),
    "one coarse moment": (
        "optimizer state",
        lambda home: with_coarse_state(subject_of(home), "blocks.1.attention.query"),
    ),
    "no master copies": ("optimizer state", lambda home: without_masters(subject_of(home))),
    "a weight that is not stepped": ("optimizer state", lambda home: leaving_out(subject_of(home))),
    "validation in training": ("held-out text", lambda home: with_held_out_in_training(subject_of(home), 1, None)),
    "a validation document in training": (
        "held-out text",
        lambda home: with_held_out_in_training(subject_of(home), 100, None),
    ),
    "test in training, with small changes": (
        "held-out text",
        lambda home: with_held_out_in_training(subject_of(home), 2, 40, "test"),
    ),
    "a fifth of validation in training, changed more": (
        "held-out text",
        lambda home: with_held_out_in_training(subject_of(home), 5, 25),
    ),
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
    "test in training, with small changes",
}
"""The others are variants of these."""


@pytest.mark.parametrize(
    "fault", [fault if fault in PLAIN else pytest.param(fault, marks=pytest.mark.slow) for fault in FAULTS]
)
def test_a_seeded_fault_is_named_and_no_other(home: Path, fault: str) -> None:
    expected, seed = FAULTS[fault]
    lines = list(doctor.quick_checks(seed(home)))
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
def test_nothing_is_named_where_all_is_well(home: Path, settings: list[str]) -> None:
    lines = list(doctor.quick_checks(subject_of(home, *settings)))
    assert named(lines) == set(), [line for line in lines if line.level != "ok"]
    assert len(lines) == 19


def test_the_whole_set_tries_learning_going_on_and_cost(home: Path) -> None:
    """On a model this small; nothing is left behind, and neither model nor training is touched."""
    before = sorted(path.name for path in (home / "run").iterdir())
    lines = list(doctor.all_checks(subject_of(home, "model.n_layers=2"), watts=100.0, price_per_hour=3.6))
    seen = {line.check: line for line in lines}
    assert [line for line in lines if line.level == "error"] == []
    assert seen["resume"].finding.startswith("bit for bit the unbroken training")
    assert seen["energy"].finding.endswith("at 100 W (as given)")
    assert {"learning-rate range", "overfits one batch", "memory", "speed", "whole run", "price"} <= seen.keys()
    assert sorted(path.name for path in (home / "run").iterdir()) == before


def test_a_learning_rate_of_100_times_is_stopped_by_the_sweep(home: Path) -> None:
    """The published rates are worth a warning; that it loses all it learned is shown by trying."""
    lines = list(doctor.all_checks(subject_of(home, "model.n_layers=2", "pretrain.optimizer.learning_rate=0.5")))
    assert {line.check: line.level for line in lines if line.level != "ok"} == {
        "learning rate": "warning",
        "learning-rate range": "error",
    }
    with pytest.raises(DivergedError, match="times too high"):
        refuse_errors(lines)


RATES = [10.0**exponent for exponent in (-5, -4, -3, -2, -1, 0)]


@pytest.mark.parametrize(
    ("losses_seen", "rate", "verdict"),
    [
        ([8.0, 7.8, 7.0, 6.0, 9.0, 30.0], 3e-3, "ok"),
        ([8.0, 7.8, 7.0, 6.0, 9.0, 30.0], 0.3, "error"),
        ([8.0, 7.8, 7.0, 6.0, math.nan], 0.3, "error"),
        ([8.0, 7.8, 7.0, 6.0, math.nan, math.inf], 1.0, "error"),
        ([8.0, 7.8, 7.0, 6.0, 7.0, 7.5], 5e-3, "warning"),
        ([8.0, 7.8, 7.0, 6.0, 9.0, 30.0], 1e-6, "warning"),
    ],
)
def test_a_rate_is_judged_by_where_the_loss_falls_and_where_it_is_lost(
    losses_seen: list[float], rate: float, verdict: str
) -> None:
    assert checks.check_range(RATES, losses_seen, rate, losses_seen[0]).level == verdict


def test_learning_is_not_tried_before_the_model_is_mended(home: Path) -> None:
    lines = list(doctor.all_checks(untied(subject_of(home))))
    assert named(lines) == {"tied weights"}
    assert lines[-1].finding == "not tried: first correct the errors above"


def test_gradients_that_vanish_or_are_cut_off_are_named(subject: Subject) -> None:
    copies = subject.assembled.masters.copies
    for weight in copies.values():
        weight.grad = torch.ones_like(weight)
    assert checks.check_gradients(copies).level == "ok"
    for name, weight in copies.items():
        if name.startswith("blocks.1."):
            weight.grad = torch.full_like(weight, 1e-5)
    assert "layer 1 gets almost none" in checks.check_gradients(copies).advice
    copies["blocks.2.attention.key.weight"].grad = None
    assert "none for blocks.2.attention.key.weight" in checks.check_gradients(copies).finding
    copies["norm.weight"].grad = torch.full_like(copies["norm.weight"], math.nan)
    assert "norm.weight: not finite" in checks.check_gradients(copies).finding


def test_a_model_that_knows_the_answer_before_training_is_stopped() -> None:
    assert checks.check_start(math.log(512), 512, 64).level == "ok"
    assert checks.check_start(4.0, 512, 64).level == "error"
    assert checks.check_start(9.0, 512, 64).level == "warning"


@pytest.mark.parametrize(
    ("loss", "known", "verdict", "told"),
    [
        (1.3, 1.3, "ok", "1.300 on the rows; a model that knows nothing has ln 512 = 6.238"),
        (5.5, 5.5, "warning", "only how often each token occurs 4.900"),  # far texts
        (6.1, 6.1, "error", "ln 512 = 6.238"),
        (9.0, 9.0, "error", "9.000 on the rows"),
        (6.4, 4.0, "ok", "4.000 without the tokens that were added to the vocabulary"),
        (6.4, 6.2, "error", "6.200 without"),
        (math.nan, math.nan, "error", "nan on the rows"),
        (math.inf, math.inf, "error", "inf on the rows"),
    ],
)
def test_a_trained_start_is_judged_by_what_it_knows_of_these_ids(
    loss: float, known: float, verdict: str, told: str
) -> None:
    line = checks.check_trained_start(loss, known, "the rows", 512, 4.9)
    assert line.level == verdict
    assert told in line.finding


@pytest.mark.parametrize(
    ("rises", "rate", "verdict"),
    [
        ([0.0, -0.01, 0.01, 0.5, 3.0, 9.0], 1e-4, "ok"),  # has nothing left to learn, and forgets only at 0.1
        ([0.0, -0.3, -0.9, -1.0, 3.0, 9.0], 1e-2, "ok"),
        ([0.0, -0.3, -0.9, -1.0, 3.0, 9.0], 0.05, "warning"),
        ([0.0, -0.3, -0.9, -1.0, 3.0, 9.0], 0.1, "error"),
        ([0.0, 0.0, 0.0, 4.0, math.nan], 0.1, "error"),
        ([0.0, -0.1, -0.2, -0.1, -0.1, -0.1], 0.5, "ok"),
        ([0.0, -0.3, -0.9, -1.0, 3.0, 9.0], 1e-9, "ok"),
    ],
)
def test_the_rate_of_a_trained_start_is_judged_by_what_it_forgets(
    rises: list[float], rate: float, verdict: str
) -> None:
    """Batches differ more than a step changes: beside the untouched model the differences are gone."""
    untouched = [1.3, 1.5, 1.1, 1.6, 1.2, 1.4]
    losses_seen = [before + rise for before, rise in zip(untouched, rises, strict=False)]
    line = checks.check_trained_range(RATES, losses_seen, untouched, rate, 512)
    assert line.level == verdict, line
    if line.advice:
        assert checks.check_trained_range(RATES, losses_seen, untouched, float(line.advice.split("=")[1]), 512) == ok(
            "learning-rate range", line.finding.rsplit(" ", 1)[0] + " " + line.advice.split("=")[1]
        )


def test_what_a_fresh_model_must_not_have_a_trained_one_may(home: Path) -> None:
    """Dead units, a matrix switched off, rows that are memorised already, a rate as low as one likes."""
    dead = with_dead_units(subject_of(home), (1,), 64, "bias")
    batch, model, loss = dead.rows(0, 8), dead.assembled.model, dead.assembled.loss
    assert checks.check_units(model, batch, loss).level == "error"
    assert checks.check_units(model, batch, loss, trained=True) == ok(
        "dead units", "100.0% at most are zero for these rows, in 3 layers"
    )
    weights = {f"blocks.0.{name}": torch.ones(2, 2) for name in ("up", "down")}
    weights["blocks.0.up"].grad, weights["blocks.0.down"].grad = torch.zeros(2, 2), torch.ones(2, 2)
    assert checks.check_gradients(weights).level == "error"
    assert checks.check_gradients(weights, trained=True) == ok("gradients", "finite; zero for blocks.0.up")
    weights["blocks.0.up"].grad = None
    assert checks.check_gradients(weights, trained=True).level == "error"
    assert checks.check_overfit([1.0, 1.01]).level == "error"
    assert checks.check_overfit([1.0, 1.01], trained=True).level == "ok"
    assert checks.check_overfit([1.0, 1.5], trained=True).level == "error"
    low = Recipe.load(home / "tales.toml", ["pretrain.optimizer.learning_rate=1e-6"])
    started = low.pretrain.model_copy(update={"start": "runs/base"})
    assert checks.check_learning_rate(dead.config, low.pretrain).level == "warning"
    assert checks.check_learning_rate(dead.config, started).level == "ok"


def test_a_weight_that_its_precision_cannot_hold_is_named(subject: Subject) -> None:
    model = subject.assembled.model
    assert checks.check_trained_weights(model, Path("base")).finding.startswith("the weights of base: ")
    with torch.no_grad():
        model.blocks["1"].attention.key.weight[0, :3] = 1e6  # type: ignore[union-attr, index]
    assert checks.check_trained_weights(model, Path("base")).level == "ok"
    line = checks.check_trained_weights(model.half(), Path("base"))
    assert line.finding == "of 1,024 numbers in blocks.1.attention.key.weight of base, 3 are not finite in float16"
    assert (line.level, line.exit_code) == ("error", 3)


def test_ids_that_never_occur_are_told_apart(tokenizer: Tokenizer) -> None:
    """The bytes that a text lacks are nobody's fault; merged tokens are, where others could be learned."""
    ids = [tokenizer.opener, *tokenizer.encode(WORDS)]
    tokens = Tokens(np.array(ids, np.uint16), np.array([0, len(ids) - 1]), np.array([len(WORDS)]))
    counts = count_ids([tokens.ids, tokens.ids], tokenizer.vocab_size)
    assert counts.tolist() == [2 * ids.count(i) for i in range(320)]
    unused = set(range(320)) - set(ids) - set(tokenizer.special.values())
    n_bytes = sum(i < 256 for i in unused)
    line = texts.check_vocabulary(counts, tokenizer, may_learn=True)
    assert line.level == "ok"
    assert line.finding.startswith(f"of 320 ids {len(unused)} never occur: ")
    assert f"{n_bytes} are bytes that these texts do not have" in line.finding
    assert n_bytes < len(unused) < n_bytes + 24, "most of the 48 merged tokens are used"
    counts[256:304] = 1
    assert texts.check_vocabulary(counts, tokenizer, may_learn=True).finding == (
        f"of 320 ids {n_bytes} never occur: bytes that these texts do not have"
    )
    counts[270:] = 0
    line = texts.check_vocabulary(counts, tokenizer, may_learn=True)
    assert line.level == "warning"
    assert 'tokenizer.kind = "learned" instead of "existing"' in line.advice
    assert texts.check_vocabulary(counts, tokenizer, may_learn=False).level == "ok"


def test_only_who_took_an_existing_tokenizer_is_told_to_learn_one(home: Path, tmp_path: Path) -> None:
    """Pieces of German for English tales."""
    foreign = of_another_tokenizer(subject_of(home)).tokenizer
    foreign.save(tmp_path / "tokenizer.json")
    table = Recipe.load(home / "tales.toml").table()
    table["tokenizer"] = {"kind": "existing", "path": str(tmp_path / "tokenizer.json")}
    table["corpus"]["sources"] = [str(home / "tales")]
    lines = list(examine(Recipe.from_table(table), run=tmp_path / "run", only_quick=True, say=lambda told: None))
    vocabulary = next(line for line in lines if line.check == "vocabulary")
    assert vocabulary.level == "warning"
    learned = next(line for line in doctor.quick_checks(subject_of(home)) if line.check == "vocabulary")
    assert learned.level == "ok"


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain.schedule.warmup_steps=200"],
        ["pretrain.steps=2", "pretrain.schedule.warmup_steps=1"],
        ["pretrain.schedule.warmup_steps=0"],
        ["pretrain.schedule={kind='warmup_stable_decay',warmup_steps=0,decay_steps=380}"],
        ["pretrain.schedule={kind='warmup_stable_decay',warmup_steps=0,decay_steps=400}"],
        ["pretrain.steps=90000", "pretrain.schedule.warmup_steps=9000"],
        ["pretrain.steps=90000", "pretrain.schedule={kind='warmup_stable_decay',warmup_steps=50,decay_steps=60000}"],
        ["pretrain.steps=1", "pretrain.batch_tokens=3200000"],
        ["pretrain.optimizer.learning_rate=0.9"],
        ["pretrain.optimizer.learning_rate=1e-7"],
        ["pretrain.optimizer.beta1=0.1", "pretrain.optimizer.weight_decay=3"],
    ],
    ids=str,
)
def test_advice_about_settings_can_be_followed_and_helps(home: Path, words: list[str]) -> None:
    def lines(*more: str) -> dict[str, Verdict]:
        chosen = Recipe.load(home / "tales.toml", [*words, *more])
        model, settings = chosen.model.with_vocabulary(512), chosen.pretrain
        told = [checks.check_learning_rate(model, settings), checks.check_optimizer_settings(settings)]
        told += [checks.check_warmup(settings), checks.check_length(model, settings, 100_000)]
        return {line.check: line for line in told if line.level != "ok"}

    for checked, line in lines().items():
        advised = re.findall(r"pretrain\.[\w.]+=[^\s,)]+", line.advice)
        assert not advised or checked not in lines(*advised), line


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


def test_of_a_started_model_nothing_is_to_be_changed_that_its_weights_decide() -> None:
    table = {"vocab_size": 100, "context_length": 192, "d_model": 16, "n_layers": 2, "n_heads": 2}
    rotary, learned = (ModelConfig.from_table({**table, "position": {"kind": kind}}) for kind in ("rotary", "learned"))
    needs = MemoryNeeds(rotary, Bfloat16(), AdamW(), 1, "full", has_start=True)
    half = dataclasses.replace(needs, model=rotary.model_copy(update={"context_length": 96})).bytes()
    assert smallest_change(needs, half) == "set pretrain.micro_batch_rows=1 and model.context_length=96"
    assert smallest_change(needs, half // 10) == "begin with a smaller model (pretrain.start)"  # 64 is no divisor
    needs = dataclasses.replace(needs, model=learned)
    assert smallest_change(needs, half) == "begin with a smaller model (pretrain.start)"


def test_the_smallest_change_fits() -> None:
    model = ModelConfig(vocab_size=1000, context_length=512, d_model=128, n_layers=4)
    needs = MemoryNeeds(model, Bfloat16(), AdamW(), 16)
    for available in (needs.bytes() // 2, needs.bytes() // 12, needs.bytes() // 16):
        change = smallest_change(needs, available)
        words = dict(word.split("=") for word in change.removeprefix("set ").split(" and "))
        recompute = words.pop("pretrain.recompute", "none")
        model_now = model.model_copy(
            update={name.removeprefix("model."): int(n) for name, n in words.items() if "model." in name}
        )
        rows = int(words["pretrain.micro_batch_rows"])
        assert MemoryNeeds(model_now, Bfloat16(), AdamW(), rows, recompute).bytes() <= available


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


def test_marks_between_texts_are_named_with_the_setting_that_cuts_there() -> None:
    line = texts.check_separators({"<|endoftext|>": {"times": 400, "files": 2, "file": "a.txt"}})
    assert line.level == "warning"
    assert line.finding == "2 files (a.txt, …) hold <|endoftext|> 400 times; it is read as ordinary text"
    assert line.advice == "set corpus.separator = '<|endoftext|>', if documents end there"
    assert texts.check_separators({}).level == "ok"
