"""Ranks: `fit` and its surroundings where many processes train one model together."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from groundup.batch import Weighted, total_weight
from groundup.parallel.shard import clip, hold_gradients, norm_of
from groundup.parallel.stages import Pipeline
from groundup.parallel.world import World
from groundup.train.fit import Ranks


class ManyRanks(Ranks):
    """This process's view of a `World` whose ranks train `model`."""

    def __init__(self, world: World, model: nn.Module) -> None:
        self.world, self._model = world, model
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._names: list[str] | None = None
        self._counted_elsewhere = (
            {half for stage, half in model.tied if stage} if isinstance(model, Pipeline) else set()
        )

    def clip_gradients(self, parameters: Iterable[Tensor], max_norm: float) -> Tensor:
        having = [(each, each.grad) for each in parameters if each.grad is not None]
        norm = norm_of([gradient for each, gradient in having if each not in self._counted_elsewhere], self.world)
        clip([gradient for _, gradient in having], norm, max_norm)
        return norm

    def total_weight(self, batch: Weighted) -> Tensor:
        weight = total_weight(batch).to(self.world.device)
        dist.all_reduce(weight, group=self.world.group("data"))
        return weight

    def add_up(self, shares: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._names is None:
            self._names = max((each for each in self.gather(list(shares))), key=len)
        zero = torch.zeros((), device=self.world.device)
        numbers = torch.stack([shares.get(name, zero).double() for name in self._names])
        dist.all_reduce(numbers, group=self.world.group("data"))
        if self.world.sizes["pipeline"] > 1:
            dist.all_reduce(numbers, group=self.world.group("pipeline"))
        return dict(zip(self._names, numbers, strict=True))

    def before_backward(self, last: bool) -> None:
        if self.world.settings.zero == 1:
            hold_gradients(self._model, last)

    def agree(self, verdict: bool) -> bool:
        votes = torch.tensor(int(verdict), device=self.world.device)
        dist.all_reduce(votes, dist.ReduceOp.MIN)
        return bool(votes)

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values
