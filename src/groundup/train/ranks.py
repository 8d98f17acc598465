"""Ranks: `fit` and its surroundings where many processes train one model together."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor
from torch.distributed import ProcessGroup

from groundup.batch import Weighted, to, total_weight
from groundup.model.draw import hashed
from groundup.model.dropout import row_keys
from groundup.model.transformer import Transformer
from groundup.optim.state import own
from groundup.parallel.exact import PairwiseSums, exact_norm
from groundup.parallel.ring import own_positions
from groundup.parallel.shard import clip, copies_of, hold_gradients, norm_of, sharded
from groundup.parallel.stages import Pipeline, as_it_is
from groundup.parallel.world import World
from groundup.processes.watch import Watch, by_rank
from groundup.train.fit import Gradients, Ranks
from groundup.train.peers import Peers


class ManyRanks(Ranks):
    """This process's view of a `World` whose ranks train `model`."""

    cuts_weights = True

    def __init__(self, world: World, model: Transformer | Pipeline) -> None:
        self.world, self._model, self._config = world, model, model.config
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        saving = dist.new_group(backend="gloo")
        self.peers = Peers(self.rank, self.size, lambda value: _gathered(value, saving))
        self._names: list[str] | None = None
        self._watch: Watch | None = None
        tied = model.tied if isinstance(model, Pipeline) else []
        self._counted_elsewhere = {half for stage, half in tied if stage}
        self._pairwise = PairwiseSums(model.parameters()) if world.settings.exact else None

    def clip_gradients(self, parameters: Iterable[Tensor], max_norm: float) -> Tensor:
        having = [(each, each.grad) for each in parameters if each.grad is not None]
        gradients = [gradient for each, gradient in having if each not in self._counted_elsewhere]
        norm = exact_norm(gradients) if self._pairwise else norm_of(gradients, self.world)
        clip([gradient for _, gradient in having], norm, max_norm)
        return norm

    def total_weight(self, batch: Weighted) -> Tensor:
        weight = total_weight(batch).to(self.world.device)
        dist.all_reduce(weight, group=self.world.data)
        return weight

    def add_up(self, shares: dict[str, list[Tensor]], divisor: Tensor) -> dict[str, Tensor]:
        if self._names is None:
            self._names = max(self.gather(list(shares)), key=len)
        count = max(map(len, shares.values()), default=1)
        if self._pairwise:  # each share in its place among all, then added up in order
            table = torch.zeros(len(self._names), count, self.size, dtype=torch.float64, device=self.world.device)
            table[..., self.rank] = torch.stack([torch.stack(shares[name]) for name in self._names])
            dist.all_reduce(table)
            return dict(zip(self._names, (table / divisor).flatten(1).sum(dim=1), strict=True))
        zero = torch.zeros((), device=self.world.device)
        sums = [torch.stack(shares[name]).sum() if name in shares else zero for name in self._names]
        total = torch.stack([each.double() for each in sums]) / divisor
        dist.all_reduce(total, group=self.world.data)
        if self.world.sizes["pipeline"] > 1:
            dist.all_reduce(total, group=self.world.group("pipeline"))
        return dict(zip(self._names, total, strict=True))

    def dropout_keys(self, seed: int, step: int, count: int, device: torch.device) -> Int[Tensor, "B T"]:
        rows = own_rows(self.world, count * self.world.row_ranks, count)
        keys = row_keys(seed, step, 0, count * self.world.row_ranks, device)[rows.flatten().to(device)]
        ranks, length = self.world.sizes["context"], self._config.context_length
        if ranks == 1:
            return keys
        return hashed(keys, own_positions(length, ranks, self.world.coordinate("context")).to(device))

    def before_backward(self, last: bool) -> None:
        if self.world.settings.sums_once and not self._pairwise:
            hold_gradients(self._model, last)

    def after_backward(self, last: bool) -> None:
        if self._pairwise:
            self._pairwise.take(last)

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

    @contextmanager
    def watching(self, directory: Path) -> Iterator[None]:
        with Watch(directory, self.world.settings.timeout_seconds) as self._watch:
            yield
        self._watch = None

    def mark(self, step: int, where: str) -> None:
        if self._watch is not None:
            self._watch.mark(step, where)

    def times(self) -> dict[str, list[float]] | None:
        return None if self._watch is None else by_rank(self.gather(self._watch.meter.read()))

    def gather(self, value: Any) -> list[Any]:
        return _gathered(value, None)


def own_rows(world: World, rows: int, count: int) -> Int[Tensor, "runs n"]:
    """Which rows of a global batch of `rows` this rank learns from, `count` of them, in runs of rows that follow each
    other; numbers past the end are none.

    With `exact` micro-batches go round the ranks, so that those that are added up first are on neighbouring ranks.
    """
    if not world.settings.exact:
        return torch.arange(world.row_rank * count, (world.row_rank + 1) * count)[None]
    return torch.arange(rows).view(-1, world.row_ranks, world.micro_batch_rows)[:, world.row_rank]


def _gathered(value: Any, group: ProcessGroup | None) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


class RanksScaler(torch.amp.GradScaler):
    """A scaler of float16 losses that finds an overflow on any rank."""

    @classmethod
    def of(cls, scaler: torch.amp.GradScaler | None) -> "RanksScaler | None":
        """With the settings of another. Its scale is there before a loss is scaled, as only a pipeline's last stage has
        one."""
        if scaler is None:
            return None
        agreed = cls(scaler._device)
        agreed.load_state_dict(scaler.state_dict())
        agreed._lazy_init_scale_growth_tracker(torch.device(scaler._device))
        return agreed

    def _unscale_grads_(
        self, optimizer: torch.optim.Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        gradients = [own(weight.grad) for weight in weights if weight.grad is not None]
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
        number, rows = next(step), len(batch.weight)
        divisor = ranks.total_weight(batch)
        keys = ranks.dropout_keys(seed, number, rows, device) if model.config.drops else None
        n = model.fitting(rows, micro_batches(batch))
        sums = model.gradients(to(batch, device), keys, n, divisor, scaler.scale if scaler else as_it_is)
        whole = ranks.add_up({name: [share] for name, share in sums.items()}, divisor)
        return whole.pop(""), whole

    return gradients
