"""Verify: whether many ranks train a recipe as one process does, tried out small with processes of this machine.

The recipe is shrunk and trained in float64, where adding up in another order changes the sixteenth digit, and a sum
that is missing the first: once with its own optimizer, and once with plain gradient descent, as a gradient that is
wrong by a factor hides behind Adam's division.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import multiprocessing
import re
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from queue import Empty
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from groundup.batch import Batch
from groundup.errors import GroundupError, SettingsError
from groundup.files import Progress, no_progress
from groundup.model.draw import Ranges, drawn, key, local_part
from groundup.optim.settings import ExponentialAverage, Float32
from groundup.parallel.ring import cut_positions, own_positions
from groundup.parallel.settings import AXES, ParallelSettings
from groundup.parallel.world import World
from groundup.pretrain.ranks import check_layout
from groundup.pretrain.setup import set_up, set_up_ranks
from groundup.recipe import load_recipe
from groundup.tokenizer.make import load_existing
from groundup.tokenizer.settings import Existing
from groundup.tools.shrink import STEPS, Trial, shrink
from groundup.train.fit import fit
from groundup.train.ranks import own_rows

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Largest difference, × max(1, largest magnitude in the tensor)."""
LEARNING_RATE = 0.05  # of plain gradient descent: large enough to move every weight, small enough to stay finite
CLIP = 0.25  # shorter than the gradients are at first, so that clipping is tried, too
CPU = torch.device("cpu")
ROUNDING = 1e-13
NEAR = 0.15  # of a whole number of times: what is missing of a sum is rarely just its share
NUMBER = re.compile(r"\.\d+\.")
Stepping = Literal["recipe", "sgd"]
STEPPINGS: tuple[Stepping, ...] = ("recipe", "sgd")
Numbers = dict[tuple[int, str, str], tuple[Tensor, Ranges]]
"""(step, what, name) → what a training came to: of each step its loss, gradient norm and gradients before clipping; of
the last also weights. Of each the part that is here, and where this is in the whole."""


@dataclass(frozen=True)
class Difference:
    """How far one tensor is from what one process has."""

    step: int
    what: str
    """Loss, gradient norm, gradient or weight."""
    name: str
    """Of the weight."""
    size: float
    """Largest difference, over max(1, largest magnitude)."""
    ratio: float
    """How many times what it should be, by least squares."""


@dataclass(frozen=True)
class Verdict:
    """What came of comparing a layout with one process."""

    trial: Trial
    shrunk: list[str]
    """What of the layout had to be made smaller, in words."""
    differences: dict[Stepping, list[Difference]]
    """Of every tensor on every rank."""

    @property
    def is_equal(self) -> bool:
        return not any(self.unequal(stepping) for stepping in self.differences)

    def table(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "equal": self.is_equal,
            "ranks": self.trial.ranks,
            "shrunk": self.shrunk,
            "model": self.trial.model.table(),
            "parallel": self.trial.parallel.table(),
            "largest_differences": {
                stepping: {what: _largest(of, what) for what in KINDS} for stepping, of in self.differences.items()
            },
            "unequal": {
                stepping: [dataclasses.asdict(each) for each in self.unequal(stepping)] for stepping in self.differences
            },
        }

    def refuse_unequal(self) -> None:
        """
        Raises:
            SettingsError: the layout does not train as one process does.
        """
        if not self.is_equal:
            raise SettingsError("many ranks do not train this recipe as one process does; do not pay for such a run")

    def unequal(self, stepping: Stepping) -> list[Difference]:
        """What is too far off at the first step where anything is."""
        return first_unequal(self.differences[stepping], TOLERANCE[torch.float64])


def first_unequal(differences: Sequence[Difference], tolerance: float) -> list[Difference]:
    """What is too far off at the first step where anything is, the largest first."""
    off = [each for each in differences if not each.size <= tolerance]
    first = min((each.step for each in off), default=0)
    return sorted((each for each in off if each.step == first), key=lambda each: -each.size)


