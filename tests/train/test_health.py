"""Health: each number against a plainer way to the same number; and a look changes nothing."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from groundup.batch import Batch
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.masters import Masters
from groundup.optim.optimizer import make_optimizer
from groundup.optim.settings import AdamW
from groundup.train.fit import Step, accumulate, fit
from groundup.train.health import Health, activations, attention_statistics
from groundup.train.losses import by_document, next_token


def batch() -> Batch:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 97, (6, 24), generator=draw)
    document = torch.tensor([[0] * 9 + [1] * 15] * 5 + [[2] * 16 + [-1] * 8])
    position = torch.tensor([[*range(9), *range(15)]] * 5 + [[*range(16), *([0] * 8)]])
    return Batch(tokens, tokens.roll(-1, 1), (document >= 0).float(), position, document)


def measured(config: ModelConfig, every: int = 1, steps: int = 3) -> tuple[Transformer, list[dict]]:
    torch.manual_seed(0)
    model = Transformer(config)
    masters = Masters(model, torch.float32)
    optimizer = make_optimizer(masters.copies.items(), AdamW(learning_rate=1e-2, weight_decay=0.0))
    health, lines = Health(masters, every, partial(activations, model)), []

    def accept(step: Step) -> bool:
        health.before(step, batch())
        return step.number != 2

    forever = iter(batch, None)
    taken = accumulate(model, next_token, 2)
    for step in fit(optimizer, lambda _: 1.0, forever, taken, steps=steps, clip=None, accept=accept):
        lines.append(health.after(step))
    return model, lines


@pytest.mark.parametrize("soft_cap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 3])
def test_attention_is_looked_at_as_it_is(window: int | None, soft_cap: float | None, monkeypatch) -> None:
    """One query at a time, with two query heads for each key head."""
    monkeypatch.setattr("groundup.train.health.SCORES_AT_ONCE", 4 * 24 * 5)  # five queries at a time
    torch.manual_seed(0)
    rows, slopes = batch(), torch.tensor([0.5, 0.25, 0.1, 0.0])
    q, k = torch.randn(6, 4, 24, 8), torch.randn(6, 2, 24, 8)
    entropy, highest = attention_statistics(q, k, rows, window=window, slopes=slopes, soft_cap=soft_cap)
    expected, largest = torch.zeros(4), -math.inf
    count = int((rows.document >= 0).sum())
    for b in range(6):
        for t in range(24):
            if rows.document[b, t] < 0:
                continue
            keys = [
                s
                for s in range(t + 1)
                if rows.document[b, s] == rows.document[b, t] and (window is None or t - s < window)
            ]
            for h in range(4):
                scores = torch.stack([q[b, h, t] @ k[b, h // 2, s] / math.sqrt(8) for s in keys])
                largest = max(largest, float(scores.max()))
                if soft_cap:
                    scores = soft_cap * torch.tanh(scores / soft_cap)
                share = (scores - slopes[h] * torch.tensor([t - s for s in keys])).softmax(dim=0)
                expected[h] -= (share * share.log()).sum() / count
    assert_close(entropy, expected, atol=1e-5, rtol=1e-5)
    assert float(highest) == pytest.approx(largest, rel=1e-5)


def test_a_look_changes_nothing(llama: ModelConfig) -> None:
    config = llama.model_copy(update={"dropout": 0.2})
    looked, lines = measured(config, every=1)
    alone, none = measured(config, every=100)
    assert all(torch.equal(a, b) for a, b in zip(looked.parameters(), alone.parameters(), strict=True))
    assert none == [None] * 3
    assert [line and line["step"] for line in lines] == [1, None, 3]  # the second was refused


def test_weights_gradients_and_updates_are_those_of_the_step(config: ModelConfig) -> None:
    torch.manual_seed(0)
    before = Transformer(config)
    accumulate(before, next_token, 2)(batch())
    after, lines = measured(config, steps=1)
    block = lines[0]["layers"][1]
    assert block["layer"] == 1
    own = [weight.detach() for weight in before.blocks["1"].parameters()]
    gradients = [weight.grad for weight in before.blocks["1"].parameters()]
    assert block["grad_norm"] == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in gradients)), rel=1e-4)
    weights = math.sqrt(sum(float((p**2).sum()) for p in own))
    assert block["weight_norm"] == pytest.approx(weights, rel=1e-5)
    moved = math.sqrt(
        sum(float(((a.detach() - b) ** 2).sum()) for a, b in zip(after.blocks["1"].parameters(), own, strict=True))
    )
    assert block["update_ratio"] == pytest.approx(moved / weights, rel=1e-3)
    assert {"embed", "norm"} <= set(lines[0]["parts"])


def test_a_stream_is_measured_without_its_padding(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Transformer(config)
    seen = {}
    rows = batch()
    with torch.no_grad():
        model.hidden(rows.tokens, rows.position, by_document(rows), seen.__setitem__)
    _, lines = measured(config, steps=1)
    stream = seen["blocks.0"][rows.document >= 0]
    assert lines[0]["layers"][0]["stream_rms"] == pytest.approx(float(stream.square().mean().sqrt()), rel=1e-5)
    assert lines[0]["rows"] == 6


@pytest.mark.parametrize("kind", ["relu", "swiglu", "experts"])
def test_a_dead_layer_is_seen(llama: ModelConfig, kind: str) -> None:
    config = llama.override([f"feedforward={kind}"])
    _, lines = measured(config, steps=1)
    assert lines[0]["layers"][0]["dead_units"] < 0.9
    if kind != "relu":
        return
    torch.manual_seed(0)
    model = Transformer(config)
    with torch.no_grad():
        model.blocks["1"].feedforward.up.weight.zero_()
    health = Health(Masters(model, torch.float32), 1, partial(activations, model))
    accumulate(model, next_token, 2)(batch())
    step = Step(1, torch.ones(()), torch.ones(()), 0.1, torch.ones(()), True, {})
    health.before(step, batch())
    line = health.after(step)
    assert line is not None
    assert line["layers"][1]["dead_units"] == 1.0


def test_a_measurement_of_a_rounded_model_reads_its_masters(llama: ModelConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Transformer(llama)
    masters = Masters(model, torch.bfloat16)
    health = Health(masters, 1, partial(activations, model))
    accumulate(model, next_token, 2)(batch())
    step = Step(1, torch.ones(()), torch.ones(()), 0.1, torch.ones(()), True, {})
    health.before(step, batch())
    line = health.after(step)
    assert line is not None
    expected = math.sqrt(sum(float((p**2).sum()) for name, p in masters.copies.items() if name.startswith("blocks.0")))
    assert line["layers"][0]["weight_norm"] == pytest.approx(expected, rel=1e-5)
    assert line["layers"][0]["update_ratio"] == 0.0
