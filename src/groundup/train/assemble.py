"""From a model, a loss and settings to what `fit` needs, for every training: precision, master weights, optimizer."""

import ctypes
import platform
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from groundup.errors import SettingsError
from groundup.model.execution import compile_blocks, recompute_blocks
from groundup.model.kernels.float8 import has_float8, use_float8
from groundup.model.transformer import Transformer
from groundup.optim.averaging import RunningAverage
from groundup.optim.masters import Masters
from groundup.optim.optimizer import make_optimizer
from groundup.optim.precision import make_scaler, optimizer_matmul_dtype, weight_dtype
from groundup.optim.settings import Autocast, ExponentialAverage, Float8
from groundup.optim.state import own
from groundup.parallel.apply import apply, materialise
from groundup.parallel.stages import Pipeline, named_weights
from groundup.parallel.world import World
from groundup.train.checkpoint import tensors_of
from groundup.train.fit import ONE_RANK, Gradients, Loss, Ranks, accumulate
from groundup.train.losses import Attending
from groundup.train.ranks import ManyRanks, RanksScaler, through_stages
from groundup.train.settings import TrainingSettings


def prepare_process() -> None:
    """Let freed memory stay with the process, where the C library is glibc.

    Each step frees and takes hundreds of megabytes; handing them back to the system and faulting them in again costs
    a part of every step, the larger the more there is (docs/numbers.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


@dataclass(frozen=True)
class Assembled:
    """A model that is ready to be trained."""

    model: Transformer
    masters: Masters
    """The weights that the optimizer steps, by name; after a change of them, `publish()`."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    loss: Loss
    average: RunningAverage | None
    """Average of the master weights, if the finished model is to have it; to be updated after every step."""
    ranks: Ranks = ONE_RANK
    """The processes that train it together."""

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds, by name: what is loaded into them is what training goes on from."""
        tensors = tensors_of(self.masters.copies, self.optimizer)
        return {name: tensor for name, tensor in tensors.items() if not self._is_second_half(name)}

    def _is_second_half(self, name: str) -> bool:
        """Whether it is of a tied head whose other half, the embedding, is on this rank, too: one is kept for both."""
        both = isinstance(self.model, Pipeline) and len(self.model.tied) == 2
        return both and name.split(".", 1)[1].startswith("head.weight")

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors, as JSON values: the state of the scaler, if there is one."""
        return {} if self.scaler is None else {"scaler": self.scaler.state_dict()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from tensors that were loaded into `tensors()`, and the `state()` that was saved with them."""
        tensors = tensors_of(self.masters.copies, self.optimizer)
        for name in filter(self._is_second_half, tensors):
            own(tensors[name]).copy_(own(tensors[name.replace("head.weight", "embed.weight", 1)]))
        self.masters.publish()
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])

    @torch.no_grad()
    def restart(self, weights: Mapping[str, Tensor]) -> None:
        """Go back to before the first step, with these weights by name."""
        for name, copy in self.masters.copies.items():
            copy.copy_(weights[name])
        for state in self.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()
        self.masters.publish()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def with_final_weights(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights that it would be finished with now: the average's, where there is one."""
        return nullcontext() if self.average is None else self.average.in_place()

    @property
    def final_weights(self) -> dict[str, Tensor]:
        """Every weight of the model: the average's or the masters', and those that are not trained."""
        trained = self.masters.copies if self.average is None else self.average.weights
        return dict(self.model.named_parameters()) | trained

    def gradients(self, settings: TrainingSettings, *, start: int = 0) -> Gradients[Any]:
        """Forward and backward over a batch in micro-batches, as `fit` asks for them from step `start` on."""

        def micro_batches(batch: Any) -> int:
            return -(-len(batch.weight) // settings.micro_batch_rows)

        options: dict[str, Any] = {"seed": settings.seed, "start": start, "scaler": self.scaler, "ranks": self.ranks}
        if isinstance(self.model, Pipeline):
            return through_stages(self.model, micro_batches, **options)
        return accumulate(self.model, self.loss, micro_batches, **options)


def assemble(model: Transformer, settings: TrainingSettings, loss: Loss, width_ratio: float = 1.0) -> Assembled:
    """Make a model ready to be trained: those of its weights that require a gradient.

    Args:
        model: in float32 on the device that trains it.
        settings: with the precision chosen.
        width_ratio: how many times as wide the model is as the one whose learning rate this is.
    """
    assert settings.precision is not None, "chosen before anything is trained"
    device = next(model.parameters()).device
    if isinstance(settings.precision, Float8):
        if not has_float8(device):
            raise SettingsError(
                f"{settings.TABLE}.precision = float8, but {device} has no float8 matmuls (NVIDIA's GPUs from Ada and "
                f"Hopper on have): set {settings.TABLE}.precision=bfloat16"
            )
        use_float8(model.blocks)
    if isinstance(settings.precision, Autocast):
        loss = _under_autocast(loss, device)
    recompute_blocks(model, settings.recompute)
    if settings.compile:
        compile_blocks(model)
    masters = Masters(model, weight_dtype(settings.precision))
    return _with_optimizer(model, masters, settings, loss, width_ratio, make_scaler(settings.precision, device))


def assemble_on_ranks(
    make: Callable[[], Transformer],
    world: World,
    settings: TrainingSettings,
    loss: Loss,
    attending: Attending,
    fill: Callable[[nn.Module], None],
    width_ratio: float = 1.0,
) -> Assembled:
    """As `assemble`, for this rank's part of a model that many ranks train.

    Args:
        make: makes the model on the meta device; no rank ever holds all of it.
        attending: how it reads a batch, for stages that compute no loss.
        fill: gives values to the weights of a model or of stages, once they are cut.
    """
    assert settings.precision is not None, "chosen before anything is trained"
    if isinstance(settings.precision, Autocast):
        loss = _under_autocast(loss, world.device)
    model = apply(make, world, loss, attending, settings.recompute, bool(settings.compile))
    return assemble_applied(model, world, settings, loss, fill, width_ratio)


def assemble_applied(
    model: Transformer | Pipeline,
    world: World,
    settings: TrainingSettings,
    loss: Loss,
    fill: Callable[[nn.Module], None],
    width_ratio: float = 1.0,
) -> Assembled:
    """What `assemble_on_ranks` does once this rank's part of the model is cut out of it."""
    assert settings.precision is not None, "chosen before anything is trained"
    materialise(model, world.device)
    fill(model)
    ranks = ManyRanks(world, model)
    scaler = RanksScaler.of(make_scaler(settings.precision, world.device))
    masters = Masters(model, torch.float32, named_weights(model))
    return replace(_with_optimizer(model, masters, settings, loss, width_ratio, scaler), ranks=ranks)


def _with_optimizer(
    model: Any,
    masters: Masters,
    settings: TrainingSettings,
    loss: Loss,
    width_ratio: float,
    scaler: torch.amp.GradScaler | None,
) -> Assembled:
    assert settings.precision is not None
    matmuls = optimizer_matmul_dtype(settings.precision)
    optimizer = make_optimizer(masters.copies.items(), settings.optimizer, matmuls, width_ratio)
    masters.follow(optimizer)
    average = None
    if isinstance(settings.average, ExponentialAverage):
        average = RunningAverage(masters, optimizer, settings.average.decay)
    return Assembled(model, masters, optimizer, scaler, loss, average)


def _under_autocast(loss: Loss, device: torch.device) -> Loss:
    def under_autocast(model: Transformer, batch: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        with torch.autocast(device.type, torch.bfloat16):
            return loss(model, batch)

    return under_autocast