def verify(
    recipe: Path, words: Sequence[str] = (), ranks: int | None = None, progress: Progress = no_progress
) -> Verdict:
    """Train a recipe, shrunk, on as many processes as its layout has ranks, and alone, and compare.

    Args:
        words: settings, those of the layout under `parallel`.
        ranks: how many there are to be; as few as [parallel] has if not given.

    Raises:
        SettingsError: a layout that is of one rank, or that the model cannot have.
    """
    loaded, beside = load_recipe(recipe, words)
    ranks = ranks or loaded.parallel.fewest_ranks
    if ranks == 1:
        raise SettingsError(
            "[parallel] is of one rank, which is equal to itself: name what is to be shared, such as parallel.shard=2"
        )
    match loaded.tokenizer:
        case Existing() as existing:
            vocabulary = load_existing(existing, beside).vocab_size
        case learned:
            vocabulary = learned.vocab_size
    model = loaded.model.with_vocabulary(vocabulary)
    settings = loaded.pretrain.model_copy(update={"precision": Float32(), "compile": False})
    check_layout(model, settings, loaded.parallel, ranks)
    trial, shrunk = shrink(model, settings, loaded.parallel, ranks)
    return Verdict(trial, shrunk, _launch(trial, progress))


# --- in words ---

KINDS = {
    "loss": "losses",
    "gradient norm": "gradient norms",
    "gradient": "gradients",
    "weight": "final weights",
    "average": "their averages",
}


def rows(verdict: Verdict) -> list[tuple[str, ...]]:
    """The largest difference of each kind of number, under either optimizer."""
    head = ("largest difference", verdict.trial.settings.optimizer.kind, "sgd")
    found, averaged = verdict.differences.values(), isinstance(verdict.trial.settings.average, ExponentialAverage)
    kinds = {what: words for what, words in KINDS.items() if what != "average" or averaged}
    return [head, *((words, *(f"{_largest(of, what):.1e}" for of in found)) for what, words in kinds.items())]


def _largest(differences: Sequence[Difference], what: str) -> float:
    sizes = [each.size for each in differences if each.what == what]
    return max((math.inf if math.isnan(size) else size for size in sizes), default=0.0)


def layout_words(verdict: Verdict) -> str:
    """How many ranks share what.

    >>> from groundup.model.settings import ModelConfig
    >>> from groundup.pretrain.settings import PretrainSettings
    >>> trial = Trial(ModelConfig(), PretrainSettings(), ParallelSettings(tensor=2, shard=2, zero=1), 6)
    >>> layout_words(Verdict(trial, ["shard 64 is tried as 2"], {}))
    'equal to one process: 4 ranks, shard 2 (zero 1) × tensor 2 (shard 64 is tried as 2)'
    """
    layout = verdict.trial.parallel
    named = {axis: getattr(layout, axis) or 1 for axis in (*AXES, "expert")}
    words = [f"{axis} {size}" for axis, size in named.items() if size > 1]
    detail = {"shard": f" (zero {layout.zero})", "pipeline": f" ({layout.schedule.kind})"}
    words = [word + detail.get(word.split()[0], "") for word in words]
    smaller = f" ({'; '.join(verdict.shrunk)})" if verdict.shrunk else ""
    equal = "equal" if verdict.is_equal else "not equal"
    return f"{equal} to one process: {verdict.trial.ranks} ranks, {' × '.join(words)}{smaller}"


def places(verdict: Verdict) -> list[tuple[str, ...]]:
    """Where it is unequal first: by module, the farthest off before the others."""
    stepping, off = _first_place(verdict)
    best: dict[tuple[str, str], Difference] = {}
    for each in off:
        best.setdefault((each.what, NUMBER.sub(".*.", each.name)), each)
    kind = verdict.trial.settings.optimizer.kind if stepping == "recipe" else stepping
    head = (f"unequal first in step {off[0].step} with {kind}", "", "differs by", "times what it should be")
    shown = list(best.items())[:12]
    return [head, *((what, name, f"{each.size:.1e}", f"{each.ratio:.4g}") for (what, name), each in shown)]


def likely(verdict: Verdict) -> str:
    """What is likely wrong, by what differs and how."""
    _, off = _first_place(verdict)
    kinds = {each.what for each in off}
    if "loss" in kinds:
        return "The loss differs: something is missing in the forward pass, or the loss's own sum over ranks."
    if "gradient" not in kinds:
        what = "the norm's sum over ranks" if "gradient norm" in kinds else "clipping, or the optimizer's step"
        return f"Every gradient is equal: {what} is wrong."
    ratio = statistics.median(each.ratio for each in off if each.what == "gradient")
    sizes = {axis: getattr(verdict.trial.parallel, axis) or 1 for axis in AXES}
    for axis, n in sizes.items():
        if n > 1 and abs(ratio * n - 1) < NEAR:
            return f"Gradients are about 1/{n} of what they should be: a sum over {n} ranks ({axis}) is missing."
        if n > 1 and abs(ratio / n - 1) < NEAR:
            return (
                f"Gradients are about {n} times what they should be: {n} ranks ({axis}) add up what is whole already."
            )
    return "The loss is equal: a sum or an exchange is missing, or wrong, on the way back to these weights."


