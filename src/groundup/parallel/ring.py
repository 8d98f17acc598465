"""Context parallelism: the positions of each row shared by the ranks of an axis; keys and values go round a ring.

Each rank has two chunks of a row, one from the front and one from the back, so that all have as much to read (Liu et
al. 2023, arXiv:2310.01889; Brandon et al. 2023, arXiv:2311.09431). What is read of one rank's keys joins what was read
before through the logarithm of the softmax's divisor.
B rows, T positions of a rank, S of the rank whose keys are here, H query heads, G key/value heads, K and W widths.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed import ProcessGroup

from groundup.batch import Batch
from groundup.model.dropout import Drop
from groundup.parallel.collectives import added_up, joined


def own_positions(length: int, ranks: int, rank: int) -> Int[Tensor, "T"]:
    """The positions of a row of `length` that this rank has: chunks `rank` and 2 `ranks` − 1 − `rank`.

    >>> own_positions(8, 2, 0), own_positions(8, 2, 1)
    (tensor([0, 1, 6, 7]), tensor([2, 3, 4, 5]))
    """
    chunks = torch.arange(length).chunk(2 * ranks)
    return torch.cat((chunks[rank], chunks[2 * ranks - 1 - rank]))


@dataclass(frozen=True)
class Ring:
    """An `Attend` over all positions of packed rows, of which each rank has its own."""

    position: Int[Tensor, "T"]
    """Of this rank's positions within the row."""
    document: Int[Tensor, "B T"]
    group: ProcessGroup

    def whole(self, x: Int[Tensor, "B T"]) -> Int[Tensor, "B all"]:
        """Every rank's part of the rows put together in order."""
        positions = joined(self.position[None], self.group)[0]
        return joined(x, self.group).index_select(1, positions.argsort())

    def own(self, x: Int[Tensor, "B all"]) -> Int[Tensor, "B T"]:
        """This rank's part of whole rows."""
        return x.index_select(1, self.position)

    def __call__(
        self,
        q: Float[Tensor, "B H T K"],
        k: Float[Tensor, "B G T K"],
        v: Float[Tensor, "B G T W"],
        *,
        scale: float | None,
        slopes: Float[Tensor, "H"] | None,
        window: int | None,
        soft_cap: float | None,
        dropout: Drop | None,
        layer: int,
    ) -> Float[Tensor, "B H T W"]:
        how = _How(q.shape[-1] ** -0.5 if scale is None else scale, slopes, window, soft_cap, dropout)
        read: Tensor = _Read.apply(q, k, v, self, how)  # type: ignore[no-untyped-call]
        return read


@dataclass(frozen=True)
class _How:
    scale: float
    slopes: Tensor | None
    window: int | None
    soft_cap: float | None
    drop: Drop | None


