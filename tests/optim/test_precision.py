"""Masters keep what bfloat16 would lose."""

import torch
from torch.testing import assert_close

from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.precision import Masters


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
