"""The loop: pieces add up, randomness is a function of (seed, step), and the caller keeps the reins."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch.testing import assert_close

from groundup.batch import Batch
from groundup.losses import next_token
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.optimizer import make_optimizer
from groundup.optim.settings import AdamW
from groundup.train.fit import Step, accumulate, dropout_seed, fit


def batch(seed: int, rows: int = 16) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 97, (rows, 24), generator=draw)
    weight = (torch.rand(rows, 24, generator=draw) < 0.6).float()
    weight[: rows // 3] = 0  # whole pieces of little weight
    position = torch.arange(24).expand(rows, 24)
    return Batch(tokens, (tokens * 5 + 1) % 97, weight, position, torch.zeros_like(tokens))


def batches(first: int = 0) -> Iterator[Batch]:
    while True:
        yield batch(first)
        first += 1


def gradients_of(
    config: ModelConfig, pieces: int | Callable[[Batch], int]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = Transformer(config)
    loss, _ = accumulate(model, next_token, pieces)(batch(0))
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("pieces", [2, 7, 16, lambda batch: len(batch.weight) // 4])
def test_one_piece_equals_uneven_pieces(config: ModelConfig, pieces: int | Callable[[Batch], int]) -> None:
    """16 rows in 7 pieces are 3, 3, 2, 2, 2, 2, 2 rows, of unequal weight; some have none."""
    whole_loss, whole = gradients_of(config, 1)
    loss, in_pieces = gradients_of(config, pieces)
    assert_close(loss, whole_loss)
    for name in whole:
        assert_close(in_pieces[name], whole[name], atol=1e-6, rtol=1e-4)


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


def test_dropout_differs_by_step_piece_and_seed() -> None:
    seeds = {
        dropout_seed(seed, step, piece, rank)
        for seed in range(5)
        for step in range(9)
        for piece in range(4)
        for rank in range(2)
    }
    assert len(seeds) == 5 * 9 * 4 * 2


def test_gradients_are_clipped_to_the_norm(llama: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Transformer(llama)
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "initial_lr": 1.0}], lr=1.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    (step,) = fit(optimizer, lambda _: 1.0, batches(), accumulate(model, next_token, 1), steps=1, clip=0.01)
    moved = torch.stack([(p - b).norm() for p, b in zip(model.parameters(), before, strict=True)]).norm()
    assert step.grad_norm > 0.01
    assert_close(moved, torch.tensor(0.01), rtol=1e-3, atol=0)


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
