"""What pretraining assembles: the model as it is drawn, the loss, the batches. The stage, its doctor and the
measurements of speed all train what is set up here."""

import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

from groundup.batch import Batch
from groundup.model.count import count
from groundup.model.kernels.flex import Flex
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer, initialise
from groundup.optim.width import narrow_start
from groundup.parallel.apply import ring_attending
from groundup.parallel.ring import cut_positions, own_positions
from groundup.parallel.stages import named_weights
from groundup.parallel.world import World
from groundup.pretrain.settings import MultiToken, NextToken, PretrainSettings
from groundup.pretrain.start import take_weights
from groundup.shards import Tokens
from groundup.train import loader, losses
from groundup.train.assemble import Assembled, assemble, assemble_on_ranks
from groundup.train.fit import Loss
from groundup.train.multi_token import multi_token
from groundup.train.ranks import own_rows


def draw_model(config: ModelConfig, settings: PretrainSettings, start: Path | None = None) -> Transformer:
    """The model before its first step, on the CPU, so that its weights are the same whatever device trains it.

    Args:
        config: with its vocabulary.
        start: a model whose weights it begins with; they are drawn if not given.
    """
    model = Transformer(config, settings.seed)
    if isinstance(settings.loss, MultiToken):
        model.add_multi_token(settings.loss.extra_tokens, settings.seed)
    narrow_start(model.named_parameters(), _width_ratio(config, settings))
    if start is not None:
        take_weights(start, dict(model.named_parameters()))
    return model


def set_up(
    config: ModelConfig, settings: PretrainSettings, device: torch.device, start: Path | None = None
) -> Assembled:
    """A pretraining before its first step.

    Args:
        config: with its vocabulary.
        settings: with the precision chosen.
        start: a model whose weights it begins with; they are drawn if not given.
    """
    model = draw_model(config, settings, start).to(device)
    loss = make_loss(settings, attending(config, settings, device))
    return assemble(model, settings, loss, _width_ratio(config, settings))


def set_up_ranks(config: ModelConfig, settings: PretrainSettings, world: World, start: Path | None = None) -> Assembled:
    """`set_up` for this rank of many: no rank holds the whole model, and together they begin with the same weights."""

    def make() -> Transformer:
        with torch.device("meta"):
            model = Transformer(config)
            if isinstance(settings.loss, MultiToken):
                model.add_multi_token(settings.loss.extra_tokens)
        return model

    def fill(model: nn.Module) -> None:
        for part in model.modules():
            if isinstance(part, Transformer):
                initialise(part, config.n_layers, settings.seed)
        narrow_start(named_weights(model), _width_ratio(config, settings))
        if start is not None:
            take_weights(start, dict(named_weights(model)))

    attend = attending(config, settings, world.device)
    if world.sizes["context"] > 1:
        attend = ring_attending(world, config.context_length)
    loss = make_loss(settings, attend)
    return assemble_on_ranks(make, world, settings, loss, attend, fill, _width_ratio(config, settings))


def _width_ratio(config: ModelConfig, settings: PretrainSettings) -> float:
    return 1.0 if settings.base_width is None else config.d_model / settings.base_width


def attending(config: ModelConfig, settings: PretrainSettings, device: torch.device) -> losses.Attending:
    """How documents packed into a row are kept apart: by flex attention on a GPU where blocks are compiled."""
    drops = config.attention.dropout > 0
    if device.type != "cuda" or not settings.compile or drops:
        return losses.by_document
    return lambda batch: Flex(batch.document)


def make_loss(settings: PretrainSettings, attending: losses.Attending = losses.by_document) -> Loss:
    """The loss that the settings name, compiled if the blocks are."""
    compiled = bool(settings.compile)
    match settings.loss:
        case NextToken(z_loss=z_loss):
            return partial(losses.next_token, attending=attending, z_loss=z_loss, compiled=compiled)
        case MultiToken(weight=weight):
            return partial(multi_token, attending=attending, weight=weight, compiled=compiled)


def batches(shards: Tokens, context_length: int, seed: int, rows: int | Iterable[int], first: int) -> Iterator[Batch]:
    """Batches of so many rows each, from row `first` on."""
    for n in itertools.repeat(rows) if isinstance(rows, int) else rows:
        yield loader.rows(shards, context_length, seed, first, n)
        first += n


def own_batches(
    shards: Tokens, context_length: int, seed: int, rows: Iterable[int], first: int, world: World
) -> Iterator[Batch]:
    """This rank's share of the same batches: its rows, and of those its positions. Where rows are not shared out evenly
    some are read again, with no weight, so that all ranks go through as many."""
    position = own_positions(context_length, world.sizes["context"], world.coordinate("context"))
    for n in rows:
        own = own_rows(world, n, -(-n // world.row_ranks))
        runs = [loader.rows(shards, context_length, seed, first + int(run[0]), len(run)) for run in own]
        batch = Batch(**{name: torch.cat([vars(run)[name] for run in runs]) for name in vars(runs[0])})
        batch.weight[own.flatten() >= n] = 0
        yield cut_positions(batch, position) if world.sizes["context"] > 1 else batch
        first += n


def training_flops_per_token(config: ModelConfig, loss: NextToken | MultiToken) -> int:
    """Forward and backward, with what the loss adds: for each token further ahead, a block and the head again."""
    match loss:
        case NextToken():
            return config.training_flops_per_token
        case MultiToken(extra_tokens=extra):
            deeper = config.model_copy(update={"n_layers": config.n_layers + 1})
            block = deeper.training_flops_per_token - config.training_flops_per_token
            parts = count(config).forward_flops_per_token
            head = 3 * (parts.get("project_out", 0) + parts["head"])
            return config.training_flops_per_token + extra * (block + head)
