"""Lion is algorithm 2 of Chen et al. 2023."""

import torch
from torch.testing import assert_close

from groundup.optim.optimizer import make_optimizer
from groundup.optim.settings import Lion


def test_steps_are_algorithm_2_number_by_number() -> None:
    torch.manual_seed(0)
    settings = Lion(learning_rate=0.01, beta1=0.7, beta2=0.9, weight_decay=0.5)
    weight = torch.randn(3, 4)
    plain, momentum = weight.double().tolist(), [[0.0] * 4 for _ in range(3)]
    optimizer = make_optimizer([("weight", weight)], settings)
    for _ in range(6):
        gradient = torch.randn(3, 4)
        weight.grad = gradient.clone()
        optimizer.step()
        for row in range(3):
            for column in range(4):
                g, m = gradient[row, column].item(), momentum[row][column]
                direction = 0.7 * m + 0.3 * g
                sign = (direction > 0) - (direction < 0)
                plain[row][column] -= 0.01 * (sign + 0.5 * plain[row][column])
                momentum[row][column] = 0.9 * m + 0.1 * g
    assert_close(weight.double(), torch.tensor(plain, dtype=torch.float64), atol=1e-6, rtol=0)


def test_momentum_can_outvote_the_gradient() -> None:
    """m = 0.01 × 4 after the first step; the second gradient is −0.1: 0.9 × 0.04 − 0.1 × 0.1 > 0, so down again."""
    weight = torch.ones(1)
    optimizer = make_optimizer([("gain", weight)], Lion(learning_rate=0.25, beta1=0.9, beta2=0.99))
    for gradient in (4.0, -0.1):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
    assert weight.item() == 0.5
