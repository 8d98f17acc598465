"""Adafactor is the paper's, which torch's is too as long as its 1/√t does not bind."""

import pytest
import torch
from torch.testing import assert_close

from groundup.optim.optimizer import make_optimizer
from groundup.optim.settings import Adafactor


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (12,)])
@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_steps_are_those_of_torchs(shape: tuple[int, ...], size: float) -> None:
    """torch takes min(learning rate, 1/√t) as the paper's relative step: the learning rate while t < 10,000."""
    torch.manual_seed(0)
    start, gradients = torch.randn(shape) * size, torch.randn(8, *shape) * 0.1
    weight, other = start.clone(), torch.nn.Parameter(start.clone())
    mine = make_optimizer([("weight", weight)], Adafactor(learning_rate=0.01, weight_decay=0.2))
    decay = 0.2 if len(shape) == 2 else 0.0
    theirs = torch.optim.Adafactor([other], lr=0.01, beta2_decay=-0.8, eps=(1e-15, 1e-3), d=1.0, weight_decay=decay)
    for number, gradient in enumerate(gradients):
        weight.grad, other.grad = gradient * (100 if number == 5 else 1), gradient * (100 if number == 5 else 1)
        mine.step()
        theirs.step()
    assert_close(weight, other.detach(), atol=1e-7, rtol=1e-5)


def test_a_sudden_gradient_moves_no_further_than_the_clip() -> None:
    weight = torch.full((4, 4), 2.0)
    optimizer = make_optimizer([("weight", weight)], Adafactor(learning_rate=0.01))
    for size in (*[1e-3] * 50, 1e3):
        before = weight.clone()
        weight.grad = torch.full((4, 4), size)
        optimizer.step()
    assert_close((before - weight).abs(), before * 0.01)  # η rms(W) × a direction of root mean square 1


def test_a_matrix_is_remembered_by_its_rows_and_columns() -> None:
    weight = torch.randn(30, 50)
    optimizer = make_optimizer([("weight", weight)], Adafactor())
    assert sum(tensor.numel() for tensor in optimizer.state[weight].values() if tensor.ndim) == 30 + 50
