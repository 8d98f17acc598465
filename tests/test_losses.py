"""Losses: chunks and pieces change nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from groundup import losses
from groundup.batch import Batch
from groundup.losses import next_token, token_logprobs
from groundup.model.transformer import Transformer


@pytest.fixture
def batch() -> Batch:
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 97, (5, 24), generator=draw)
    document = torch.tensor([[0] * 9 + [1] * 15]).expand(5, 24)
    position = torch.tensor([[*range(9), *range(15)]]).expand(5, 24)
    weight = (torch.rand(5, 24, generator=draw) < 0.7).float()
    return Batch(tokens, (tokens + 1) % 97, weight, position, document)


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_log_probabilities_are_those_of_the_whole_softmax(
    model: Transformer, batch: Batch, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK", chunk)
    logits = model(batch.tokens, batch.position, losses.by_document(batch))
    whole = logits.log_softmax(dim=-1).gather(-1, batch.targets[..., None]).squeeze(-1)
    assert_close(token_logprobs(model, batch), whole, atol=1e-5, rtol=0)


def test_gradients_are_those_of_autograds_cross_entropy(model: Transformer, batch: Batch) -> None:
    summed, weight, _ = next_token(model, batch)
    (summed / weight).backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    logits = model(batch.tokens, batch.position, losses.by_document(batch)).flatten(0, 1)
    each = F.cross_entropy(logits, batch.targets.flatten(), reduction="none")
    ((each * batch.weight.flatten()).sum() / batch.weight.sum()).backward()
    for name, parameter in model.named_parameters():
        assert_close(ours[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_gradient_of_the_log_probability_is_onehot_minus_softmax() -> None:
    logits = torch.randn(4, 6, dtype=torch.float32, requires_grad=True)
    targets = torch.tensor([0, 5, 2, 2])
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0])
    (losses._picked_logprob(logits, targets) * weights).sum().backward()
    expected = weights[:, None] * (F.one_hot(targets, 6) - logits.detach().softmax(dim=-1))
    assert_close(logits.grad, expected)