def _scores(
    q: Tensor, k: Tensor, here: tuple[Tensor, Tensor], there: tuple[Tensor, Tensor], how: _How
) -> tuple[Tensor, Tensor | None]:
    """Masked scores (B, H, T, S), in float32 at least, and what a soft cap multiplies their gradient by.

    Args:
        here: position and document of the queries.
        there: of the keys.
    """
    scores = (q * how.scale) @ k.mT
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    slope = None
    if how.soft_cap is not None:
        squeezed = torch.tanh(scores / how.soft_cap)
        scores, slope = how.soft_cap * squeezed, 1 - squeezed.square()
    distance = here[0][:, None] - there[0]
    if how.slopes is not None:
        scores = scores - how.slopes[:, None, None] * distance
    readable = (distance >= 0) & (here[1][:, :, None] == there[1][:, None, :])
    if how.window is not None:
        readable = readable & (distance < how.window)
    return scores.masked_fill(~readable[:, None], float("-inf")), slope


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, ring: Ring, how: _How) -> Tensor:
        heads, here = q.shape[1], (ring.position, ring.document)
        moving, total, read = (k, v, *here), torch.empty(0), torch.empty(0)
        for turn in range(ring.group.size()):
            keys, values, *there = moving
            scores, _ = _scores(q, _of_heads(keys, heads), here, (there[0], there[1]), how)
            own = scores.logsumexp(dim=-1, keepdim=True)  # −∞ where nothing may be read
            weights = (scores - own.nan_to_num(neginf=0.0)).exp()
            if how.drop is not None:
                weights = how.drop(weights, there[0])
            part = weights @ _of_heads(values, heads).to(weights.dtype)
            if turn == 0:
                total, read = own, part
            else:
                both = torch.logaddexp(total, own)
                known = both.nan_to_num(neginf=0.0)
                read = read * (total - known).exp() + part * (own - known).exp()
                total = both
            if turn + 1 < ring.group.size():
                moving = _pass_on(moving, ring.group)
        ctx.save_for_backward(q, k, v, read, total)
        ctx.ring, ctx.how = ring, how
        return read.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, read, total = ctx.saved_tensors
        ring, how, heads, groups = ctx.ring, ctx.how, q.shape[1], k.shape[1]
        here, to_read = (ring.position, ring.document), gradients[0].to(read.dtype)
        inner = (to_read * read).sum(dim=-1, keepdim=True)
        to_q = torch.zeros_like(q, dtype=read.dtype)
        to_k, to_v = (torch.zeros_like(each, dtype=read.dtype) for each in (k, v))
        moving = (k, v, *here)
        for _ in range(ring.group.size()):
            keys, values, *there = moving
            keys, values = (_of_heads(each, heads).to(read.dtype) for each in (keys, values))
            scores, slope = _scores(q, keys.to(q.dtype), here, (there[0], there[1]), how)
            weights = (scores - total.nan_to_num(neginf=0.0)).exp()
            to_weights = to_read @ values.mT
            dropped = weights
            if how.drop is not None:
                dropped, to_weights = how.drop(weights, there[0]), how.drop(to_weights, there[0])
            to_scores = weights * (to_weights - inner) * how.scale
            if slope is not None:
                to_scores = to_scores * slope
            to_q += to_scores @ keys
            to_k = to_k + _of_groups(to_scores.mT @ q.to(read.dtype), groups)
            to_v = to_v + _of_groups(dropped.mT @ to_read, groups)
            *moving, to_k, to_v = _pass_on((*moving, to_k, to_v), ring.group)  # after a whole turn they are home
        return to_q.to(q.dtype), to_k.to(k.dtype), to_v.to(v.dtype), None, None


def _of_heads(x: Float[Tensor, "B G S K"], heads: int) -> Float[Tensor, "B H S K"]:
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def _of_groups(x: Float[Tensor, "B H S K"], groups: int) -> Float[Tensor, "B G S K"]:
    shared: Tensor = x.unflatten(1, (groups, -1)).sum(dim=2)
    return shared


def _pass_on(tensors: Any, group: ProcessGroup) -> Any:
    """Give each tensor to the next rank of the ring, and take that of the one before."""
    rank, n = group.rank(), group.size()
    arrived = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors]
    operations = [
        operation
        for tensor, new in zip(tensors, arrived, strict=True)
        for operation in (
            dist.P2POp(dist.isend, tensor.contiguous(), group=group, group_peer=(rank + 1) % n),
            dist.P2POp(dist.irecv, new, group=group, group_peer=(rank - 1) % n),
        )
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return tuple(arrived)


def mean_over_ring(ranks: int, group: ProcessGroup, x: Float[Tensor, "B T E"]) -> Float[Tensor, "B 1 E"]:
    """The mean over all positions of a row; without a gradient, as it is asked for counts alone."""
    mean: Tensor = added_up(x.mean(dim=1, keepdim=True), group) / ranks
    return mean


def cut_positions(batch: Batch, position: Int[Tensor, "T"]) -> Batch:
    """These positions of every row."""
    return replace(batch, **{name: column[:, position] for name, column in vars(batch).items()})
