"""Sharding: parameters, gradients and optimizer state cut over ranks (ZeRO; Rajbhandari et al. 2020,
arXiv:1910.02054), by torch's FSDP2.

A rank's parameters are stretches along dim 0 in float32, the masters that the optimizer steps; before they are used
they are gathered, in the precision of the passes. Gradients are summed over ranks in float32, never averaged: the loss
is already divided by the weight of the global batch.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from groundup.model.feedforward import MixtureOfExperts
from groundup.model.transformer import Transformer
from groundup.optim.state import own
from groundup.parallel.exact import PairwiseReduceScatter
from groundup.parallel.world import World

METHODS = ("hidden", "hidden_and_auxiliary", "hidden_multi_token", "logits")
"""By which losses and generation call a model: FSDP gathers weights where one of them begins."""


def shard(model: Transformer, world: World, root: nn.Module | None = None) -> None:
    """Cut every parameter of `model`, or of a stage, block by block.

    Args:
        root: what is called for a pass, if it is not the model: the stage around it.
    """
    settings, dtype = world.settings, world.dtype
    half = dtype not in (torch.float32, torch.float64)
    options: dict[str, Any] = {
        "reshard_after_forward": settings.zero == 3 and world.sizes["pipeline"] == 1,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=dtype if half else None,
            reduce_dtype=torch.float32 if half else None,
            cast_forward_inputs=False,
        ),
    }
    if settings.offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=world.device.type == "cuda")
    mesh, root = world.mesh["replicate", "shard"], root or model
    for block in [*model.blocks.values(), *model.multi_token]:
        for mixture in block.modules():
            if world.experts is not None and isinstance(mixture, MixtureOfExperts):
                fully_shard(mixture.experts, mesh=world.experts["data"], **options)
        fully_shard(block, mesh=mesh, **options)
    # Not cut again after each of its methods: its embedding, norm and head are asked for one after the other.
    fully_shard(root, mesh=mesh, **options | {"reshard_after_forward": False})
    for name in METHODS:
        if hasattr(root, name):
            register_fsdp_forward_method(root, name)
    for module in sharded(root):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no sum with a factor
        if settings.exact:
            module.set_custom_reduce_scatter(PairwiseReduceScatter())


def sharded(model: nn.Module) -> list[FSDPModule]:
    """The modules whose parameters are gathered together."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def hold_gradients(model: nn.Module, last: bool) -> None:
    """Before a micro-batch: whether its gradients are the last of a step and are to be summed over ranks now. Until
    then they stay whole on each rank (ZeRO 1)."""
    for module in sharded(model):
        module.set_requires_gradient_sync(last, recurse=False)
        module.set_is_last_backward(last)


def own_square(tensor: Tensor) -> Float[Tensor, ""]:
    """This rank's share of the squared norm of a tensor, in float64: where several have the same part, each has its
    share of that part's square."""
    return own(tensor).detach().double().square().sum() / copies_of(tensor)


def copies_of(tensor: Tensor) -> int:
    """How many ranks have the same part of a tensor."""
    if not isinstance(tensor, DTensor):
        return 1
    mesh = tensor.device_mesh
    return math.prod(mesh.size(axis) for axis, placed in enumerate(tensor.placements) if placed.is_replicate())


def norm_of(gradients: Iterable[Tensor], world: World) -> Float[Tensor, ""]:
    """The norm of all gradients together over all ranks, each part counted once.

    Args:
        gradients: of this rank's parameters, but for those that another stage counts.
    """
    squares = [own_square(gradient).to(world.device) for gradient in gradients]
    total = torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64, device=world.device)
    dist.all_reduce(total)
    return total.sqrt()


@torch.no_grad()
def clip(gradients: list[Tensor], norm: Tensor, max_norm: float) -> None:
    """Shorten the gradients so that their norm, as it was found over all ranks, is at most `max_norm`."""
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grads_with_norm_
    for gradient in gradients:
        own(gradient).mul_(factor.to(own(gradient).device, own(gradient).dtype))
