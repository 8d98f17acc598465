"""Losses: neither chunks nor micro-batches change them."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from groundup.batch import Batch
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.train import losses
from groundup.train.losses import next_token, token_logprobs
from groundup.train.multi_token import multi_token


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


def test_z_loss_and_its_gradients_are_autograds(model: Transformer, batch: Batch) -> None:
    summed, _, parts = next_token(model, batch, z_loss=0.05)
    summed.backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    logits = model(batch.tokens, batch.position, losses.by_document(batch)).flatten(0, 1)
    weight = batch.weight.flatten()
    cross_entropy = (F.cross_entropy(logits, batch.targets.flatten(), reduction="none") * weight).sum()
    z = 0.05 * (logits.logsumexp(dim=-1).square() * weight).sum()
    (cross_entropy + z).backward()
    assert_close(parts["next_token"], cross_entropy)
    assert_close(parts["z_loss"], z)
    for name, parameter in model.named_parameters():
        assert_close(ours[name], parameter.grad, atol=1e-4, rtol=1e-4)


def test_gradient_of_the_log_probability_is_onehot_minus_softmax() -> None:
    """And of the log of the softmax's sum it is the softmax; against autograd through torch's own functions."""
    logits = torch.randn(4, 6, dtype=torch.float32, requires_grad=True)
    targets = torch.tensor([0, 5, 2, 2])
    weights, others = torch.tensor([1.0, 0.5, 0.0, 2.0]), torch.tensor([0.3, 0.0, 1.0, 0.7])
    logprobs, total = losses._Logprobs.apply(logits * 1, targets, False, True)
    (logprobs * weights + total * others).sum().backward()
    (again,) = torch.autograd.grad(
        (-F.cross_entropy(logits, targets, reduction="none") * weights + logits.logsumexp(-1) * others).sum(), logits
    )
    assert_close(logits.grad, again)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (7,), (2, 3), (2, 3, 4)])
def test_cross_entropy_is_its_definition_in_any_type_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """log Σ exp − the target's logit, and its gradient softmax − onehot, written out in float64."""
    torch.manual_seed(0)
    logits = (10 * torch.randn(*shape, 11, dtype=torch.float64)).to(dtype).requires_grad_()
    targets, before = torch.randint(11, shape, dtype=torch.int32), logits.detach().clone()
    exact = before.double()
    onehot = (torch.arange(11) == targets[..., None]).double()
    loss = losses.cross_entropy(logits, targets)
    expected = (exact.exp().sum(-1).log() - (exact * onehot).sum(-1)).mean()
    assert_close(loss.double(), expected, atol=1e-5, rtol=0)
    slope = (exact.exp() / exact.exp().sum(-1, keepdim=True) - onehot) / max(1, targets.numel())
    for _ in range(2):
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert_close(gradient, slope.to(dtype), atol=1e-6, rtol=0.01)
        assert torch.equal(logits, before)


def test_cross_entropy_of_huge_logits_is_finite() -> None:
    logits = torch.tensor([[1e30, -1e30, 0.0], [3e38, 3e38, -3e38]], requires_grad=True)
    loss = losses.cross_entropy(logits, torch.tensor([0, 1]))
    assert_close(loss, torch.tensor(math.log(2) / 2))
    loss.backward()
    assert_close(logits.grad, torch.tensor([[0.0, 0.0, 0.0], [0.25, -0.25, 0.0]]))


