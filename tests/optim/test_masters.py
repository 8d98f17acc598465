"""Masters keep what bfloat16 would lose."""

import torch
from torch.testing import assert_close

from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.masters import Masters
from groundup.optim.optimizer import make_optimizer
from groundup.optim.settings import AdamW
from groundup.train.checkpoint import tensors_of


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


def test_frozen_weights_cost_nothing_extra(llama: ModelConfig) -> None:
    """A base in bfloat16, one layer trained: no copies, gradients, optimizer state or room in checkpoints for it."""
    model = Transformer(llama).to(torch.bfloat16).requires_grad_(False)
    down = model.blocks["1"].feedforward.down.requires_grad_(True)
    before = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    masters = Masters(model, torch.bfloat16)
    optimizer = make_optimizer(masters.copies.items(), AdamW())
    masters.follow(optimizer)
    assert sum(copy.nbytes for copy in masters) == 4 * down.weight.numel()
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == before, "the base was not copied"
    old = down.weight.detach().clone()
    model(torch.zeros(1, 4, dtype=torch.long)).float().square().sum().backward()
    optimizer.step()
    assert not torch.equal(down.weight, old)
    assert all(weight.grad is None for weight in model.parameters())
    assert {name.split(".", 1)[1].rpartition(".")[0] for name in tensors_of(masters.copies, optimizer)} <= {
        "blocks.1.feedforward.down", "blocks.1.feedforward.down.weight",
    }  # fmt: skip
    remembered = sum(tensor.nbytes for state in optimizer.state.values() for tensor in state.values() if tensor.ndim)
    assert remembered == 8 * down.weight.numel()
