"""Pipeline parallelism: consecutive layers on consecutive ranks, micro-batches on their way through them.

The order of forward and backward passes is torch's; a stage is a `Transformer` with some of its blocks, the first with
the embedding, the last with norm, head and loss. B rows, T positions, D width.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)
from torch.distributed.tensor import DTensor

from groundup.batch import Batch
from groundup.errors import SettingsError
from groundup.model.attention import Attend
from groundup.model.count import count
from groundup.model.feedforward import Tap
from groundup.model.settings import Experts, ModelConfig
from groundup.model.transformer import Transformer
from groundup.parallel.settings import GPipe, Interleaved, OneForwardOneBackward, PipelineSchedule, ZeroBubble
from groundup.parallel.world import World

Loss = Callable[[Transformer, Batch], tuple[Tensor, Tensor, dict[str, Tensor]]]


def stages_a_rank(schedule: PipelineSchedule) -> int:
    match schedule:
        case GPipe() | OneForwardOneBackward():
            return 1
        case Interleaved(stages=stages):
            return stages
        case ZeroBubble():
            return 2


def rank_of_stage(schedule: PipelineSchedule, stage: int, ranks: int) -> int:
    """Which rank of the pipeline holds this stage.

    >>> [rank_of_stage(ZeroBubble(), stage, 2) for stage in range(4)]
    [0, 1, 1, 0]
    """
    there, back = divmod(stage, ranks)
    return ranks - 1 - back if isinstance(schedule, ZeroBubble) and there % 2 else back


@functools.cache  # asked for by every stage, and counting a large model takes a second
def layers_of_stages(config: ModelConfig, n_stages: int, extra_blocks: int = 0) -> list[range]:
    """The layers of each stage, so that the slowest takes as little as can be: the head counts with the last stage, as
    do blocks that predict further tokens.

    Raises:
        SettingsError: more stages than layers.

    >>> layers_of_stages(ModelConfig(vocab_size=50304, d_model=256, n_layers=8), 2)
    [range(0, 7), range(7, 8)]
    """
    if n_stages > config.n_layers:
        raise SettingsError(
            f"a pipeline of {n_stages} stages needs as many layers, but model.n_layers = {config.n_layers}: lower "
            "parallel.pipeline or the stages a rank"
        )
    flops = count(config).forward_flops_per_token
    head = flops.get("head", 0) + flops.get("project_out", 0)
    block = (sum(flops.values()) - head) / config.n_layers
    last = (1 + extra_blocks) * head + extra_blocks * block

    def slowest(cuts: Sequence[int]) -> tuple[float, float]:
        sizes = [b - a for a, b in itertools.pairwise(cuts)]
        costs = [size * block + last * (number == n_stages - 1) for number, size in enumerate(sizes)]
        return max(costs), sum(cost * cost for cost in costs)

    # The other stages share evenly what the last does not take.
    def cuts_with(last_layers: int) -> list[int]:
        rest, others = config.n_layers - last_layers, n_stages - 1
        sizes = [rest // others + (number < rest % others) for number in range(others)] if others else []
        return [0, *itertools.accumulate([*sizes, last_layers])]

    most = config.n_layers - n_stages + 1
    candidates = range(1, most + 1) if n_stages > 1 else [config.n_layers]
    cuts = min((cuts_with(n) for n in candidates), key=slowest)
    return [range(a, b) for a, b in itertools.pairwise(cuts)]


def keep_layers(model: Transformer, layers: range) -> None:
    """Leave of `model` what a stage with these layers has: at either end of the model also what belongs to that end."""
    first, last = layers.start == 0, layers.stop == model.config.n_layers
    for name in list(model.blocks):
        if int(name) not in layers:
            del model.blocks[name]
    if not first:
        model.embed = None
        model.project_in, model.embedding_norm = nn.Identity(), nn.Identity()
        if hasattr(model.position, "table"):
            del model.position.table
    if not last:
        model.head = None
        model.norm, model.project_out, model.multi_token = nn.Identity(), nn.Identity(), nn.ModuleList()


def named_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter of a model, or of this rank's stages, by its name in the whole model. A tied head is the
    embedding, wherever it stands; only where one rank has both halves the head keeps its own name."""
    transformers = [module for module in model.modules() if isinstance(module, Transformer)]
    embeds = any(each.embed is not None for each in transformers)
    for transformer in transformers:
        tied = getattr(transformer.config.head, "tied", False) and not embeds
        for name, parameter in transformer.named_parameters():
            yield "embed.weight" if tied and name == "head.weight" else name, parameter


