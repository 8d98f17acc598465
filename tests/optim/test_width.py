"""Width transfer: activations move as much in a wide model as in a narrow one, and the best learning rate stays put."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from groundup.batch import Batch
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.optimizer import make_optimizer
from groundup.optim.schedule import make_schedule
from groundup.optim.settings import Adafactor, AdamW, Linear, Lion, Muon, Optimizer
from groundup.optim.width import narrow_start
from groundup.train.fit import accumulate, fit
from groundup.train.losses import next_token

VOCABULARY, LENGTH = 128, 16


def config_of(width: int) -> ModelConfig:
    """Wider is more heads, not wider ones."""
    sizes = {"d_model": width, "n_layers": 2, "n_heads": width // 16, "d_ff": 2 * width}
    return ModelConfig.from_table({"vocab_size": VOCABULARY, "context_length": LENGTH, **sizes})


def batches() -> Iterator[Batch]:
    """A token follows from the one before it and from whether that one's predecessor was odd."""
    follows = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(1))
    position = torch.arange(LENGTH).expand(8, LENGTH)
    for step in range(1_000_000):
        tokens = torch.randint(0, VOCABULARY, (8, LENGTH), generator=torch.Generator().manual_seed(step))
        before = torch.cat([tokens[:, :1], tokens[:, :-1]], dim=1)
        targets = follows[(tokens + before % 2) % VOCABULARY]
        yield Batch(tokens, targets, torch.ones(8, LENGTH), position, torch.zeros_like(tokens))


def made(width: int, settings: Optimizer, base_width: int | None) -> tuple[Transformer, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Transformer(config_of(width))
    ratio = width / base_width if base_width else 1.0
    narrow_start(model.named_parameters(), ratio)
    return model, make_optimizer(model.named_parameters(), settings, width_ratio=ratio)


def seen_by(model: Transformer) -> dict[str, Tensor]:
    batch = next(batches())
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        hidden = model.hidden(batch.tokens, tap=seen.__setitem__)
        seen["logits"] = model.logits(hidden)
    return seen


def moved(width: int, settings: Optimizer, base_width: int | None) -> dict[str, float]:
    """Root mean square of how far activations move in three steps."""
    model, optimizer = made(width, settings, base_width)
    before = seen_by(model)
    list(fit(optimizer, lambda _: 1.0, batches(), accumulate(model, next_token, 1), steps=3, clip=None))
    after = seen_by(model)
    return {name: (after[name] - before[name]).square().mean().sqrt().item() for name in before}


@pytest.mark.parametrize(
    "settings",
    [
        AdamW(learning_rate=2e-3),
        Lion(learning_rate=1e-3, weight_decay=0.0),
        Muon(learning_rate=2e-3),
        Adafactor(learning_rate=2e-2),
    ],
    ids=lambda settings: settings.kind,
)
def test_activations_of_a_wider_model_move_as_far(settings: Optimizer) -> None:
    """The coordinate check (Yang et al. 2022, appendix D.1), at four times the width."""
    narrow, wide, without = moved(32, settings, 32), moved(128, settings, 32), moved(128, settings, None)
    for name in ("blocks.0", "blocks.1", "logits"):
        assert 0.5 < wide[name] / narrow[name] < 1.5, name
    assert without["logits"] > 1.5 * wide["logits"]


def test_at_its_own_width_nothing_is_scaled() -> None:
    (plain, _), (model, optimizer) = made(32, AdamW(), None), made(32, AdamW(), 32)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    assert {group["lr"] for group in optimizer.param_groups} == {AdamW().learning_rate}


def test_the_last_gain_stands_for_a_factor_on_the_scores() -> None:
    """A twin with the factor 1/4 written out, its gain's start and learning rate unscaled, makes the same steps."""

    def trained(written_out: bool) -> Tensor:
        model, optimizer = made(64, AdamW(learning_rate=3e-3), 16)
        if written_out:
            with torch.no_grad():
                model.norm.weight.fill_(1.0)
            model.norm.register_forward_hook(lambda module, inputs, output: output / 4)
            take_out(optimizer, model.norm.weight)
            group = {"params": [model.norm.weight], "lr": 3e-3, "initial_lr": 3e-3, "weight_decay": 0.0}
            optimizer.add_param_group(group)
        list(fit(optimizer, lambda _: 1.0, batches(), accumulate(model, next_token, 1), steps=3))
        return seen_by(model)["logits"]

    assert_close(trained(False), trained(True), atol=1e-4, rtol=0)


def take_out(optimizer: torch.optim.Optimizer, weight: Tensor) -> None:
    """Out of whatever group it is in."""
    for group in optimizer.param_groups:
        group["params"] = [other for other in group["params"] if other is not weight]


def test_a_step_decays_by_the_same_share_at_every_width() -> None:
    _, optimizer = made(128, AdamW(weight_decay=0.1, learning_rate=0.5), 32)
    assert {group["lr"] * group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.05}
    assert {group["lr"] for group in optimizer.param_groups} == {0.5, 0.125}


RATES = [0.004, 0.008, 0.016, 0.032, 0.064, 0.128]


def losses_by_rate(width: int, base_width: int | None) -> list[float]:
    """The loss with each of the `RATES`, over the last ten of forty steps."""
    losses = []
    for rate in RATES:
        model, optimizer = made(width, AdamW(learning_rate=rate), base_width)
        schedule = make_schedule(Linear(warmup_steps=4), 40)
        taken = list(fit(optimizer, schedule, batches(), accumulate(model, next_token, 1), steps=40))
        losses.append(sum(step.loss.item() for step in taken[-10:]))
    return losses


@pytest.mark.slow
def test_the_best_learning_rate_stays_put_as_width_grows() -> None:
    """Or lies so near that it makes no difference: with each seed two rates are equally good here and there."""
    narrow = losses_by_rate(32, 32)
    best = narrow.index(min(narrow))
    assert 0 < best < len(RATES) - 1
    for width in (64, 128):
        wide = losses_by_rate(width, 32)
        assert wide[best] < 1.05 * min(wide)
    untransferred = losses_by_rate(128, None)
    assert untransferred[best] > 1.5 * min(untransferred)
