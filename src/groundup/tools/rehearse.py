"""Rehearse: what the ranks of a layout would hold and send, and what does not divide, without GPUs and without ranks.

For each kind of rank the real `parallel.apply` is called in a process group that only pretends to have others, on
tensors that have shapes but no values; and the real `fit` takes steps, of which everything is recorded.
"""

import functools
import itertools
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

# torch's own group for its tests: it answers every collective at once, with whatever stands in the tensor.
from torch.testing._internal.distributed.fake_pg import FakeStore

from groundup.batch import Batch
from groundup.errors import SettingsError
from groundup.machine import available_cores
from groundup.model.feedforward import MixtureOfExperts, StackedExperts, Tap
from groundup.model.settings import Experts, ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.precision import weight_dtype
from groundup.optim.settings import Bfloat16
from groundup.optim.state import own
from groundup.parallel.apply import apply, own_stages, ring_attending, stage_layers
from groundup.parallel.experts import _send
from groundup.parallel.settings import GPipe, ParallelSettings, ZeroBubble, in_words
from groundup.parallel.shard import sharded
from groundup.parallel.stages import Pipeline, stages_a_rank
from groundup.parallel.world import World
from groundup.plan.hardware import gpus
from groundup.pretrain.ranks import ready_for_ranks
from groundup.pretrain.settings import MultiToken, PretrainSettings
from groundup.pretrain.setup import make_loss
from groundup.recipe import Recipe, load_recipe
from groundup.tokenizer.make import load_existing
from groundup.tokenizer.settings import Existing
from groundup.tools.recording import Collective, Recorder
from groundup.train.assemble import Assembled, assemble_applied
from groundup.train.fit import fit
from groundup.words import byte_size, plural

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
    training = training.model_copy(update={"precision": training.precision or Bfloat16(), "compile": False})
    training = ready_for_ranks(model, training, parallel, ranks)
    sizes, stages = parallel.sizes(ranks), parallel.pipeline
    global_rows = training.batch_tokens // model.context_length
    rank_rows = -(-global_rows // (sizes["replicate"] * sizes["shard"]))
    micro_batches = -(-rank_rows // min(training.micro_batch_rows, rank_rows))
    if stages > 1:
        micro_batches = Pipeline.fitting(rank_rows, micro_batches)
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
        precision=training.precision.kind if training.precision else "",
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
    few, more = _two_counts(parallel, count)
    with _pretended(rank, ranks):
        world = World.of(parallel, ranks, torch.device("cpu"), weight_dtype(training.precision), rows)
        layers = stage_layers(_make(model, training), world)
        training = training.model_copy(update={"micro_batch_rows": rows})
        attending: Any = lambda batch: _kernel  # noqa: E731
        if world.sizes["context"] > 1:
            attending = ring_attending(world, model.context_length)
        loss = make_loss(training, attending)
        part = apply(lambda: _make(model, training), world, loss, attending, training.recompute)
        _spread_evenly(part)
        with FakeTensorMode(allow_non_fake_inputs=True):
            assembled = assemble_applied(part, world, training, loss, fill=lambda model: None)
            names = ["", *_loss_parts(model, training)]
            assembled.ranks.gather = lambda value: [names]  # type: ignore[method-assign]  # what all would say
            stepper = Stepper(assembled, training)
            recorder = _Pretending(world.sizes)
            with recorder.watching():
                stepper.book(recorder)
                runs = []
                for n in (few, more):
                    ids = torch.zeros(n * rows, model.context_length // world.sizes["context"], dtype=torch.long)
                    stepper.step(recorder, ids)
                    runs.append(
                        (Counter({it: n for it, n in recorder.collectives.items() if not _is_trial(it)}), recorder.peak)
                    )
                kept = {what: size for what, size in recorder.alive().items() if what in STATES}
        numbers = own_stages(world) if parallel.pipeline > 1 else [0]
    (less, low), (most, high) = runs
    each = {key: (most[key] - less[key]) / (more - few) for key in less | most}
    return RankKind(
        name=_name(rank * parallel.pipeline // ranks, parallel.pipeline),
        rank=rank,
        layers=[(layers[number].start, layers[number].stop - 1) for number in numbers],
        parameters=sum(own(weight).numel() for weight in stepper.weights),
        kept_bytes=kept,
        peak_bytes=_peak(low, high, more - few, count - few, isinstance(parallel.schedule, GPipe)),
        largest_gathered=stepper.largest_block,
        collectives=[(key, each[key], less[key] + (count - few) * each[key]) for key in sorted(each)],
    )


def _is_trial(collective: Collective) -> bool:
    """Whether it is torch's, which tries each connection of a pipeline before the first step of a run."""
    return (collective.kind, collective.dtype, collective.elements) == ("send", "int32", 1)


def _name(place: int, stages: int) -> str:
    if stages == 1:
        return "every rank"
    words = {0: "the first of the pipeline", stages - 1: "the last of the pipeline"}
    return words.get(place, "one in the middle of the pipeline")


def _two_counts(parallel: ParallelSettings, micro_batches: int) -> tuple[int, int]:
    """Numbers of micro-batches to take steps of: of a pipeline as many as fill it, and more. As every one is
    like the others, what a step of any number sends lies on the line through both."""
    stages = parallel.pipeline
    if stages > 1 and stages_a_rank(parallel.schedule) > 1:
        return stages, 2 * stages
    # Gradients that wait for the last micro-batch are a sum only from the second on.
    few = min(max(stages, 2 if parallel.sums_once else 1), micro_batches)
    return few, few + 1


def _peak(low: Counter[str], high: Counter[str], between: int, beyond: int, keeps_all: bool) -> dict[str, int]:
    """Bytes at the height of a step with `beyond` micro-batches more than that of `low`; `high` has `between` more."""
    if not beyond:
        return dict(low)
    further = max(0, beyond - between) / between if keeps_all else 0.0
    return {what: high[what] + round(further * (high[what] - low[what])) for what in high}


class Stepper:
    """Steps of a model of many ranks, recorded."""

    def __init__(self, assembled: Assembled, training: PretrainSettings) -> None:
        self._assembled, self._training = assembled, training
        self.weights: list[Tensor] = [*assembled.masters]
        self.largest_block = 0
        """Elements of the largest block that is gathered at once."""

    def book(self, recorder: Recorder) -> None:
        """Let `recorder` know what is what: weights, optimizer state, and gradients as they come."""
        recorder.book("weights", self.weights)
        for state in self._assembled.optimizer.state.values():
            for name, tensor in state.items():
                recorder.book("average" if name == "average" else "optimizer state", [tensor])
        modules: list[Any] = [*sharded(self._assembled.model)]
        for module in modules:
            module.unshard()
            nested: list[Any] = [other for other in sharded(module) if other is not module]
            inner = {weight for other in nested for weight in other.parameters()}
            block = [weight for weight in module.parameters() if weight not in inner]
            self.largest_block = max(self.largest_block, sum(own(weight).numel() for weight in block))
            for weight in block:
                weight.register_post_accumulate_grad_hook(lambda it: recorder.book("gradients", [it.grad]))
            module.reshard()

    def step(self, recorder: Recorder, ids: Tensor) -> None:
        """One step on `ids` (rows of all micro-batches, T), of which `recorder` counts all."""
        batch, ranks = Batch(ids, ids, torch.ones(ids.shape), ids, ids), self._assembled.ranks
        gradients = self._assembled.gradients(self._training)
        recorder.start()

        def gradients_booked(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            result = gradients(batch)
            recorder.book("gradients", (weight.grad for weight in self.weights if weight.grad is not None))
            return result

        for _ in fit(
            self._assembled.optimizer,
            lambda finished: 1.0,
            itertools.repeat(batch),
            gradients_booked,
            steps=1,
            clip=self._training.clip,
            clip_value=self._training.clip_value,
            scaler=self._assembled.scaler,
            accept=lambda step: ranks.agree(True),
            ranks=ranks,
        ):
            ranks.agree(True)  # that nobody was asked to stop


# What only pretends


@contextmanager
def _pretended(rank: int, ranks: int) -> Iterator[None]:
    """Inside, this process is number `rank` of a group whose other ranks do not exist, as are all groups made of it."""
    new_group = dist.new_group
    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    dist.new_group = lambda *args, **options: new_group(*args, **options | {"backend": None})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        dist.new_group = new_group
        dist.destroy_process_group()


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
        [
            experts.compute(share, tap, **dict(zip(stacks, each, strict=True)))
            for share, each in zip(shares, maps, strict=True)
        ]
    )
    return _send(answers, sizes, sizes, group) if spread else answers


def zero_terms(parameters: int, shard: int, zero: int) -> int:
    """Bytes of weights, gradients and Adam's state by the paper's terms: 2, 2 and 12 bytes each (Rajbhandari et al.
    2020, arXiv:1910.02054, figure 1). In this house they are 4 (masters), and 2 of what is gathered; 4; and 8.

    Args:
        parameters: that a rank holds of those that `shard` ranks share.

    >>> [round(zero_terms(7_500_000_000 // n, n, zero) / 1e9, 1) for n, zero in ((1, 3), (64, 1), (64, 2), (64, 3))]
    [120.0, 31.4, 16.6, 1.9]
    """
    whole = parameters * shard
    return 2 * (parameters if zero == 3 else whole) + 2 * (parameters if zero > 1 else whole) + 12 * parameters


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
    tensor, context, stages = sizes["tensor"], sizes["context"], sizes["pipeline"]
    rows, row_ranks = training.batch_tokens // model.context_length, sizes["replicate"] * sizes["shard"]
    uneven = "ranks differ by one, and each keeps the matrices whole"
    whole = "each rank keeps it whole, and the ranks add up its gradient"
    per_stage = stages * stages_a_rank(parallel.schedule)
    groups = model.kv_heads if model.kv_heads % tensor == 0 or model.kv_heads == model.n_heads else 0
    told = [
        _remark("model.n_heads", model.n_heads, tensor, f"over tensor = {tensor}", uneven),
        "" if groups else _remark("model.n_kv_heads", model.kv_heads, tensor, f"over tensor = {tensor}",
        "key and value matrices stay whole on each rank, which computes the heads that its queries read"),
        _remark("model.d_ff", model.feedforward_width, tensor, f"over tensor = {tensor}", uneven),
        _remark("vocab_size", model.vocab_size or 0, tensor, f"over tensor = {tensor}", f"embedding and head: {whole}"),
        _remark("model.context_length", model.context_length, tensor * context, f"over tensor × context = "
        f"{tensor * context}", "norms and dropout are computed by every tensor rank alike, and activations kept whole"),
        _remark("model.n_layers", model.n_layers, per_stage, f"over {per_stage} stages", "some have one more")
        if per_stage > 1 else "",
        _remark("rows of a batch", rows, row_ranks, f"over replicate × shard = {row_ranks}",
        "some rows are read twice, the second time with no weight"),
    ]  # fmt: skip
    return [remark for remark in told if remark]


def _remark(name: str, count: int, ranks: int, over: str, then: str) -> str:
    """
    >>> _remark("model.n_heads", 6, 4, "over tensor = 4", "each has one or two")
    'model.n_heads = 6 does not divide over tensor = 4: each has one or two; nearest that does: 4, 8'
    """
    if count % ranks == 0:
        return ""
    below = count // ranks * ranks
    nearest = ", ".join(f"{number:,}" for number in (below, below + ranks) if number)
    return f"{name} = {count:,} does not divide {over}: {then}; nearest that does: {nearest}"


def read(path: Path, overrides: Iterable[str], gpu: str) -> tuple[Recipe, ModelConfig, float]:
    """A recipe, its model with the vocabulary, and the bytes of memory of such a GPU.

    Raises:
        SettingsError: a GPU that is not known.
    """
    known = gpus()
    if gpu not in known:
        raise SettingsError(f"--gpu {gpu} is not known: it should be one of {', '.join(known)}")
    recipe, beside = load_recipe(path, overrides)
    tokenizer = recipe.tokenizer
    size = load_existing(tokenizer, beside).vocab_size if isinstance(tokenizer, Existing) else tokenizer.vocab_size
    return recipe, recipe.model.with_vocabulary(size), known[gpu]["memory"]


# In words


def table_of(rehearsal: Rehearsal) -> dict[str, Any]:
    """As JSON values."""
    kinds = []
    for kind in rehearsal.kinds:
        exchanges = [
            asdict(each) | {"a_micro_batch": often, "a_step": step, "moved_bytes_a_step": each.moved_bytes * step}
            for each, often, step in kind.collectives
        ]
        kinds.append({**asdict(kind), "total_bytes": kind.total_bytes, "collectives": exchanges})
    return {**asdict(rehearsal), "kinds": kinds}


def summary_rows(rehearsal: Rehearsal) -> list[tuple[str, str]]:
    """A fact a row."""
    facts = [
        ("layout", in_words(rehearsal.sizes, "one rank")),
        ("parameters", f"{rehearsal.parameters:,}"),
        ("precision", rehearsal.precision),
        ("micro-batches", f"{rehearsal.micro_batches:,} × {plural(rehearsal.micro_batch_rows, 'row')}"),
    ]  # fmt: skip
    if rehearsal.sizes["pipeline"] > 1:
        facts.append(("bubble", f"{rehearsal.bubble:.1%} of a step the pipeline's ranks wait for each other"))
    return facts


def memory_rows(rehearsal: Rehearsal, available: float) -> list[tuple[str, ...]]:
    """A line for each thing that is held when most is held, a column for each kind of rank."""
    kinds = rehearsal.kinds
    whats = dict.fromkeys(itertools.chain.from_iterable(kind.peak_bytes for kind in kinds))
    named = {"weights": "weights, in float32"}

    def row(name: str, values: Iterable[str]) -> tuple[str, ...]:
        return (name, *values)

    return [
        row("bytes at the height of a step", (kind.name for kind in kinds)),
        row("layers", (", ".join(f"{first}–{last}" for first, last in kind.layers) for kind in kinds)),
        row("parameters here", (f"{kind.parameters:,}" for kind in kinds)),
        *(
            row(named.get(what, what), (byte_size(kind.peak_bytes.get(what, 0)) for kind in kinds))
            for what in sorted(whats)
        ),
        row("together", (byte_size(kind.total_bytes) for kind in kinds)),
        row(f"of {byte_size(available)}", (f"{kind.total_bytes / available:.0%}" for kind in kinds)),
        row("between steps", (byte_size(sum(kind.kept_bytes.values())) for kind in kinds)),
        row("largest block gathered", (f"{kind.largest_gathered:,} parameters" for kind in kinds)),
    ]


def collective_rows(kind: RankKind) -> list[tuple[str, ...]]:
    """What a kind of rank exchanges, a line for each axis, kind and size; those of a few numbers together."""
    header = ("along", "ranks", "what", "elements", "a micro-batch", "a step", "sent a step")
    rows, few = [], Counter[tuple[str, str]]()
    for each, often, step in kind.collectives:
        if each.elements < 1024:
            few[each.axis, str(each.ranks)] += round(step)
            continue
        sent = byte_size(each.moved_bytes * step)
        size = f"{each.elements:,} {each.dtype}"
        rows.append((each.axis, str(each.ranks), each.kind, size, f"{often:g}", f"{step:g}", sent))
    rows += [(*where, "of a few numbers", "", "", f"{step:g}", "") for where, step in few.items()]
    return [header, *rows]


def advice(rehearsal: Rehearsal, training: PretrainSettings, available: float) -> str:
    """What to change where it does not fit."""
    kind = max(rehearsal.kinds, key=lambda kind: kind.total_bytes)
    if kind.total_bytes <= available:
        return ""
    held, sizes = kind.peak_bytes, rehearsal.sizes
    states = sum(held.get(what, 0) for what in STATES)
    changes = []
    if states < held["activations and buffers"]:
        if training.recompute != "full":
            changes.append("pretrain.recompute=full")
        if rehearsal.micro_batch_rows > 1:
            changes.append(f"pretrain.micro_batch_rows={rehearsal.micro_batch_rows // 2}")
    elif sizes["replicate"] > 1:
        changes.append(f"parallel.shard={sizes['replicate'] * sizes['shard']} (instead of replicate)")
    changes.append(f"parallel.tensor={2 * sizes['tensor']}")
    return (
        f"{kind.name.capitalize()} needs {byte_size(kind.total_bytes)} and has {byte_size(available)}: try "
        f"{', then '.join(changes)}"
    )
