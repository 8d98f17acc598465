"""Feed-forwards against loops and formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from groundup.model.feedforward import MixtureOfExperts, imbalance, make_dense, make_feedforward
from groundup.model.settings import GELU, Experts, GeGLU, ModelConfig, ReLU, ReLUSquared, SwiGLU


@pytest.mark.parametrize(
    ("settings", "formula"),
    [
        (GELU(), lambda x: F.gelu(x, approximate="tanh")),
        (GELU(approximate="none"), lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))),
        (ReLU(), lambda x: x * (x > 0)),
        (ReLUSquared(), lambda x: x * x * (x > 0)),
    ],
)
def test_plain_feedforwards_are_their_formulas(settings: object, formula: object) -> None:
    torch.manual_seed(0)
    module = make_dense(settings, 6, 10)
    x = torch.randn(2, 3, 6)
    bias = module.up.bias if settings.bias else 0
    expected = formula(x @ module.up.weight.T + bias) @ module.down.weight.T
    expected = expected + (module.down.bias if settings.bias else 0)
    assert_close(module(x), expected)


@pytest.mark.parametrize(
    ("settings", "formula"),
    [
        (SwiGLU(), lambda x: x * torch.sigmoid(x)),
        (GeGLU(approximate="none"), lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))),
        (GeGLU(), lambda x: F.gelu(x, approximate="tanh")),
    ],
)
def test_gated_feedforwards_are_their_formulas(settings: object, formula: object) -> None:
    torch.manual_seed(0)
    module = make_dense(settings, 6, 10)
    x = torch.randn(2, 3, 6)
    expected = (formula(x @ module.gate.weight.T) * (x @ module.up.weight.T)) @ module.down.weight.T
    assert_close(module(x), expected)


def mixture(**settings: object) -> tuple[MixtureOfExperts, torch.Tensor]:
    torch.manual_seed(0)
    config = ModelConfig(d_model=8, n_heads=1, d_ff=12, feedforward=Experts(**settings))
    return make_feedforward(config), torch.randn(3, 7, 8)


@pytest.mark.parametrize("n_active", [1, 2, 5])
@pytest.mark.parametrize("n_shared", [0, 2])
@pytest.mark.parametrize("normalise", [True, False])
def test_experts_are_picked_and_weighted_as_by_loops(n_active: int, n_shared: int, normalise: bool) -> None:
    module, x = mixture(n_experts=5, n_active=n_active, n_shared=n_shared, normalise=normalise)
    out = module(x)
    for row in range(3):
        for place in range(7):
            token = x[row, place]
            probability = (module.router.weight @ token).softmax(0)
            best = probability.argsort(descending=True)[:n_active]
            total = probability[best].sum() if normalise else 1
            expected = sum(probability[e] / total * module.experts[e](token) for e in best)
            if n_shared:
                expected = expected + module.shared(token)
            assert_close(out[row, place], expected, atol=1e-5, rtol=1e-5)


def test_equal_experts_are_one_dense_feedforward() -> None:
    module, x = mixture(n_experts=2, n_active=2)
    module.experts[1].load_state_dict(module.experts[0].state_dict())
    assert_close(module(x), module.experts[0](x), atol=1e-6, rtol=1e-5)


def test_every_expert_gets_a_gradient_even_if_no_token_came() -> None:
    """A parameter without gradient would stop an optimizer that steps all of them."""
    module, x = mixture(n_experts=30, n_active=1)
    module(x[:1, :2]).sum().backward()
    assert all(parameter.grad is not None for parameter in module.experts.parameters())


@pytest.mark.parametrize("active", [1, 2])
def test_imbalance_is_one_when_even_and_most_when_all_choose_the_same(active: int) -> None:
    even = torch.full((1, 8, 4), 0.25)
    chosen = torch.stack([torch.arange(8) + number for number in range(active)], dim=-1)[None] % 4
    assert_close(imbalance(even, chosen), torch.ones(1, 8))
    same = torch.arange(active).expand(1, 8, active)
    sure = torch.zeros(1, 8, 4)
    sure[..., :active] = 1 / active
    assert_close(imbalance(sure, same), torch.full((1, 8), 4.0 / active))


def test_following_the_balance_term_evens_the_load() -> None:
    module, _ = mixture(n_experts=4, n_active=1, balance=1.0)
    x = torch.randn(8, 64, 8) + torch.tensor([2.0] + [0.0] * 7)  # a common direction: one expert wins at first
    with torch.no_grad():
        module.router.weight[0, 0] = 1.0
    optimizer = torch.optim.SGD([module.router.weight], lr=0.5)
    shown: dict[str, torch.Tensor] = {}
    busiest = []
    for _ in range(200):
        module(x, shown.__setitem__)
        load = shown["router"].argmax(-1).flatten().bincount(minlength=4) / 512
        busiest.append(load.max().item())
        optimizer.zero_grad()
        shown["auxiliary_loss"].mean().backward()
        optimizer.step()
    assert busiest[0] > 0.9
    assert busiest[-1] < 0.5
