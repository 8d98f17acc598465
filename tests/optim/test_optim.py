"""AdamW is the paper's, masters keep what bfloat16 would lose, the schedule is the drawn one."""

import math

import pytest
import torch
from torch.testing import assert_close

from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.adamw import decay_groups, make_adamw
from groundup.optim.precision import Masters
from groundup.optim.schedule import make_schedule
from groundup.optim.settings import AdamW, Cosine


def test_steps_are_algorithm_2_of_loshchilov_and_hutter() -> None:
    settings = AdamW(learning_rate=0.01, beta1=0.8, beta2=0.9, epsilon=1e-6, weight_decay=0.3)
    torch.manual_seed(0)
    weight = torch.randn(3, 4)
    optimizer = make_adamw([weight], settings)
    x, m, v = weight.double().clone(), torch.zeros(3, 4), torch.zeros(3, 4)
    m, v = m.double(), v.double()
    for step in range(1, 6):
        gradient = torch.randn(3, 4)
        weight.grad = gradient.clone()
        optimizer.step()
        m = 0.8 * m + 0.2 * gradient
        v = 0.9 * v + 0.1 * gradient.double() ** 2
        corrected = (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-6)
        x = x - 0.01 * corrected - 0.01 * 0.3 * x
    assert_close(weight.double(), x, atol=1e-6, rtol=0)


def test_matrices_are_decayed_and_vectors_are_not(llama: ModelConfig) -> None:
    model = Transformer(llama)
    decayed, kept = decay_groups(model.parameters(), 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert {id(p) for p in kept["params"]} == {id(p) for n, p in model.named_parameters() if "norm" in n}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_masters_keep_updates_that_bfloat16_would_lose() -> None:
    model = torch.nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    masters = Masters(model, torch.bfloat16)
    optimizer = torch.optim.SGD(masters, lr=1e-3)
    masters.follow(optimizer)
    for _ in range(10):
        model.weight.grad = None
        optimizer.zero_grad()
        model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
    assert_close(masters.copies["weight"], torch.full((4, 4), 0.99))  # ten steps of 0.001
    assert torch.equal(model.weight, torch.full((4, 4), 0.99).bfloat16())
    alone = torch.ones((), dtype=torch.bfloat16)
    for _ in range(10):
        alone = alone - torch.tensor(1e-3, dtype=torch.bfloat16)
    assert alone == 1.0  # what would have happened without them


def test_gradients_add_up_in_float32() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    masters = Masters(model, torch.bfloat16)
    for value in (256.0, 1.0, 1.0):  # bfloat16: 256 + 1 = 256
        model(torch.tensor([[value]], dtype=torch.bfloat16)).sum().backward()
    assert masters.copies["weight"].grad.item() == 258.0
    assert model.weight.grad is None


def test_for_a_float32_model_the_masters_are_its_weights(llama: ModelConfig) -> None:
    model = Transformer(llama)
    assert all(a is b for a, b in zip(Masters(model, torch.float32), model.parameters(), strict=True))


@pytest.mark.parametrize(("warmup", "steps", "final"), [(10, 100, 0.1), (0, 7, 0.0), (5, 5, 0.5)])
def test_schedule_warms_up_linearly_and_falls_as_half_a_cosine(warmup: int, steps: int, final: float) -> None:
    schedule = make_schedule(Cosine(warmup_steps=warmup, final=final), steps)
    for step in range(warmup):
        assert schedule(step) == pytest.approx((step + 1) / warmup)
    for step in range(warmup, steps):
        along = (step - warmup) / (steps - warmup)
        assert schedule(step) == pytest.approx(final + (1 - final) * (1 + math.cos(math.pi * along)) / 2)
