"""Each check of settings, model and learning, on what it looks at: small cases that can be checked on paper."""

import math
import re
from pathlib import Path

import pytest
import torch

from groundup.batch import Batch
from groundup.model.settings import Experts, ModelConfig, ReLU
from groundup.model.transformer import Transformer
from groundup.pretrain.doctor import checks
from groundup.pretrain.doctor.run import Subject
from groundup.pretrain.doctor.verdict import Verdict, ok
from groundup.recipe import Recipe
from groundup.train.losses import next_token

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
    assert checks.check_range(RATES, losses_seen, [losses_seen[0]] * 6, rate).level == verdict


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
    known = math.log(512) - untouched[0]
    line = checks.check_range(RATES, losses_seen, untouched, rate, known)
    assert line.level == verdict, line
    if line.advice:
        advised = line.advice.split("=")[1]
        assert checks.check_range(RATES, losses_seen, untouched, float(advised), known) == ok(
            "learning-rate range", line.finding.rsplit(" ", 1)[0] + " " + advised
        )


def test_what_a_fresh_model_must_not_have_a_trained_one_may(subject: Subject, home: Path) -> None:
    """Dead units, a matrix switched off, rows that are memorised already, a rate as low as one likes."""
    batch, model, loss = subject.rows(0, 8), subject.assembled.model, subject.assembled.loss
    with torch.no_grad():
        model.blocks["1"].feedforward.up.bias[:] = -10.0  # type: ignore[union-attr, index]
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
    assert checks.check_learning_rate(subject.config, low.pretrain).level == "warning"
    assert checks.check_learning_rate(subject.config, started).level == "ok"


def test_dead_units_of_one_expert_are_named() -> None:
    torch.manual_seed(0)
    experts = Experts(n_experts=4, n_active=2, n_shared=1, expert=ReLU(bias=True))
    model = Transformer(ModelConfig(vocab_size=97, d_model=32, n_layers=2, d_ff=48, feedforward=experts))
    tokens, position = torch.randint(97, (8, 64)), torch.arange(64).expand(8, 64)
    batch = Batch(tokens, tokens, torch.ones(8, 64), position, torch.zeros_like(tokens))
    assert checks.check_units(model, batch, next_token).finding.endswith("in 10 layers")  # 4 + 1 experts in each of 2
    with torch.no_grad():
        model.blocks["1"].feedforward.experts.up.bias[2] = -10.0  # type: ignore[union-attr, index]
    assert checks.check_units(model, batch, next_token).finding == (
        "100% of the units of blocks.1.feedforward.2 are zero for every token"
    )


def test_a_weight_that_its_precision_cannot_hold_is_named(subject: Subject) -> None:
    model = subject.assembled.model
    assert checks.check_trained_weights(model, Path("base")).finding.startswith("the weights of base: ")
    with torch.no_grad():
        model.blocks["1"].attention.key.weight[0, :3] = 1e6  # type: ignore[union-attr, index]
    assert checks.check_trained_weights(model, Path("base")).level == "ok"
    line = checks.check_trained_weights(model.half(), Path("base"))
    assert line.finding == "of 1,024 numbers in blocks.1.attention.key.weight of base, 3 are not finite in float16"
    assert (line.level, line.exit_code) == ("error", 3)


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
