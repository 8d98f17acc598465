"""Rehearse: what the ranks of a layout would hold and send, and what does not divide, without GPUs and without ranks.

For each kind of rank the real `parallel.apply` is called in a process group that only pretends to have others, on
tensors that have shapes but no values; and the real `fit` takes steps, of which everything is recorded.
"""

import functools
import itertools
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

# torch's own group for its tests: it answers every collective at once, with whatever stands in the tensor.
from torch.testing._internal.distributed.fake_pg import FakeStore

from groundup.batch import Batch
from groundup.machine import available_cores
from groundup.model.feedforward import MixtureOfExperts, StackedExperts, Tap
from groundup.model.settings import Experts, ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.optimizer import make_optimizer
from groundup.optim.precision import optimizer_matmul_dtype, weight_dtype
from groundup.optim.settings import Bfloat16, ExponentialAverage
from groundup.parallel.apply import apply, own_stages, ring_attending, stage_layers
from groundup.parallel.experts import _send
from groundup.parallel.settings import GPipe, Interleaved, OneForwardOneBackward, ParallelSettings, ZeroBubble
from groundup.parallel.shard import sharded
from groundup.parallel.stages import Pipeline, layers_of_stages, named_weights, stages_a_rank
from groundup.parallel.world import World
from groundup.pretrain.settings import MultiToken, PretrainSettings
from groundup.pretrain.setup import make_loss
from groundup.tools.recording import Collective, Recorder, own
from groundup.train.fit import Loss, accumulate, fit
from groundup.train.ranks import ManyRanks

STATES = ("weights", "optimizer state", "average", "gradients")
"""What stays between steps."""


@dataclass(frozen=True)
class RankKind:
    """What one kind of rank holds, and sends in a step."""

    name: str
    rank: int
    """The first such."""
    layers: list[tuple[int, int]]
    """First and last layer of each of its stages, counted from 0."""
    parameters: int
    """Elements here."""
    kept_bytes: dict[str, int]
    """Between steps."""
    peak_bytes: dict[str, int]
    """When most is held."""
    largest_gathered: int
    """Elements of the largest block that is put together before it is used."""
    collectives: list[tuple[Collective, float, float]]
    """Each with how often a further micro-batch has it, and how often a step."""

    @property
    def total_bytes(self) -> int:
        return sum(self.peak_bytes.values())


@dataclass(frozen=True)
class Rehearsal:
    """A step of a layout, as its ranks would do it."""

    sizes: dict[str, int]
    """Of each axis."""
    parameters: int
    """Of the whole model."""
    precision: str
    micro_batches: int
    """Of each rank in a step."""
    micro_batch_rows: int
    bubble: float
    """Share of a step in which ranks of the pipeline wait for each other."""
    kinds: list[RankKind]
    remarks: list[str]
    """What does not divide, what comes of it, and the nearest that divides."""


