"""Collectives as steps of autograd: each forward sum or exchange with the backward one that belongs to it.

B rows, T positions, D width, n ranks of the group. "Whole" is what all ranks have alike, "a part" a term of a sum.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

# The second names are those before torch 2.13.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


def added_up(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """The sum of every rank's `x`; not differentiable."""
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def joined(x: Tensor, group: ProcessGroup) -> Tensor:
    """Every rank's `x`, put together along T (dim 1), in order of rank; not differentiable."""
    n = group.size()
    parts = x.new_empty((n * len(x), *x.shape[1:]))
    _all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts.chunk(n), dim=1)


def own_sum(x: Tensor, group: ProcessGroup) -> Tensor:
    """This rank's stretch along T (dim 1) of the sum of every rank's `x`; not differentiable."""
    parts = torch.cat(x.chunk(group.size(), dim=1))
    own = x.new_empty((len(x), x.shape[1] // group.size(), *x.shape[2:]))
    _reduce_scatter(own, parts, group=group)
    return own


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        return added_up(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _SumOfParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return added_up(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return added_up(gradients[0], ctx.group), None


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return added_up(gradients[0], ctx.group), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return joined(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return own_sum(gradients[0], ctx.group), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return own_sum(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return joined(gradients[0], ctx.group), None


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, n: int) -> Tensor:
        ctx.n = n
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] / ctx.n, None


def sum_of(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of the ranks' `x`, where what follows is whole: its gradient is whole, too."""
    total: Tensor = _Sum.apply(x, group)  # type: ignore[no-untyped-call]
    return total


def sum_before_parts(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of the ranks' `x`, where each rank goes on with a part: their gradients are added up."""
    total: Tensor = _SumOfParts.apply(x, group)  # type: ignore[no-untyped-call]
    return total


def enter(x: Tensor, group: ProcessGroup) -> Tensor:
    """Whole `x` before each rank computes a part from it: the gradients are added up."""
    same: Tensor = _Enter.apply(x, group)  # type: ignore[no-untyped-call]
    return same


def gather(x: Tensor, group: ProcessGroup) -> Tensor:
    """The ranks' stretches of T put together, before each rank computes a part from all: of the added-up gradients,
    each gets its own stretch."""
    whole: Tensor = _Gather.apply(x, group)  # type: ignore[no-untyped-call]
    return whole


def scatter(x: Tensor, group: ProcessGroup) -> Tensor:
    """This rank's stretch of T of the sum of all parts."""
    own: Tensor = _Scatter.apply(x, group)  # type: ignore[no-untyped-call]
    return own


def share(x: Tensor, n: int) -> Tensor:
    """`x` with 1/n of its gradient: each of `n` ranks computes the whole of it, where gradients are added up."""
    same: Tensor = _Share.apply(x, n)  # type: ignore[no-untyped-call]
    return same
