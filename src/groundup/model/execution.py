"""How a model's blocks are run: compiled, or computed again in the backward pass. Done to a model from outside."""

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from groundup.model.attention import Attend
from groundup.model.feedforward import Tap, no_tap
from groundup.model.position import PositionTerms
from groundup.model.settings import Experts, ModelConfig
from groundup.model.transformer import Transformer

Recomputation = Literal["none", "selective", "full"]
Forward = Callable[..., Tensor]
MATMULS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten._grouped_mm.default}
"""What selective recomputation keeps: matmuls with weights, which cost the most to compute again."""


def compile_blocks(model: Transformer) -> None:
    """Let torch.compile fuse what stands between a block's matmuls. A block is compiled once and serves for
    all layers of its shape.

    Only training runs what is compiled: in evaluation and generation lengths differ from call to call, and whoever
    looks inside through `tap` gets the block as it is written.
    """
    options: dict[str, Any] = {}
    if next(model.parameters()).device.type == "cpu":
        # Here, since it imports torch's compiler, which takes more than a second.
        from groundup.model.kernels.graph_passes import BiasesApart, JoinedMatmuls

        options = {"pre_grad_custom_pass": JoinedMatmuls(), "post_grad_custom_post_pass": BiasesApart()}
    for block in model.blocks.values():
        plain = block.forward
        compiled = torch.compile(plain, dynamic=False, fullgraph=True, options=options)
        block.forward = partial(_run_either, block, plain, compiled)


def _run_either(
    block: torch.nn.Module,
    plain: Forward,
    compiled: Forward,
    x: Tensor,
    terms: PositionTerms | None = None,
    attend: Attend | None = None,
    tap: Tap = no_tap,
) -> Tensor:
    run = compiled if block.training and torch.is_grad_enabled() and tap is no_tap else plain
    return run(x, terms, attend, tap)


def recompute_blocks(model: Transformer, how: Recomputation) -> None:
    """Keep less of the forward pass for the backward pass, and compute the rest again (Chen et al. 2016,
    arXiv:1604.06174): with `full` nothing but a block's input is kept; with `selective` also its matmuls with weights
    (Korthikanti et al. 2022, arXiv:2205.05198, section 5)."""
    if how == "none":
        return
    options: dict[str, Any] = (
        {"context_fn": partial(create_selective_checkpoint_contexts, _policy)} if how == "selective" else {}
    )
    for block in model.blocks.values():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, **options)


def _policy(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in MATMULS else CheckpointPolicy.PREFER_RECOMPUTE


def why_not_compiled(config: ModelConfig, device: torch.device) -> str | None:
    """What stands in the way of `compile_blocks`; None if nothing does."""
    if isinstance(config.feedforward, Experts):
        return "which experts a token meets is known only as it runs"
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
        return "there is no C++ compiler here (g++ or clang++)"
    if device.type not in ("cpu", "cuda"):
        return f"it is not tried on {device.type}"
    return None