def rehearse(model: ModelConfig, training: PretrainSettings, parallel: ParallelSettings, ranks: int) -> Rehearsal:
    """Take a step of this training as every kind of rank.

    Args:
        model: with its vocabulary.
        training: bfloat16, if no precision is chosen.

    Raises:
        SettingsError: a layout that cannot be.
    """
    precision = training.precision or Bfloat16()
    training = training.model_copy(update={"precision": precision, "compile": False})
    sizes, stages = parallel.sizes(ranks), parallel.pipeline
    global_rows = training.batch_tokens // model.context_length
    rank_rows = -(-global_rows // (sizes["replicate"] * sizes["shard"]))
    micro_batches = -(-rank_rows // min(training.micro_batch_rows, rank_rows))
    rows = -(-rank_rows // micro_batches)
    numbers = [place * (ranks // stages) for place in sorted({0, min(1, stages - 1), stages - 1})]
    one = functools.partial(_rehearse_rank, model, training, parallel, ranks, (micro_batches, rows))
    # Each in a process of its own, as torch remembers the groups of an earlier one.
    with ProcessPoolExecutor(min(len(numbers), available_cores()), get_context("spawn"), max_tasks_per_child=1) as pool:
        kinds = [*pool.map(one, numbers)]
    with torch.device("meta"):
        whole = sum(weight.numel() for weight in _make(model, training).parameters())
    return Rehearsal(
        sizes=sizes,
        parameters=whole,
        precision=precision.kind,
        micro_batches=micro_batches,
        micro_batch_rows=rows,
        bubble=bubble(parallel, micro_batches),
        kinds=kinds,
        remarks=remarks(model, training, parallel, sizes),
    )


def _make(model: ModelConfig, training: PretrainSettings) -> Transformer:
    with torch.device("meta"):
        made = Transformer(model)
        if isinstance(training.loss, MultiToken):
            made.add_multi_token(training.loss.extra_tokens)
    return made


@contextmanager
def _pretended(rank: int, ranks: int) -> Iterator[None]:
    """Inside, this process is number `rank` of a group whose other ranks do not exist."""
    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        dist.destroy_process_group()


def _rehearse_rank(
    model: ModelConfig,
    training: PretrainSettings,
    parallel: ParallelSettings,
    ranks: int,
    micro_batches: tuple[int, int],
    rank: int,
) -> RankKind:
    """
    Args:
        micro_batches: how many in a step, and how many rows each has.
    """
    assert training.precision is not None, "it was chosen"
    count, rows = micro_batches
    with _pretended(rank, ranks):
        world = World.of(parallel, ranks, torch.device("cpu"), weight_dtype(training.precision))
        length, context = model.context_length, world.sizes["context"]
        attending: Any = (lambda batch: _kernel) if context == 1 else ring_attending(world, length)
        loss = make_loss(training, attending)
        made = apply(lambda: _make(model, training), world, loss, attending, training.recompute)
        layers = stage_layers(_make(model, training), world)
        numbers = own_stages(world) if isinstance(made, Pipeline) else [0]
        with FakeTensorMode(allow_non_fake_inputs=True):
            _spread_evenly(made)
            ranks_here = _Ranks(world, made, ["", *_loss_parts(model, training)])
            stepper = Stepper(made.to_empty(device="cpu").train(), training, loss, ranks_here)
            few, more = _two_counts(parallel, count)
            recorder = _Pretending(world.sizes)
            with recorder.watching():
                stepper.book(recorder)
                runs = []
                for n in (few, more):
                    stepper.step(recorder, n, torch.zeros(n * rows, length // context, dtype=torch.long))
                    runs.append((recorder.collectives, recorder.peak))
                kept = {what: size for what, size in recorder.alive().items() if what in STATES}
    (less, low), (most, high) = runs
    each = {key: (most[key] - less[key]) / (more - few) for key in less | most}
    place = rank * parallel.pipeline // ranks
    return RankKind(
        name=_name(place, parallel.pipeline),
        rank=rank,
        layers=[(layers[number].start, layers[number].stop - 1) for number in numbers],
        parameters=sum(own(weight).numel() for weight in stepper.weights.values()),
        kept_bytes=kept,
        peak_bytes=_peak(low, high, more - few, count - few, isinstance(parallel.schedule, GPipe)),
        largest_gathered=stepper.largest_block,
        collectives=[(key, each[key], less[key] + (count - few) * each[key]) for key in sorted(each)],
    )


def _name(place: int, stages: int) -> str:
    if stages == 1:
        return "every rank"
    return {0: "first of the pipeline", stages - 1: "last of the pipeline"}.get(place, "middle of the pipeline")


def _two_counts(parallel: ParallelSettings, micro_batches: int) -> tuple[int, int]:
    """Numbers of micro-batches to take steps of: of a pipeline as many as it needs to be full, and more. As every one is
    like the others, what a step of any number sends lies on the line through both."""
    stages = parallel.pipeline
    if stages > 1 and stages_a_rank(parallel.schedule) > 1:
        return stages, 2 * stages
    few = min(stages, micro_batches)
    return few, few + 1


def _peak(low: Counter[str], high: Counter[str], between: int, beyond: int, keeps_all: bool) -> dict[str, int]:
    """Bytes at the height of a step with `beyond` micro-batches more than that of `low`; `high` has `between` more."""
    if not beyond:
        return dict(low)
    further = max(0, beyond - between) / between if keeps_all else 0.0
    return {what: high[what] + round(further * (high[what] - low[what])) for what in high}


class Stepper:
    """A model of many ranks with its optimizer, and steps of it that are recorded."""

    def __init__(
        self, model: Transformer | Pipeline, training: PretrainSettings, loss: Loss, ranks: ManyRanks
    ) -> None:
        assert training.precision is not None, "it was chosen"
        self.weights = dict(named_weights(model))
        self.largest_block = 0
        """Elements of the largest block that is gathered at once."""
        self._model, self._loss, self._training, self._ranks = model, loss, training, ranks
        matmuls = optimizer_matmul_dtype(training.precision)
        self._optimizer = make_optimizer(self.weights.items(), training.optimizer, matmuls)
        self._averages: list[Tensor] = []
        if isinstance(training.average, ExponentialAverage):
            self._averages = [torch.zeros_like(weight) for weight in self.weights.values()]

    def book(self, recorder: Recorder) -> None:
        """Let `recorder` know what is what: weights, optimizer state, and gradients as they come."""
        recorder.book("weights", self.weights.values())
        recorder.book("optimizer state", (each for state in self._optimizer.state.values() for each in state.values()))
        recorder.book("average", self._averages)
        for module in sharded(self._model):
            module.unshard()
            inner = {weight for other in sharded(module) if other is not module for weight in other.parameters()}
            block = [weight for weight in module.parameters() if weight not in inner]
            self.largest_block = max(self.largest_block, sum(own(weight).numel() for weight in block))
            for weight in block:
                weight.register_post_accumulate_grad_hook(lambda it: recorder.book("gradients", [it.grad]))
            module.reshard()

    def step(self, recorder: Recorder, micro_batches: int, ids: Tensor) -> None:
        """One step on `ids` (rows of all micro-batches, T), of which `recorder` counts all."""
        batch = Batch(ids, ids, torch.ones(ids.shape), ids, ids)
        recorder.start()
        steps = fit(
            self._optimizer,
            lambda finished: 1.0,
            itertools.repeat(batch),
            self._gradients(micro_batches, recorder),
            steps=1,
            clip=self._training.clip,
            clip_value=self._training.clip_value,
            accept=lambda step: self._ranks.agree(True),
            ranks=self._ranks,
        )
        for _ in steps:
            pass

    def _gradients(self, micro_batches: int, recorder: Recorder) -> Any:
        def book_gradients(*_: Any) -> None:
            recorder.book("gradients", (weight.grad for weight in self.weights.values() if weight.grad is not None))

        self._ranks.after_backward = book_gradients  # type: ignore[method-assign]
        if not isinstance(self._model, Pipeline):
            return accumulate(self._model, self._loss, micro_batches, ranks=self._ranks)
        pipeline = self._model

        def gradients(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            divisor = self._ranks.total_weight(batch)
            shares = pipeline.gradients(batch, None, micro_batches, divisor, lambda loss: loss)
            book_gradients()
            whole = self._ranks.add_up({name: share / divisor for name, share in shares.items()})
            return whole.pop(""), whole

        return gradients


# What only pretends


class _Ranks(ManyRanks):
    """Ranks of which only this one is there: what all would say is known beforehand."""

    def __init__(self, world: World, model: nn.Module, names: list[str]) -> None:
        super().__init__(world, model)
        self._parts = names

    def gather(self, value: Any) -> list[Any]:
        return [self._parts]


class _Pretending(Recorder):
    """A recorder of tensors without values, from which a number is asked nevertheless: a vote is a yes, and no check of
    ids finds a wrong one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype != torch.bool
        return super().__torch_dispatch__(func, types, args, kwargs)


def _loss_parts(model: ModelConfig, training: PretrainSettings) -> list[str]:
    loss = training.loss
    further = [f"token_{2 + n}" for n in range(loss.extra_tokens)] if isinstance(loss, MultiToken) else []
    z_loss = ["z_loss"] if not isinstance(loss, MultiToken) and loss.z_loss else []
    return ["next_token", *z_loss, *further, *(["auxiliary"] if isinstance(model.feedforward, Experts) else [])]


class _Kernel(torch.autograd.Function):
    """Keeps what a fused kernel keeps: queries, keys, values, what was read, and a number for each query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        read = q.new_empty((*q.shape[:-1], v.shape[-1]))
        ctx.save_for_backward(q, k, v, read, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return read

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _kernel(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """Attends as a fused kernel of a GPU would, as far as memory goes."""
    read: Tensor = _Kernel.apply(q, k, v)  # type: ignore[no-untyped-call]
    return read


def _spread_evenly(model: nn.Module) -> None:
    """Let every expert get as many tokens as any other: where they go is known only from values."""
    for mixture in model.modules():
        if isinstance(mixture, MixtureOfExperts):
            experts = mixture.experts
            exchange = getattr(experts.forward, "args", None)  # of `spread_experts`: answer, number, group
            experts.forward = functools.partial(_answer_evenly, experts, exchange and exchange[1:])  # type: ignore


def _answer_evenly(experts: StackedExperts, spread: Any, rows: Tensor, expert: Tensor, tap: Tap) -> Tensor:
    stacks: dict[str, Any] = dict(experts.named_children())
    sizes: list[int] = []
    if spread:
        n_experts, group = spread
        counts = torch.zeros(n_experts, dtype=torch.long, device=rows.device)
        dist.all_to_all_single(torch.empty_like(counts), counts, group=group)
        sizes = [len(share) for share in rows.tensor_split(group.size())]
        rows = _send(rows, sizes, sizes, group)
    maps = zip(*(stack.each() for stack in stacks.values()), strict=True)
    shares = rows.tensor_split(len(stacks["up"].weight))
    answers = torch.cat(
        [experts.compute(share, tap, **dict(zip(stacks, each, strict=True))) for share, each in zip(shares, maps)]
    )
    return _send(answers, sizes, sizes, group) if spread else answers


# What waits, and what does not divide


SLOTS = {"FORWARD": 1.0, "FULL_BACKWARD": 2.0, "BACKWARD_INPUT": 1.0, "BACKWARD_WEIGHT": 1.0}
"""Of torch's actions, how long each takes."""


def bubble(parallel: ParallelSettings, micro_batches: int) -> float:
    """Share of a step in which the ranks of a pipeline wait for each other, where a backward pass takes twice as long
    as a forward one.

    >>> bubble(ParallelSettings(pipeline=4), 8)  # (p − 1) / (m + p − 1)
    0.2727272727272727
    """
    stages = parallel.pipeline
    each = stages_a_rank(parallel.schedule)
    if each == 1:
        return (stages - 1) / (micro_batches + stages - 1)
    name = "ZBVZeroBubble" if isinstance(parallel.schedule, ZeroBubble) else "Interleaved1F1B"
    planned = get_schedule_ops(name, stages, micro_batches, each)
    orders = [[it for it in rank if it is not None and it.computation_type.name in SLOTS] for rank in planned]
    done: dict[tuple[int, str, int], float] = {}
    clocks, busy = [0.0] * len(orders), 0.0
    while any(orders):
        for rank, order in enumerate(orders):
            while order and (ready := _ready(order[0], done, stages * each)) is not None:
                action = order.pop(0)
                slots = SLOTS[action.computation_type.name]
                clocks[rank] = max(clocks[rank], ready) + slots
                busy += slots
                done[_key(action)] = clocks[rank]
    return 1 - busy / (max(clocks) * len(orders))


def _key(action: Any) -> tuple[int, str, int]:
    """Stage, forward, backward or weights, micro-batch."""
    what = {"FORWARD": "forward", "BACKWARD_WEIGHT": "weights"}.get(action.computation_type.name, "backward")
    return action.stage_index, what, action.microbatch_index


def _ready(action: Any, done: dict[tuple[int, str, int], float], n_stages: int) -> float | None:
    """When all is done that this action needs; None if something is not."""
    stage, what, number = _key(action)
    needs = [(stage, "forward", number)] if what != "forward" else []
    if what == "weights":
        needs = [(stage, "backward", number)]
    elif what == "forward" and stage:
        needs.append((stage - 1, "forward", number))
    elif what == "backward" and stage + 1 < n_stages:
        needs.append((stage + 1, "backward", number))
    if any(need not in done for need in needs):
        return None
    return max((done[need] for need in needs), default=0.0)


def remarks(
    model: ModelConfig, training: PretrainSettings, parallel: ParallelSettings, sizes: dict[str, int]
) -> list[str]:
    """What does not divide, what then happens, and the nearest that divides."""
    return []
