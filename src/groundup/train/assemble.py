"""From settings to what `fit` needs: the model, its optimizer, the loss, the batches. The stage, its doctor and the
measurements of speed all train what is assembled here."""

import ctypes
import itertools
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from groundup.batch import Batch
from groundup.errors import SettingsError
from groundup.model.count import count
from groundup.model.execution import compile_blocks, recompute_blocks
from groundup.model.kernels.flex import Flex
from groundup.model.kernels.float8 import has_float8, use_float8
from groundup.model.settings import GroupedQuery, Latent, ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.averaging import RunningAverage
from groundup.optim.optimizer import make_optimizer
from groundup.optim.precision import Masters, make_scaler, product_dtype, weight_dtype
from groundup.optim.settings import Autocast, ExponentialAverage, Float8
from groundup.optim.state import prepare_state
from groundup.optim.width import narrow_start
from groundup.pretrain.settings import MultiToken, NextToken, PretrainSettings
from groundup.pretrain.start import take_weights
from groundup.shards import Tokens
from groundup.train import checkpoint, loader, losses
from groundup.train.fit import Gradients, accumulate


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
    loss: losses.Loss
    average: RunningAverage | None
    """Of the masters, where the finished model is to have it; to be updated after every step."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a checkpoint holds, by name: what is loaded into them is what training goes on from."""
        if not self.optimizer.state:
            prepare_state(self.optimizer)
        return checkpoint.tensors_of(self.masters.copies, self.optimizer)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def as_finished(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights that it would be finished with now: the average's, where there is one."""
        return nullcontext() if self.average is None else self.average.shown()

    @property
    def finished_weights(self) -> Mapping[str, torch.Tensor]:
        return self.masters.copies if self.average is None else self.average.weights

    def gradients(
        self, settings: PretrainSettings, pieces: int | Callable[[Batch], int], start: int = 0
    ) -> Gradients[Batch]:
        """Forward and backward over a batch in so many pieces, as `fit` asks for them from step `start` on."""
        return accumulate(self.model, self.loss, pieces, seed=settings.seed, start=start, scaler=self.scaler)


def assemble(
    config: ModelConfig, settings: PretrainSettings, device: torch.device, start: Path | None = None
) -> Assembled:
    """
    Args:
        config: with its vocabulary.
        settings: with the precision chosen.
        start: a model whose weights it begins with; they are drawn if not given.
    """
    assert settings.precision is not None, "chosen before anything is trained"
    torch.manual_seed(settings.seed)
    model = Transformer(config)
    if isinstance(settings.loss, MultiToken):
        model.add_multi_token(settings.loss.extra_tokens)
    ratio = 1.0 if settings.base_width is None else config.d_model / settings.base_width
    narrow_start(model.named_parameters(), ratio)
    model.to(device)  # drawn on the CPU: the same weights on every device
    if isinstance(settings.precision, Float8):
        if not has_float8(device):
            raise SettingsError(
                f"pretrain.precision = float8, but {device} has no such products (NVIDIA's GPUs from Ada and Hopper on "
                "have): set pretrain.precision=bfloat16"
            )
        use_float8(model)
    recompute_blocks(model, settings.recompute)
    if settings.compile:
        compile_blocks(model)
    masters = Masters(model, weight_dtype(settings.precision))
    optimizer = make_optimizer(masters.copies.items(), settings.optimizer, product_dtype(settings.precision), ratio)
    masters.follow(optimizer)
    if start is not None:
        take_weights(start, masters)
    loss = make_loss(settings, attending(config, settings, device))
    if isinstance(settings.precision, Autocast):
        loss = _autocast(loss, device)
    average = None
    if isinstance(settings.average, ExponentialAverage):
        average = RunningAverage(masters, optimizer, settings.average.decay)
    return Assembled(model, masters, optimizer, make_scaler(settings.precision, device), loss, average)


def attending(config: ModelConfig, settings: PretrainSettings, device: torch.device) -> losses.Attending:
    """How documents packed into a row are kept apart: on a GPU, where blocks are compiled, by flex attention."""
    drops = config.attention.dropout > 0
    if device.type != "cuda" or not settings.compile or drops:
        return losses.by_document
    match config.attention:
        case GroupedQuery() as attention:
            windows = {attention.window_of(layer) for layer in range(config.n_layers)}
        case Latent():
            windows = {None}
    return lambda batch: Flex.of(batch.document, windows)


def make_loss(settings: PretrainSettings, attending: losses.Attending = losses.by_document) -> losses.Loss:
    rowwise = losses.compiled_rowwise() if settings.compile else losses.PLAIN
    match settings.loss:
        case NextToken(z_loss=z_loss):
            return partial(losses.next_token, attending=attending, z_loss=z_loss, rowwise=rowwise)
        case MultiToken(weight=weight):
            return partial(losses.multi_token, attending=attending, weight=weight, rowwise=rowwise)


def _autocast(loss: losses.Loss, device: torch.device) -> losses.Loss:
    def under_autocast(model: Transformer, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        with torch.autocast(device.type, torch.bfloat16):
            return loss(model, batch)

    return under_autocast


def batches(shards: Tokens, context_length: int, seed: int, rows: int | Iterable[int], first: int) -> Iterator[Batch]:
    """Batch after batch of so many rows each, from row `first` on."""
    for n in itertools.repeat(rows) if isinstance(rows, int) else rows:
        yield loader.rows(shards, context_length, seed, first, n)
        first += n


def training_flops_per_token(config: ModelConfig, loss: NextToken | MultiToken) -> int:
    """Forward and backward, with what the loss adds: for each token further ahead, a block and the head again."""
    counted = count(config)
    match loss:
        case NextToken():
            return counted.training_flops_per_token
        case MultiToken(extra_tokens=extra):
            deeper = count(config.model_copy(update={"n_layers": config.n_layers + 1})).training_flops_per_token
            block = deeper - counted.training_flops_per_token
            head = 3 * sum(counted.forward_flops_per_token.get(part, 0) for part in ("project_out", "head"))
            return counted.training_flops_per_token + extra * (block + head)