class Stage(nn.Module):
    """Some consecutive layers, as torch's schedules call them: tensors in, tensors out. The last one returns its share
    of the loss for each micro-batch."""

    def __init__(self, model: Transformer, loss: Loss, attending: Callable[[Batch], Attend]) -> None:
        super().__init__()
        self.model, self.loss, self.attending = model, loss, attending
        self.divisor: Tensor | float = 1.0
        """What the summed loss of a micro-batch is divided by in this step."""
        self.scale: Callable[[Tensor], Tensor] = as_it_is
        self.parts: dict[str, Tensor] = {}
        """Of this step's loss so far, their sum under the empty name."""

    def forward(self, tokens: Tensor, auxiliary: Tensor | None = None, **fields: Tensor) -> Any:
        self.model.earlier_auxiliary, self.model.keys = auxiliary, fields.pop("keys", None)
        result = self._forward(Batch(tokens=tokens, **fields))
        self.model.earlier_auxiliary = self.model.keys = None
        return result

    def _forward(self, batch: Batch) -> Any:
        if self.model.head is None:
            attend = self.attending(batch)
            hidden, asked = self.model.hidden_and_auxiliary(batch.tokens, batch.position, attend)
            return hidden if asked is None else (hidden, asked)
        summed, _, parts = self.loss(self.model, batch)
        for name, part in {"": summed, **parts}.items():
            self.parts[name] = self.parts.get(name, 0) + part.detach()
        return self.scale(summed / self.divisor)

    def hidden(self, tokens: Tensor, position: Tensor | None, attend: Attend | None, tap: Tap | None) -> Tensor:
        return self.model.hidden(tokens, position, attend, tap)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden)


