"""Ranks: `fit` and its surroundings where many processes train one model together."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from groundup.batch import Weighted, to, total_weight
from groundup.optim.state import own
from groundup.parallel.shard import clip, copies_of, hold_gradients, norm_of, sharded
from groundup.parallel.stages import Pipeline
from groundup.parallel.world import World
from groundup.train.fit import Gradients, Ranks
from groundup.train.peers import Peers


class ManyRanks(Ranks):
    """This process's view of a `World` whose ranks train `model`."""

    def __init__(self, world: World, model: nn.Module) -> None:
        self.world, self._model = world, model
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        saving = dist.new_group(backend="gloo")
        self.peers = Peers(self.rank, self.size, lambda value: _gathered(value, saving))
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

    def own(self, weight: Tensor) -> Tensor:
        return own(weight)

    def copies(self, weight: Tensor) -> int:
        return copies_of(weight)

    def sums(self, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        names = list(dict.fromkeys(itertools.chain.from_iterable(self.gather(list(numbers)))))
        zero = torch.zeros((), device=self.world.device)
        total = torch.stack([numbers.get(name, zero).to(zero.device) for name in names])
        dist.all_reduce(total)
        return dict(zip(names, total, strict=True))

    def after_measuring(self) -> None:
        for module in sharded(self._model):
            module.reshard()  # else the next step would find weights as they were

    def agree(self, verdict: bool) -> bool:
        votes = torch.tensor(int(verdict), device=self.world.device)
        dist.all_reduce(votes, dist.ReduceOp.MIN)
        return bool(votes)

    def gather(self, value: Any) -> list[Any]:
        return _gathered(value, None)


def _gathered(value: Any, group: ProcessGroup | None) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


class RanksScaler(torch.amp.GradScaler):
    """A scaler of float16 losses that finds an overflow on any rank."""

    @classmethod
    def of(cls, scaler: torch.amp.GradScaler | None) -> "RanksScaler | None":
        """With the settings of another."""
        if scaler is None:
            return None
        own = cls(scaler._device)
        own.load_state_dict(scaler.state_dict())
        return own

    def _unscale_grads_(
        self, optimizer: torch.optim.Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        gradients = [
            own(weight.grad)
            for group in optimizer.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found_inf, inv_scale)
        dist.all_reduce(found_inf, dist.ReduceOp.MAX)
        return {found_inf.device: found_inf}


def through_stages(
    model: Pipeline,
    micro_batches: Callable[[Any], int],
    *,
    seed: int = 0,
    start: int = 0,
    scaler: torch.amp.GradScaler | None = None,
    ranks: Ranks,
) -> Gradients[Any]:
    """As `accumulate`, through the stages of a pipeline; micro-batches are of the same number of rows."""
    step = itertools.count(start)
    device = next(model.parameters()).device

    def gradients(batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        next(step)
        divisor = ranks.total_weight(batch)
        rows = len(batch.weight)
        n = next(n for n in range(micro_batches(batch), rows + 1) if rows % n == 0)
        scale = (lambda loss: loss) if scaler is None else scaler.scale
        shares = model.gradients(to(batch, device), None, n, divisor, scale)
        whole = ranks.add_up({name: share / divisor for name, share in shares.items()})
        return whole.pop(""), whole

    return gradients
