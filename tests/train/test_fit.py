"""The loop: micro-batches add up, randomness is a function of (seed, step), and the caller keeps the reins."""

import json
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.testing import assert_close

from groundup.batch import Batch
from groundup.model.dropout import row_keys
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.optimizer import make_optimizer
from groundup.optim.settings import AdamW
from groundup.train.fit import Step, accumulate, clip_gradients, fit
from groundup.train.losses import next_token


def batch(seed: int, rows: int = 16) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 97, (rows, 24), generator=draw)
    weight = (torch.rand(rows, 24, generator=draw) < 0.6).float()
    weight[: rows // 3] = 0  # whole micro-batches of little weight
    position = torch.arange(24).expand(rows, 24)
    return Batch(tokens, (tokens * 5 + 1) % 97, weight, position, torch.zeros_like(tokens))


def batches(first: int = 0) -> Iterator[Batch]:
    while True:
        yield batch(first)
        first += 1


def gradients_of(
    config: ModelConfig, micro_batches: int | Callable[[Batch], int]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = Transformer(config)
    loss, _ = accumulate(model, next_token, micro_batches)(batch(0))
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("micro_batches", [2, 7, 16, lambda batch: len(batch.weight) // 4])
def test_one_micro_batch_equals_uneven_ones(config: ModelConfig, micro_batches: int | Callable[[Batch], int]) -> None:
    """16 rows in 7 micro-batches are 3, 3, 2, 2, 2, 2, 2 rows, of unequal weight; some have none. Dropout included."""
    attention = config.attention.model_copy(update={"dropout": 0.2})
    config = config.model_copy(update={"dropout": 0.3, "attention": attention})
    whole_loss, whole = gradients_of(config, 1)
    loss, in_parts = gradients_of(config, micro_batches)
    assert_close(loss, whole_loss)
    for name in whole:
        assert_close(in_parts[name], whole[name], atol=1e-6, rtol=1e-4)


def train(config: ModelConfig, steps: int, start: int = 0, model: Transformer | None = None, **options: object):
    torch.manual_seed(0)
    model = model or Transformer(config)
    optimizer = make_optimizer(model.named_parameters(), AdamW(learning_rate=1e-2))
    gradients = accumulate(model, next_token, 3, seed=5, start=start)
    taken = list(fit(optimizer, lambda step: 1.0, batches(start), gradients, steps=steps, start=start, **options))
    return model, taken


def test_the_loss_falls_on_a_function_that_can_be_learned(llama: ModelConfig) -> None:
    _, taken = train(llama, 60)
    assert taken[0].loss > 4.0
    assert taken[-1].loss < 2.0
    assert [step.number for step in taken] == list(range(1, 61))


def test_the_same_seed_gives_the_same_losses_with_dropout(llama: ModelConfig) -> None:
    config = llama.model_copy(update={"dropout": 0.3})
    _, one = train(config, 5)
    torch.rand(17)  # whoever else draws random numbers changes nothing
    _, two = train(config, 5)
    assert [step.loss.item() for step in one] == [step.loss.item() for step in two]


def test_dropout_differs_by_seed_step_and_row() -> None:
    keys = [row_keys(seed, step, 0, 8, torch.device("cpu")) for seed in range(5) for step in range(9)]
    assert len(torch.cat(keys).unique()) == 5 * 9 * 8


def test_gradients_are_clipped_to_the_norm(llama: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Transformer(llama)
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "initial_lr": 1.0}], lr=1.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    (step,) = fit(optimizer, lambda _: 1.0, batches(), accumulate(model, next_token, 1), steps=1, clip=0.01)
    moved = torch.stack([(p - b).norm() for p, b in zip(model.parameters(), before, strict=True)]).norm()
    assert step.grad_norm > 0.01
    assert_close(moved, torch.tensor(0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 3.0, float("inf")])
@pytest.mark.parametrize("gradients", [[3.0, None, 4.0], [0.0, 0.0], [None], [], [1e-3, 2e-3], [1.0, float("inf")]])
def test_clipping_is_torchs(max_norm: float, gradients: list[float | None]) -> None:
    ours, theirs = ([torch.zeros(2, 3, requires_grad=True) for _ in gradients] for _ in range(2))
    for weight, gradient in zip(ours + theirs, gradients * 2, strict=True):
        weight.grad = None if gradient is None else torch.full((2, 3), gradient)
    norm = clip_gradients(iter(ours), max_norm)
    assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, max_norm), rtol=0, atol=0)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            assert_close(one.grad, other.grad, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("max_norm", [-1.0, float("nan")])
def test_a_norm_below_zero_is_refused(max_norm: float) -> None:
    with pytest.raises(ValueError, match="max_norm = .* 0 or more"):
        clip_gradients([torch.zeros(1)], max_norm)


def test_an_optimizer_of_other_weights_is_refused(llama: ModelConfig) -> None:
    """Else every step would go by, and nothing be learned."""
    model, other = Transformer(llama), Transformer(llama)
    optimizer = make_optimizer(other.named_parameters(), AdamW())
    with pytest.raises(ValueError, match="none of the optimizer's 2. weights has a gradient"):
        next(fit(optimizer, lambda _: 1.0, batches(), accumulate(model, next_token, 1), steps=3))


def test_gradients_are_clipped_by_value_after_their_norm(llama: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Transformer(llama)
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "initial_lr": 1.0}], lr=1.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    made = accumulate(model, next_token, 1)
    (step,) = fit(optimizer, lambda _: 1.0, batches(), made, steps=1, clip=0.5, clip_value=1e-3)
    _, plain = gradients_of(llama, 1)
    for weight, start, gradient in zip(model.parameters(), before, plain.values(), strict=True):
        shortened = (gradient * (0.5 / step.grad_norm)).clamp(-1e-3, 1e-3)
        assert_close(start - weight, shortened, atol=1e-6, rtol=0)


def test_a_refused_step_leaves_the_weights(llama: ModelConfig) -> None:
    seen: list[Step] = []

    def accept(step: Step) -> bool:
        seen.append(step)
        return step.number != 2

    model, taken = train(llama, 1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model, taken = train(llama, 2, start=1, model=model, accept=accept)
    assert [step.accepted for step in taken] == [False]
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert seen[0].grad_norm > 0


def test_a_refused_step_lets_a_scaled_training_go_on(llama: ModelConfig) -> None:
    model = Transformer(llama)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    inner = accumulate(model, lambda *a: (scaler.scale((found := next_token(*a))[0]), *found[1:]), 1)
    optimizer = make_optimizer(model.named_parameters(), AdamW())
    steps = fit(optimizer, lambda _: 1.0, batches(), inner, steps=4, scaler=scaler, accept=lambda s: s.number != 2)
    assert [step.accepted for step in steps] == [True, False, True, True]


def test_batches_are_pulled_one_a_step_and_never_ahead(llama: ModelConfig) -> None:
    pulled = []

    def counted() -> Iterator[Batch]:
        for number in range(9):
            pulled.append(number)
            yield batch(number, rows=2)

    model = Transformer(llama)
    steps = fit(
        make_optimizer(model.named_parameters(), AdamW()),
        lambda _: 1.0,
        counted(),
        accumulate(model, next_token, 1),
        steps=9,
    )
    for number, _ in enumerate(steps):
        assert len(pulled) == number + 1


def test_a_scaled_loss_trains_as_the_plain_one(llama: ModelConfig) -> None:
    plain, _ = train(llama, 3)
    torch.manual_seed(0)
    model = Transformer(llama)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    inner = accumulate(model, lambda *a: (scaler.scale((found := next_token(*a))[0]), *found[1:]), 3, seed=5)
    optimizer = make_optimizer(model.named_parameters(), AdamW(learning_rate=1e-2))
    list(fit(optimizer, lambda _: 1.0, batches(), inner, steps=3, scaler=scaler))
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(ours, theirs, atol=1e-5, rtol=0)


class ByHand:
    """A weight of two numbers whose gradients are written down beforehand, times the scale as a backward pass would."""

    def __init__(self, gradients: list[list[float]], scale: float = 1024.0, growth_steps: int = 1000) -> None:
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.optimizer = torch.optim.SGD([{"params": [self.weight], "initial_lr": 1.0}], lr=1.0)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth_steps)
        self._gradients = iter(gradients)

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        scale = self.scaler.scale(torch.ones(()))
        self.weight.grad = torch.tensor(next(self._gradients)) * scale
        return torch.ones(()), {}

    def take(self, steps: int, start: int = 0, **options: object) -> list[Step]:
        return list(
            fit(
                self.optimizer,
                lambda _: 1.0,
                batches(),
                self,
                steps=steps,
                start=start,
                scaler=self.scaler,
                **options,
            )
        )


def test_an_overflow_halves_the_scale_and_is_no_step() -> None:
    by_hand = ByHand([[1.0, 0.0], [float("inf"), 0.0], [float("nan"), 0.0], [0.0, 1.0]])
    taken = by_hand.take(4, clip=None)
    assert [step.accepted for step in taken] == [True, False, False, True]
    assert [bool(step.grad_norm.isfinite()) for step in taken] == [True, False, False, True]
    assert by_hand.weight.tolist() == [-1.0, -1.0]
    assert by_hand.scaler.get_scale() == 1024 / 4


def test_the_scale_grows_after_so_many_steps_without_overflow() -> None:
    inf = float("inf")
    by_hand = ByHand([[1.0, 0.0]] * 2 + [[inf, 0.0]] + [[1.0, 0.0]] * 7, growth_steps=3)
    scales = []
    for step in range(10):
        by_hand.take(step + 1, start=step)
        scales.append(by_hand.scaler.get_scale())
    assert scales == [1024, 1024, 512, 512, 512, 1024, 1024, 1024, 2048, 2048]


def test_gradients_are_clipped_after_they_are_unscaled() -> None:
    by_hand = ByHand([[3.0, 4.0], [0.3, 0.4]])
    first, second = by_hand.take(2, clip=1.0)
    assert (first.grad_norm.item(), second.grad_norm.item()) == (5.0, 0.5)
    assert_close(by_hand.weight.detach(), torch.tensor([-0.6 - 0.3, -0.8 - 0.4]))


def test_a_scaler_that_is_read_back_goes_on_as_it_would_have() -> None:
    inf = float("inf")
    gradients = [[1.0, 0.0], [inf, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    whole = ByHand(gradients, growth_steps=3)
    whole.take(5)
    before, after = ByHand(gradients[:3], growth_steps=3), ByHand(gradients[3:], growth_steps=3)
    before.take(3)
    after.scaler.load_state_dict(json.loads(json.dumps(before.scaler.state_dict())))
    after.take(5, start=3)
    assert after.scaler.state_dict() == whole.scaler.state_dict()
    assert whole.scaler.get_scale() == 1024


def test_a_step_that_is_refused_may_have_overflowed_too() -> None:
    by_hand = ByHand([[float("inf"), 0.0], [1.0, 0.0]])
    taken = by_hand.take(2, accept=lambda step: bool(step.grad_norm.isfinite()))
    assert [step.accepted for step in taken] == [False, True]
    assert by_hand.scaler.get_scale() == 512
