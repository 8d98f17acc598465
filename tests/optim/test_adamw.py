"""AdamW is the paper's."""

import torch
from torch.testing import assert_close

from groundup.optim.optimizer import make_optimizer
from groundup.optim.settings import AdamW


def test_steps_are_algorithm_2_of_loshchilov_and_hutter() -> None:
    settings = AdamW(learning_rate=0.01, beta1=0.8, beta2=0.9, epsilon=1e-6, weight_decay=0.3)
    torch.manual_seed(0)
    weight = torch.randn(3, 4)
    optimizer = make_optimizer([("weight", weight)], settings)
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