@pytest.mark.parametrize(
    ("logits", "targets", "error", "answer"),
    [
        (torch.zeros(2, 3, 8), torch.zeros(6).long(), ValueError, r"shape \(2, 3, 8\) and targets \(6,\)"),
        (torch.zeros(2, 3, 8), torch.zeros(3, 2).long(), ValueError, "one dimension more"),
        (torch.zeros(3, 8), torch.zeros(3), TypeError, "targets of torch.float32; .* torch.int64"),
        (torch.zeros(3, 8).long(), torch.zeros(3).long(), TypeError, "logits are of type torch.int64"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_cross_entropy_names_what_does_not_fit(
    logits: torch.Tensor, targets: torch.Tensor, error: type[Exception], answer: str
) -> None:
    with pytest.raises(error, match=answer):
        losses.cross_entropy(logits, targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["no head", "an identity", "logits of its own", "an activation"])
def test_what_the_loss_did_not_make_it_does_not_overwrite(llama: ModelConfig, dtype: torch.dtype, how: str) -> None:
    """Logits that are the hidden states themselves, in four ways; and such that a later step still reads."""
    torch.manual_seed(0)
    model = Transformer(llama).to(dtype)
    match how:
        case "no head":
            model.head = None
        case "an identity":
            model.head = torch.nn.Identity()
        case "logits of its own":
            model.logits = lambda hidden: hidden
        case "an activation":
            model.head = torch.nn.Tanh()
    hidden = torch.randn(2, 5, 32, dtype=dtype, requires_grad=True)
    targets, before = torch.randint(32, (2, 5)), hidden.detach().clone()
    losses.target_logprobs(model, hidden, targets)[0].sum().backward()
    assert torch.equal(hidden, before)
    again = hidden.detach().float().requires_grad_()
    scores = again.tanh() if how == "an activation" else again
    (-F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="sum")).backward()
    assert_close(hidden.grad.float(), again.grad, atol=0.02 if dtype == torch.bfloat16 else 1e-6, rtol=0)


def cut(batch: Batch, rows: slice) -> Batch:
    return Batch(*(getattr(batch, name)[rows] for name in ("tokens", "targets", "weight", "position", "document")))


def experts(config: ModelConfig) -> Transformer:
    torch.manual_seed(0)
    table = {**config.table(), "feedforward": {"kind": "experts", "n_experts": 4, "balance": 0.1}}
    return Transformer(ModelConfig.from_table(table))


def test_a_mixtures_auxiliary_loss_is_in_the_loss_and_shown_apart(llama: ModelConfig, batch: Batch) -> None:
    model = experts(llama)
    summed, weight, parts = next_token(model, batch)
    assert set(parts) == {"next_token", "auxiliary"}
    assert_close(summed, parts["next_token"] + parts["auxiliary"])
    balanced = 0.1 * llama.n_layers * weight  # 1 for each layer and token, if all experts were picked equally
    assert 0.95 * balanced < parts["auxiliary"] < 2 * balanced
    summed.backward()
    assert model.blocks["0"].feedforward.router.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["experts", "multi_token"])
def test_micro_batches_add_up_to_the_batch(llama: ModelConfig, batch: Batch, kind: str) -> None:
    model = experts(llama)
    loss = next_token
    if kind == "multi_token":
        model.add_multi_token(2)
        loss = partial(multi_token, weight=0.3)
    whole, weight, parts = loss(model, batch)
    micro_batches = [loss(model, cut(batch, rows)) for rows in (slice(0, 1), slice(1, 4), slice(4, 5))]
    assert_close(sum(micro_batch[0] for micro_batch in micro_batches), whole, atol=1e-3, rtol=1e-5)
    assert_close(sum(micro_batch[1] for micro_batch in micro_batches), weight)
    for name, part in parts.items():
        assert_close(sum(micro_batch[2][name] for micro_batch in micro_batches), part, atol=1e-3, rtol=1e-5)


def test_tokens_further_ahead_are_predicted_within_the_document(llama: ModelConfig, batch: Batch) -> None:
    """Against loops: position t of a document, weighted like the target t + k, predicts target t + k."""
    torch.manual_seed(0)
    model = Transformer(llama)
    model.add_multi_token(2)
    hidden = model.hidden(batch.tokens, batch.position, losses.by_document(batch))
    summed, _, parts = multi_token(model, batch, weight=0.5)
    expected = -(token_logprobs(model, batch) * batch.weight).sum()
    assert_close(parts["next_token"], expected)
    further = model.hidden_multi_token(hidden, batch.position, losses.by_document(batch))
    for k, states in enumerate(further, start=1):
        logits = model.logits(states).log_softmax(-1)
        nats = 0.0
        for row in range(5):
            for t in range(24 - k):
                if batch.document[row, t] == batch.document[row, t + k]:
                    nats -= logits[row, t, batch.targets[row, t + k]] * batch.weight[row, t + k]
        assert_close(parts[f"token_{k + 1}"], nats, atol=1e-2, rtol=1e-5)
        expected = expected + 0.5 / 2 * nats
    assert_close(summed, expected, atol=1e-2, rtol=1e-5)
    summed.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_multi_token_heads_change_nothing_else(llama: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Transformer(llama)
    tokens = torch.arange(9)[None]
    before = model(tokens)
    model.add_multi_token(1)
    assert torch.equal(model(tokens), before)