def _widened(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def as_it_is(loss: Tensor) -> Tensor:
    return loss


class Pipeline(nn.Module):
    """A model of which each rank has some stages. Outside of training it can be asked for `hidden` and `logits` like a
    whole one, by all ranks together."""

    def __init__(self, stages: dict[int, Stage], world: World) -> None:
        """
        Args:
            stages: of this rank, by number.
        """
        super().__init__()
        self.stages = nn.ModuleDict({str(number): stage for number, stage in stages.items()})
        self._world = world
        self._schedules: dict[tuple[int, tuple[int, int]], Any] = {}
        any_stage = next(iter(stages.values()))
        self.config: ModelConfig = any_stage.model.config
        self.logprobs = None

    @property
    def _n_stages(self) -> int:
        return self._world.sizes["pipeline"] * stages_a_rank(self._world.settings.schedule)

    def _owner(self, stage: int) -> int:
        return rank_of_stage(self._world.settings.schedule, stage, self._world.sizes["pipeline"])

    def _own(self) -> list[tuple[int, Stage]]:
        return [(int(number), stage) for number, stage in self.stages.items()]  # type: ignore[misc]

    @staticmethod
    def fitting(rows: int, micro_batches: int) -> int:
        """The fewest micro-batches, not below `micro_batches`, into which the rows can be cut evenly."""
        return next(n for n in range(min(micro_batches, rows), rows + 1) if rows % n == 0)

    def gradients(
        self, batch: Batch, keys: Tensor | None, micro_batches: int, divisor: Tensor, scale: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Forward and backward over this rank's rows. Gradients are left on the parameters; on the rank of the last
        stage returns the sums of the loss's parts, and of all of it under the empty name.

        Raises:
            ValueError: rows that cannot be cut into so many equal micro-batches.
        """
        rows = len(batch.tokens)
        if rows % micro_batches:
            raise ValueError(f"{rows} rows cannot be cut into {micro_batches} equal micro-batches")
        shape = (rows // micro_batches, batch.tokens.shape[1])
        if (micro_batches, shape) not in self._schedules:
            self._schedules[micro_batches, shape] = self._make_schedule(micro_batches, shape)
        schedule = self._schedules[micro_batches, shape]
        own = self._own()
        for _, stage in own:
            stage.divisor, stage.scale, stage.parts = divisor, scale, {}
        fields = {name: column for name, column in vars(batch).items() if name != "tokens"}
        if keys is not None:
            fields["keys"] = keys
        first, last = own[0][0] == 0, any(number == self._n_stages - 1 for number, _ in own)
        tokens = (batch.tokens,) if first else ()
        target = batch.targets if last else None  # unread: the stage itself has them
        schedule.step(*tokens, target=target, losses=[] if last else None, return_outputs=False, **fields)
        self._join_tied()
        return next((stage.parts for number, stage in own if number == self._n_stages - 1), {})

    def _make_schedule(self, micro_batches: int, shape: tuple[int, int]) -> Any:
        """For micro-batches of this shape (rows, T)."""
        world, n = self._world, self._n_stages

        def between() -> tuple[Tensor, ...]:
            """What goes from stage to stage, told beforehand: else torch sends a batch through to find out."""
            hidden = torch.empty((*shape, self.config.d_model), dtype=world.dtype, device="meta", requires_grad=True)
            if not isinstance(self.config.feedforward, Experts):
                return (hidden,)
            return hidden, torch.empty(shape, dtype=_widened(world.dtype), device="meta", requires_grad=True)

        def make(number: int, stage: Stage) -> PipelineStage:
            first, last = number == 0, number == n - 1
            tokens = torch.empty(shape, dtype=torch.int64, device="meta")
            share = torch.empty((), dtype=_widened(world.dtype), device="meta", requires_grad=True)
            come, go = (tokens,) if first else between(), (share,) if last else between()
            return PipelineStage(
                stage,
                number,
                n,
                world.device,
                input_args=come,
                output_args=go,
                input_grads=(None,) if first else come,
                output_grads=(None,) if last else go,
                group=world.group("pipeline"),
            )

        stages: list[Any] = [make(number, stage) for number, stage in self._own()]
        options: dict[str, Any] = {"loss_fn": lambda loss, target: loss, "scale_grads": False}
        match world.settings.schedule:
            case GPipe():
                return ScheduleGPipe(stages[0], micro_batches, **options)
            case OneForwardOneBackward():
                return Schedule1F1B(stages[0], micro_batches, **options)
            case Interleaved():
                return ScheduleInterleaved1F1B(stages, micro_batches, **options)
            case ZeroBubble():
                return ScheduleZBVZeroBubble(stages, micro_batches, **options)

    @property
    def tied(self) -> list[tuple[int, nn.Parameter]]:
        """What is here of a matrix that is embedding and head: (number of the stage, the parameter)."""
        if not getattr(self.config.head, "tied", False) or self._n_stages == 1:
            return []
        last = self._n_stages - 1
        return [
            (number, parameter)
            for number, stage in self._own()
            for name, parameter in stage.model.named_parameters()
            if (number, name) in ((0, "embed.weight"), (last, "head.weight"))
        ]

    def _join_tied(self) -> None:
        """Add up the gradients of the two halves of a tied matrix, which learn as one."""
        halves = self.tied
        if len(halves) == 2:
            (_, first), (_, last) = halves
            total = first.grad + last.grad  # type: ignore[operator]
            first.grad, last.grad = total, total.clone()
        elif halves:
            ((number, half),) = halves
            gradient = half.grad
            assert isinstance(gradient, DTensor)
            own, group = gradient.to_local(), self._world.group("pipeline")
            other = torch.empty_like(own)
            peer = self._owner(self._n_stages - 1 if number == 0 else 0)
            exchange = [
                dist.P2POp(dist.isend, own.contiguous(), group=group, group_peer=peer),
                dist.P2POp(dist.irecv, other, group=group, group_peer=peer),
            ]
            for work in dist.batch_isend_irecv(exchange):
                work.wait()
            own.add_(other)

    # Like a whole model, outside of training

    def hidden(
        self, tokens: Tensor, position: Tensor | None = None, attend: Attend | None = None, tap: Tap | None = None
    ) -> Tensor:
        """`Transformer.hidden`, through all stages; on ranks without the last stage a tensor of that shape."""
        world, group = self._world, self._world.group("pipeline")
        here, own = world.coordinate("pipeline"), dict(self._own())
        x, n = tokens, self._n_stages
        for number in range(n):
            if self._owner(number) == here:
                if number and self._owner(number - 1) != here:
                    x = torch.empty((*tokens.shape, self.config.d_model), dtype=world.dtype, device=tokens.device)
                    dist.recv(x, group=group, group_src=self._owner(number - 1))
                x = own[number].hidden(x, position, attend, tap)
                if number + 1 < n and self._owner(number + 1) != here:
                    dist.send(x.contiguous(), group=group, group_dst=self._owner(number + 1))
        return x if x.is_floating_point() else x.new_empty((*x.shape, self.config.d_model), dtype=world.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """`Transformer.logits`, which the last stage gives to all."""
        group, last = self._world.group("pipeline"), self._n_stages - 1
        owner = self._owner(last)
        if self._world.coordinate("pipeline") == owner:
            scores = dict(self._own())[last].logits(hidden).contiguous()
        else:
            width = self.config.vocab_size or 0
            scores = torch.empty((*hidden.shape[:-1], width), dtype=hidden.dtype, device=hidden.device)
        dist.broadcast(scores, group=group, group_src=owner)
        return scores
