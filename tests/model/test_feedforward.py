"""Feed-forwards against loops and formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from groundup.model.draw import drawn, key
from groundup.model.feedforward import MixtureOfExperts, imbalance, make_dense, make_feedforward, no_tap
from groundup.model.settings import GELU, Experts, GeGLU, ModelConfig, ReLU, ReLUSquared, SwiGLU
from groundup.model.transformer import Transformer


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


def expert(module: MixtureOfExperts, number: int) -> torch.nn.Module:
    """One of the stack, as a feed-forward of its own."""
    settings = module.settings.expert
    _, width, inner = module.experts.down.weight.shape
    alone = make_dense(settings, width, inner)
    for name, parameter in alone.named_parameters():
        parameter.data = module.experts.get_parameter(name)[number].detach().view_as(parameter).clone()
    return alone


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
            expected = sum(probability[e] / total * expert(module, e)(token) for e in best)
            if n_shared:
                expected = expected + module.shared(token)
            assert_close(out[row, place], expected, atol=1e-5, rtol=1e-5)


def test_equal_experts_are_one_dense_feedforward() -> None:
    module, x = mixture(n_experts=2, n_active=2)
    for stack in module.experts.parameters():
        stack.data[1] = stack.data[0]
    assert_close(module(x), expert(module, 0)(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("settings", [SwiGLU(), GELU(), ReLU(bias=False)])
def test_a_stack_of_experts_computes_and_learns_what_each_would_alone(settings: object) -> None:
    """Bit for bit by the loop, and to rounding by the kernel of a GPU, which a CPU has too; some get no rows."""
    torch.manual_seed(0)
    config = ModelConfig(d_model=16, n_heads=1, d_ff=24, feedforward=Experts(n_experts=4, expert=settings))
    module, rows = make_feedforward(config), torch.randn(9, 16)
    ends = torch.tensor([4, 4, 9, 9])
    alone = [expert(module, number) for number in range(4)]
    expected = torch.cat([each(share) for each, share in zip(alone, rows.tensor_split(ends[:-1]), strict=True)])
    expected.square().sum().backward()
    by_loop = module.experts(rows, torch.tensor([0] * 4 + [2] * 5), no_tap)
    stacks = module.experts.named_children()
    at_once = module.experts.compute(rows, no_tap, **{name: stack.together(ends.int()) for name, stack in stacks})
    for read, tolerance in ((by_loop, 0.0), (at_once, 1e-5)):
        module.zero_grad()
        read.square().sum().backward()
        assert_close(read, expected, atol=tolerance, rtol=0)
        for name, stack in module.experts.named_parameters():
            gradients = torch.stack([each.get_parameter(name).grad for each in alone])
            assert_close(stack.grad.view_as(gradients), gradients, atol=tolerance, rtol=0)


def test_each_expert_is_drawn_by_its_place_in_the_stack() -> None:
    """A process that holds some of them draws those."""
    table = {"vocab_size": 20, "d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16, "feedforward": "experts"}
    experts = Transformer(ModelConfig.from_table(table), seed=3).blocks["0"].feedforward.experts
    weight, name = experts.gate.weight, key(3, "blocks.0.feedforward.experts.gate.weight")
    assert torch.equal(weight[2:5], drawn(name, weight.shape, [(2, 5), (0, 16), (0, 16)], 0.02))
    assert len({expert.std().item() for expert in weight}) == len(weight) == 8, "each has its own"


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
