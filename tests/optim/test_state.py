"""State that was prepared is the state that the optimizer makes itself."""

import torch

from groundup.optim.state import prepare_state


def test_a_prepared_optimizer_steps_as_one_that_was_not() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 4), torch.randn(5, 3, 4)
    stepped = []
    for prepared in (False, True):
        weight = start.clone()
        optimizer = torch.optim.AdamW([weight], lr=1e-2, fused=True)
        if prepared:
            prepare_state(optimizer)
        for gradient in gradients:
            weight.grad = gradient
            optimizer.step()
        stepped.append((weight, optimizer.state[weight]))
    (made, made_state), (prepared_weight, state) = stepped
    assert torch.equal(made, prepared_weight)
    assert made_state.keys() == state.keys()
    assert all(torch.equal(made_state[key], state[key]) and made_state[key].dtype == state[key].dtype for key in state)
