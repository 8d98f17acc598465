"""State that was prepared is the state that the optimizer makes itself."""

import torch

from groundup.optim.adamw import make_adamw
from groundup.optim.settings import AdamW
from groundup.optim.state import prepare_state


def test_a_prepared_optimizer_steps_as_one_that_was_not() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 4), torch.randn(5, 3, 4)
    stepped = []
    for prepared in (False, True):
        weight = start.clone()
        optimizer = make_adamw([weight], AdamW())
        if prepared:
            prepare_state(optimizer)
        for gradient in gradients:
            weight.grad = gradient
            optimizer.step()
        stepped.append((weight, {key: (value, value.dtype) for key, value in optimizer.state[weight].items()}))
    (made, made_state), (prepared_weight, state) = stepped
    assert torch.equal(made, prepared_weight)
    assert made_state.keys() == state.keys()
    assert all(torch.equal(made_state[key][0], state[key][0]) and made_state[key][1] == state[key][1] for key in state)
