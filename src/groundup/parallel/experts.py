"""Expert parallelism: each rank of an axis holds some experts of every mixture; tokens go to their experts and back.

No token is dropped and none waits for room: whatever number a rank is sent, it answers. N rows, D width, E experts.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed import ProcessGroup

from groundup.model.feedforward import StackedExperts, Tap

Answer = Callable[[Tensor, Tensor, Tap], Tensor]


def spread_experts(experts: StackedExperts, n_experts: int, group: ProcessGroup) -> None:
    """Let `experts`, of which this rank's stacks hold one stretch of `n_experts`, answer rows for all of them."""
    experts.forward = functools.partial(_exchange, experts.forward, n_experts, group)  # type: ignore[method-assign]


def _exchange(
    answer: Answer,
    n_experts: int,
    group: ProcessGroup,
    rows: Float[Tensor, "N D"],
    expert: Int[Tensor, "N"],
    tap: Tap,
) -> Float[Tensor, "N D"]:
    """Send each row to the rank of its expert, which answers, and take the answers back in order."""
    counts = torch.bincount(expert, minlength=n_experts)
    received = torch.empty_like(counts)  # from each rank, for each expert here
    dist.all_to_all_single(received, counts, group=group)
    own = n_experts // group.size()
    sent, came = (each.view(-1, own).sum(dim=1).tolist() for each in (counts, received))
    arrived = _send(rows, sent, came, group)
    which = torch.arange(own, device=rows.device).repeat(group.size()).repeat_interleave(received)
    which, order = which.sort(stable=True)
    answers = answer(arrived[order], which, tap)
    return _send(answers[order.argsort()], came, sent, group)


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], came: list[int], group: ProcessGroup) -> Tensor:
        ctx.sent, ctx.came, ctx.group = sent, came, group
        arrived = rows.new_empty((sum(came), *rows.shape[1:]))
        dist.all_to_all_single(arrived, rows.contiguous(), came, sent, group=group)
        return arrived

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _Send.forward(ctx, gradients[0], ctx.came, ctx.sent, ctx.group), None, None, None


def _send(rows: Tensor, sent: list[int], came: list[int], group: ProcessGroup) -> Tensor:
    """`sent[r]` rows to each rank r, from each of which `came[r]` arrive."""
    arrived: Tensor = _Send.apply(rows, sent, came, group)  # type: ignore[no-untyped-call]
    return arrived
