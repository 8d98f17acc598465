"""Exact: sums that have the same bits for any number of ranks, as they are always taken in the same pairs.

The global batch is always the same micro-batches. Micro-batch m is on rank m mod n: so the lowest levels of one binary
tree over all of them are sums over neighbouring ranks, and the levels above sums over a rank's own.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
from torch.distributed.tensor import DTensor


class PairwiseReduceScatter(ReduceScatter):
    """A reduce-scatter whose sums are a binary tree over the ranks, whatever the backend would do."""

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        arrived = torch.empty_like(input_tensor)
        dist.all_to_all_single(arrived, input_tensor, group=group)
        parts = list(arrived.chunk(group.size()))
        while len(parts) > 1:
            parts = [first + second for first, second in zip(parts[::2], parts[1::2], strict=True)]
        output_tensor.copy_(parts[0])


class PairwiseSums:
    """The sum of the gradients that each micro-batch leaves on some parameters, two equal halves at a time."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)
        self._halves: list[tuple[int, list[Tensor | None]]] = []
        """Sums of 2^level micro-batches that wait for another as large: (level, gradients)."""

    def take(self, last: bool) -> None:
        """Take the gradients of a micro-batch away; after the last one leave the sum of all in their place."""
        level, present = 0, [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        while self._halves and (self._halves[-1][0] == level or (last and self._halves)):
            before, sums = self._halves.pop()
            present = [_added(first, second) for first, second in zip(sums, present, strict=True)]
            level = max(level, before) + 1
        if not last:
            self._halves.append((level, present))
            return
        for parameter, total in zip(self._parameters, present, strict=True):
            parameter.grad = total


def _added(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def exact_norm(gradients: Iterable[Tensor]) -> Float[Tensor, ""]:
    """The norm of all gradients together: the squares of each row of dim 0, which are on one rank, then their sum over
    all rows, taken alike on every rank."""
    rows = []
    for gradient in gradients:
        assert isinstance(gradient, DTensor), "every parameter is cut, if only over one rank"
        whole = torch.zeros(gradient.shape[0], dtype=torch.float64, device=gradient.device)
        own = gradient.to_local().double().square().unsqueeze(-1).flatten(1).sum(dim=1)  # of no row, too
        begin = min(len(whole), gradient.device_mesh.get_local_rank("shard") * -(-len(whole) // _ranks(gradient)))
        whole[begin : begin + len(own)] = own
        rows.append(whole)
    squares = torch.cat(rows)
    dist.all_reduce(squares)
    return squares.sum().sqrt()


def _ranks(gradient: DTensor) -> int:
    return gradient.device_mesh.size(gradient.device_mesh.mesh_dim_names.index("shard"))  # type: ignore[union-attr]
