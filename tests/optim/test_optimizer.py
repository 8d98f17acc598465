"""Every optimizer: which weights it steps how, that it goes on after a pause as if there had been none, and that it can
work with a scaled loss."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.optimizer import make_optimizer, parameter_groups
from groundup.optim.settings import Adafactor, AdamW, Lion, Muon, Optimizer

KINDS: list[Optimizer] = [AdamW(), Muon(), Lion(), Adafactor()]
every_kind = pytest.mark.parametrize("settings", KINDS, ids=lambda settings: settings.kind)


def test_matrices_are_decayed_and_vectors_are_not(llama: ModelConfig) -> None:
    model = Transformer(llama)
    decayed, kept = parameter_groups(model.named_parameters(), AdamW(weight_decay=0.1))
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert {id(p) for p in kept["params"]} == {id(p) for n, p in model.named_parameters() if "norm" in n}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_muon_orthogonalises_the_blocks_matrices_and_nothing_else(gpt2: ModelConfig) -> None:
    model = Transformer(gpt2)
    groups = parameter_groups(model.named_parameters(), Muon(weight_decay=0.1))
    names = {id(weight): name for name, weight in model.named_parameters()}
    mine = {names[id(weight)] for group in groups if group["orthogonal"] for weight in group["params"]}
    parts = (
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.out",
        "feedforward.up",
        "feedforward.down",
    )
    assert mine == {f"blocks.{layer}.{part}.weight" for layer in range(2) for part in parts}
    assert sum(len(group["params"]) for group in groups) == len(names)
    for group in groups:
        assert {weight.ndim >= 2 for weight in group["params"]} == {group["weight_decay"] == 0.1}


def weights_of(seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"embed.weight": (7, 4), "blocks.0.up.weight": (6, 4), "blocks.1.up.weight": (6, 4), "norm.weight": (4,)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def give_gradients(weights: dict[str, Tensor], step: int) -> None:
    for weight, gradient in zip(weights.values(), weights_of(100 + step).values(), strict=True):
        weight.grad = gradient


@every_kind
def test_state_that_was_saved_and_loaded_gives_the_same_next_steps(settings: Optimizer) -> None:
    def go_on(weights: dict[str, Tensor], optimizer: torch.optim.Optimizer, steps: range) -> dict[str, Tensor]:
        for step in steps:
            give_gradients(weights, step)
            optimizer.step()
        return weights

    unbroken = weights_of()
    optimizer = make_optimizer(unbroken.items(), settings)
    go_on(unbroken, optimizer, range(3))
    saved = {name: weight.clone() for name, weight in unbroken.items()}
    states = {name: {key: t.clone() for key, t in optimizer.state[w].items()} for name, w in unbroken.items()}
    go_on(unbroken, optimizer, range(3, 6))

    resumed = make_optimizer(saved.items(), settings)
    for name, weight in saved.items():
        assert resumed.state[weight].keys() == states[name].keys()
        for key, tensor in resumed.state[weight].items():
            assert tensor.dtype == torch.float32
            tensor.copy_(states[name][key])
    go_on(saved, resumed, range(3, 6))
    assert all(torch.equal(saved[name], unbroken[name]) for name in saved)


@every_kind
def test_a_scaled_loss_gives_the_plain_step_and_an_overflow_none(settings: Optimizer) -> None:
    def stepped(scaled: bool, poisoned: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        weights = weights_of()
        before = {name: weight.clone() for name, weight in weights.items()}
        optimizer = make_optimizer(weights.items(), settings)
        give_gradients(weights, 0)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        factor = scaler.scale(torch.ones(()))
        for weight in weights.values():
            assert weight.grad is not None
            weight.grad *= factor
        if poisoned:
            assert weights["norm.weight"].grad is not None
            weights["norm.weight"].grad[1] = torch.inf
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        return weights, before

    plain, _ = stepped(scaled=False, poisoned=False)
    scaled, _ = stepped(scaled=True, poisoned=False)
    assert all(torch.equal(plain[name], scaled[name]) for name in plain)  # 1,024 is a power of two
    skipped, before = stepped(scaled=True, poisoned=True)
    assert all(torch.equal(skipped[name], before[name]) for name in before)


@every_kind
def test_a_weight_without_a_gradient_stays(settings: Optimizer) -> None:
    weights = weights_of()
    before = {name: weight.clone() for name, weight in weights.items()}
    optimizer = make_optimizer(weights.items(), settings)
    weights["norm.weight"].grad = torch.ones(4)
    optimizer.step()
    assert [name for name in weights if not torch.equal(weights[name], before[name])] == ["norm.weight"]


@every_kind
def test_decay_is_decoupled_from_the_gradient(settings: Optimizer) -> None:
    """With λ, a matrix ends lower by η λ W than without; a vector ends where it did."""
    moved: dict[float, dict[str, Tensor]] = {}
    for decay in (0.0, 0.5):
        weights = weights_of()
        optimizer = make_optimizer(
            weights.items(), settings.model_copy(update={"weight_decay": decay, "learning_rate": 0.1})
        )
        give_gradients(weights, 0)
        optimizer.step()
        moved[decay] = weights
    for name, start in weights_of().items():
        shrunk = 0.1 * 0.5 * start if start.ndim == 2 else torch.zeros(4)
        assert_close(moved[0.0][name] - moved[0.5][name], shrunk, atol=1e-6, rtol=0)


@every_kind
@pytest.mark.usefixtures("shapes_unchecked")
def test_weights_that_are_not_named_or_not_there_or_there_twice_are_refused(
    settings: Optimizer, llama: ModelConfig
) -> None:
    model = Transformer(llama)
    for unnamed in (model.parameters(), list(model.parameters()), model.state_dict(), {"ab": torch.zeros(2)}):
        with pytest.raises(TypeError, match=r"a (Parameter|str) among them; give pairs of name and tensor"):
            make_optimizer(unnamed, settings)
    used = model.named_parameters()
    list(used)
    for empty in (used, [], {}.items()):
        with pytest.raises(ValueError, match="there are no weights to step"):
            make_optimizer(empty, settings)
    with pytest.raises(ValueError, match=r"embed.weight and head.weight are one tensor"):
        make_optimizer(model.named_parameters(remove_duplicate=False), settings)
    for named in (model.named_parameters(), dict(model.named_parameters()).items(), list(model.named_parameters())):
        groups = make_optimizer(named, settings).param_groups
        assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@every_kind
def test_a_frozen_weight_stays(settings: Optimizer) -> None:
    model = torch.nn.Linear(4, 4)
    model.weight.requires_grad_(False)
    before = model.weight.clone()
    optimizer = make_optimizer(model.named_parameters(), settings.model_copy(update={"weight_decay": 0.5}))
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight, before)
    assert model.bias.grad is not None