def _first_place(verdict: Verdict) -> tuple[Stepping, list[Difference]]:
    """With plain gradient descent, if it is unequal there: by it one sees factors."""
    steppings: tuple[Stepping, ...] = ("sgd", "recipe")
    return next((stepping, off) for stepping in steppings if (off := verdict.unequal(stepping)))


# --- processes ---


def _launch(trial: Trial, progress: Progress) -> dict[Stepping, list[Difference]]:
    """Compare on `trial.ranks` processes, which end with this one."""
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_rank, args=(rank, trial, Path(folder), messages), daemon=True)
            for rank in range(trial.ranks)
        ]
        for process in ranks:
            process.start()
        try:
            for done in itertools.count():
                match _next_message(messages, ranks):
                    case dict() as differences:
                        return differences
                    case Exception() as error:
                        raise error
                    case what:
                        progress(done, 4 * STEPS, what)
        finally:
            for process in ranks:
                process.kill()
                process.join()
    raise AssertionError("the ranks end with a message")


def _next_message(messages: Any, ranks: Sequence[Any]) -> Any:
    while True:
        with contextlib.suppress(Empty):
            return messages.get(timeout=1)
        for rank, process in enumerate(ranks):
            if process.exitcode:
                raise RuntimeError(f"rank {rank} ended with exit code {process.exitcode}")


def _rank(rank: int, trial: Trial, folder: Path, messages: Any) -> None:
    """One of the processes: the first tells what came of it, any one what went wrong."""
    try:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")  # torch's own, about its older names
        logging.disable(logging.WARNING)
        store = dist.FileStore(str(folder / "store"), trial.ranks)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=rank, world_size=trial.ranks, timeout=timedelta(minutes=5))
        torch.set_default_dtype(torch.float64)
        world = World.of(trial.parallel, trial.ranks, CPU, torch.float64, trial.settings.micro_batch_rows)
        tell = messages.put if rank == 0 else lambda what: None
        differences = (compare(trial, world, each, STEPS, tell) for each in STEPPINGS)
        tell(dict(zip(STEPPINGS, differences, strict=True)))
    except GroundupError as error:
        messages.put(error)
    except Exception as error:
        error.add_note(f"on rank {rank}")
        messages.put(error)
    messages.close()
    messages.join_thread()


# --- training and comparing ---


def _quiet(what: str) -> None:
    pass


