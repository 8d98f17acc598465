"""Multi-token prediction: the tokens after the next one, each by a head of its own that only training needs."""

from jaxtyping import Float, Int
from torch import Tensor

from groundup.batch import Batch, total_weight
from groundup.model.attention import Attend
from groundup.model.feedforward import AuxiliaryLosses, no_tap
from groundup.model.transformer import Transformer
from groundup.train.losses import Attending, by_document, target_logprobs


def multi_token(
    model: Transformer, batch: Batch, attending: Attending = by_document, *, weight: float, compiled: bool = False
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The loss `next_token`, and `weight` × the mean cross-entropy of the tokens after it, one for each head of
    `model.multi_token`; a token of another document is not predicted.

    Heads beside one another over one trunk as in Gloeckle et al. 2024, arXiv:2404.19737, section 2. Unlike there, the
    next token is read off the trunk itself, and the heads read it after its norm. Weighted as in DeepSeek-V3 (2024,
    arXiv:2412.19437, eq. 25). Parts: `next_token`, `token_2`, `token_3`, …, and `auxiliary`.
    """
    assert model.multi_token, "the model has heads for them: add_multi_token(n)"
    attend = attending(batch)
    hidden, auxiliary = model.hidden_and_auxiliary(batch.tokens, batch.position, attend)
    summed = -(target_logprobs(model, hidden, batch.targets, compiled)[0] * batch.weight).sum()
    losses = AuxiliaryLosses(auxiliary)
    tap = losses if model.has_auxiliary_losses else no_tap
    further = model.hidden_multi_token(hidden, batch.position, attend, tap)
    parts = {"next_token": summed}
    for shift, states in enumerate(further, start=1):
        targets, counts = _targets_ahead(batch, attend, shift)
        logprobs, _ = target_logprobs(model, states, targets, compiled)
        part = parts[f"token_{shift + 1}"] = -(logprobs * counts).sum()
        summed = summed + weight / len(further) * part
    if (auxiliary := losses.total()) is not None:
        parts["auxiliary"] = (auxiliary * batch.weight).sum()
        summed = summed + parts["auxiliary"]
    return summed, total_weight(batch), parts


def _targets_ahead(batch: Batch, attend: Attend, shift: int) -> tuple[Int[Tensor, "B T"], Float[Tensor, "B T"]]:
    """The targets so many tokens further on, and how much each counts: not at all in another document, or past the row.

    A rank that has only some positions of each row asks the others through `attend.whole`, and keeps its `attend.own`.
    """
    whole, own = (getattr(attend, name, lambda x: x) for name in ("whole", "own"))
    targets, weight, document = (whole(column) for column in (batch.targets, batch.weight, batch.document))
    counts = weight.roll(-shift, dims=1) * (document.roll(-shift, dims=1) == document)
    counts[:, -shift:] = 0  # these have come round from the beginning of the row
    return own(targets.roll(-shift, dims=1)), own(counts)
