"""Apply: everything that is done to a model so that many ranks train it, in one order."""

import functools
from collections.abc import Callable

import torch
from torch import nn

from groundup.batch import Batch
from groundup.model.attention import Attend
from groundup.model.execution import Recomputation, compile_blocks, recompute_blocks
from groundup.model.feedforward import MixtureOfExperts
from groundup.model.transformer import Transformer
from groundup.parallel.experts import spread_experts
from groundup.parallel.ring import Ring, mean_over_ring, own_positions
from groundup.parallel.shard import shard
from groundup.parallel.stages import (
    Loss,
    Pipeline,
    Stage,
    keep_layers,
    layers_of_stages,
    rank_of_stage,
    stages_a_rank,
)
from groundup.parallel.tensor import tensor_parallel
from groundup.parallel.world import World


def apply(
    make: Callable[[], Transformer],
    world: World,
    loss: Loss,
    attending: Callable[[Batch], Attend],
    recompute: Recomputation = "none",
    compile: bool = False,
) -> Transformer | Pipeline:
    """A model as this rank has it: in the order pipeline, tensor, experts, recomputation, compilation, shards.

    Args:
        make: makes the whole model, on the meta device where no rank is to hold it; called once for each stage here.
        loss, attending: of the stages of a pipeline.
        recompute: what of a block is computed again in the backward pass.
        compile: whether the blocks are compiled.
    """
    n = world.sizes["pipeline"]
    if n == 1:
        model = make()
        _spread(model, world, recompute, compile)
        shard(model, world)
        return model
    stages: dict[int, Stage] = {}
    for number in own_stages(world):
        model = make()
        keep_layers(model, stage_layers(model, world)[number])
        _spread(model, world, recompute, compile)
        stages[number] = Stage(model, loss, attending)
        shard(model, world, stages[number])
    return Pipeline(stages, world)


def own_stages(world: World) -> list[int]:
    """The numbers of this rank's stages."""
    schedule, n = world.settings.schedule, world.sizes["pipeline"]
    numbers = range(n * stages_a_rank(schedule))
    return [number for number in numbers if rank_of_stage(schedule, number, n) == world.coordinate("pipeline")]


def stage_layers(model: Transformer, world: World) -> list[range]:
    """The layers of every stage."""
    n_stages = world.sizes["pipeline"] * stages_a_rank(world.settings.schedule)
    return layers_of_stages(model.config, n_stages, len(model.multi_token))


def _spread(model: Transformer, world: World, recompute: Recomputation, compile: bool) -> None:
    """What is done to one stage, but for its shards."""
    experts = None if world.experts is None else world.experts["expert", "tensor"]
    if world.sizes["tensor"] > 1 or experts is not None:
        tensor_parallel(model, world.mesh["tensor"], experts)
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            if world.experts is not None:
                spread_experts(module.experts, module.settings.n_experts, world.experts.get_group("expert"))
            if world.sizes["context"] > 1:
                module.mean_over_row = functools.partial(mean_over_ring, world.sizes["context"], world.group("context"))
    recompute_blocks(model, recompute)
    if compile:
        compile_blocks(model)


def ring_attending(world: World, length: int) -> Callable[[Batch], Attend]:
    """How ranks that share the positions of rows of `length` read them."""
    position = own_positions(length, world.sizes["context"], world.coordinate("context")).to(world.device)
    return lambda batch: Ring(position, batch.document, world.group("context"))


def materialise(model: nn.Module, device: torch.device) -> None:
    """Give every parameter of a model that was made on the meta device memory on `device`, without values; tied ones
    stay tied."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                if parameter not in made:
                    empty = torch.empty_like(parameter, device=device)
                    made[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[parameter]