def compare(
    trial: Trial, world: World, stepping: Stepping, steps: int, tell: Callable[[str], None] = _quiet
) -> list[Difference]:
    """Train on all ranks of `world` and on the first alone: how far every tensor on any rank is from what it should be.

    Args:
        tell: is called after every step, with words for it.
    """
    alone: list[Any] = [None]
    if dist.get_rank() == 0:
        settings = trial.settings.model_copy(update={"micro_batch_rows": trial.rows // 2})
        one = dataclasses.replace(trial, parallel=ParallelSettings(), settings=settings)
        alone = [train_alone(one, stepping, steps, torch.get_default_dtype(), tell)]
    dist.broadcast_object_list(alone, src=0)
    found = differences(train(trial, world, stepping, steps, tell), alone[0])
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, found)
    return [difference for of_rank in everywhere for difference in of_rank]


def differences(got: Numbers, wanted: Numbers) -> list[Difference]:
    """How far each part is from what it should be, which `wanted` has as a whole."""
    found = []
    for (step, what, name), (own, ranges) in got.items():
        whole = wanted[step, what, name][0]
        part = tuple(slice(*each) for each in ranges)
        off, should = own - whole[part], whole[part]
        if what in ("weight", "average"):
            off, own = off * _learned(wanted, name)[part], own * _learned(wanted, name)[part]
        size = torch.cat((off.abs().flatten(), torch.zeros(1))).max() / whole.abs().max().clamp(min=1.0)
        ratio = (own * should).sum() / should.square().sum()
        found.append(Difference(step, what, name, size.item(), ratio.item()))
    return found


def _learned(wanted: Numbers, name: str) -> Tensor:
    """Where a weight has a gradient, or none at all. What is not zero only by rounding, as of the bias of keys that are
    not rotated, differs between any two ways to compute it, and Lion takes no more than its sign."""
    gradients = [whole.abs() for (_, what, of), (whole, _) in wanted.items() if (what, of) == ("gradient", name)]
    largest = torch.stack(gradients).amax(dim=0)
    return (largest == 0) | (largest > ROUNDING)


@functools.lru_cache(maxsize=64)  # for many layouts of one trial
def train_alone(
    trial: Trial, stepping: Stepping, steps: int, dtype: torch.dtype, tell: Callable[[str], None] = _quiet
) -> Numbers:
    """In one process; `dtype` is torch's default type."""
    return train(trial, None, stepping, steps, tell)


def train(
    trial: Trial, world: World | None, stepping: Stepping, steps: int, tell: Callable[[str], None] = _quiet
) -> Numbers:
    """What so many steps come to: as this rank of `world` sees them, or in one process if it is None. In torch's
    default type."""
    settings = trial.settings
    assembled = set_up(trial.model, settings, CPU) if world is None else set_up_ranks(trial.model, settings, world)
    weights, average = assembled.masters.copies, assembled.average if stepping == "recipe" else None
    _widen(weights, trial)
    optimizer = assembled.optimizer
    if stepping == "sgd":
        group = {"params": [*weights.values()], "lr": LEARNING_RATE, "initial_lr": LEARNING_RATE}
        optimizer = torch.optim.SGD([group])
    numbers: Numbers = {}
    step, pass_through = itertools.count(1), assembled.gradients(settings)

    def gradients(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        result, number = pass_through(batch), next(step)
        for name, weight in weights.items():
            numbers[number, "gradient", _name(name, trial)] = _part(_gradient_of(weight))
        return result

    assembled.model.train()
    for done in fit(
        optimizer,
        lambda _: 1.0,
        map(functools.partial(_own_part, world), batches_of(trial)),
        gradients,
        steps=steps,
        clip=CLIP,
        clip_value=settings.clip_value and CLIP / 10,
        ranks=assembled.ranks,
    ):
        numbers[done.number, "loss", ""] = _part(done.loss)
        numbers[done.number, "gradient norm", ""] = _part(done.grad_norm)
        if average is not None:
            average.update(done.number)
        where = "one process" if world is None else f"{trial.ranks} ranks"
        tell(f"step {done.number} on {where}, {stepping}")
    for what, tensors in (("weight", weights), ("average", average.weights if average else {})):
        numbers |= {(steps, what, _name(name, trial)): _part(tensor) for name, tensor in tensors.items()}
    return numbers


@torch.no_grad()
def _widen(weights: Mapping[str, Tensor], trial: Trial) -> None:
    """Make weights larger than a training begins with, and gains and biases uneven, so that everything in the model has
    a part in what comes out."""
    for name, weight in weights.items():
        part, ranges = local_part(weight)
        part.mul_(12 if weight.ndim > 1 else 1)
        part.add_(drawn(key("uneven", _name(name, trial)), weight.shape, ranges, 0.1, part.dtype))


def _name(name: str, trial: Trial) -> str:
    """A tied head that one rank holds beside the embedding is compared with it."""
    tied = getattr(trial.model.head, "tied", False)
    return "embed.weight" if tied and name == "head.weight" else name


def _gradient_of(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def _part(tensor: Tensor) -> tuple[Tensor, Ranges]:
    part, ranges = local_part(tensor.detach())
    return part.double().clone(), ranges


def batches_of(trial: Trial) -> Iterator[Batch]:
    """Rows of two documents each and some padding, whose targets count unevenly: few of the first rows, and most of the
    last."""
    rows, length, vocabulary = trial.rows, trial.model.context_length, trial.model.vocab_size or 0
    for step in itertools.count():
        draw = torch.Generator().manual_seed(trial.settings.seed + step)
        tokens, targets = torch.randint(vocabulary, (2, rows, length), generator=draw)
        begins = torch.randint(3, length - 3, (rows, 1), generator=draw)
        place = torch.arange(length).expand(rows, length)
        second = place >= begins
        padding = second & (place >= length - 2) & (torch.arange(rows)[:, None] % 3 == 1)
        document = torch.where(padding, -1, 2 * torch.arange(rows)[:, None] + second)
        counts = torch.rand(rows, length, generator=draw) < torch.linspace(0.0, 1.0, rows)[:, None]
        position = torch.where(second, place - begins, place)
        yield Batch(tokens, targets, (counts & ~padding).double(), position, document)


def _own_part(world: World | None, batch: Batch) -> Batch:
    """This rank's rows, and of them its positions."""
    if world is None:
        return batch
    rows, length = batch.tokens.shape
    own = own_rows(world, rows, rows // world.row_ranks).flatten()
    ranks, rank = world.sizes["context"], world.coordinate("context")
    batch = dataclasses.replace(batch, **{name: column[own] for name, column in vars(batch).items()})
    return cut_positions(batch, own_positions(length, ranks, rank)) if ranks > 1 else batch
