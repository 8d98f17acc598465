"""How the tensors of published architectures lie, where they do not lie as ours. All are under our names.

Heads × channels are the rows of the matrices of queries, keys and values.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from groundup.model.settings import ModelConfig, Sequential

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # a config is read without torch, which takes a second to import

Tensors = Mapping[str, Tensor]
PARTS = ("query", "key", "value")
FUSED = "query_key_value"


@dataclass(frozen=True)
class Layout:
    """Brings tensors from a published layout into ours, and back."""

    read: Callable[[ModelConfig, Tensors], Tensors] = lambda config, tensors: tensors
    write: Callable[[ModelConfig, Tensors], Tensors] = lambda config, tensors: tensors


def _split(config: ModelConfig, tensors: Tensors, parts_at: int) -> Tensors:
    """Query, key and value out of one matrix.

    Args:
        parts_at: 0 where all queries come first, then all keys, all values; 1 where each head has its three together.
    """
    shape = [config.n_heads, -1]
    shape.insert(parts_at, 3)
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if FUSED in name:
            parts = tensor.unflatten(0, shape).unbind(parts_at)
            separate |= {name.replace(FUSED, part): each.flatten(0, 1) for part, each in zip(PARTS, parts, strict=True)}
        else:
            separate[name] = tensor
    return separate


def _join(config: ModelConfig, tensors: Tensors, parts_at: int) -> Tensors:
    """The inverse of `_split`."""
    import torch  # only where there are tensors

    joined: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".attention.query." in name:
            parts = [tensors[name.replace("query", part)].unflatten(0, (config.n_heads, -1)) for part in PARTS]
            joined[name.replace("query", FUSED)] = torch.stack(parts, dim=parts_at).flatten(0, 2)
        elif ".attention.key." not in name and ".attention.value." not in name:
            joined[name] = tensor
    return joined


def _transpose(tensors: Tensors) -> Tensors:
    """The matrices of the blocks transposed, as GPT-2 keeps them."""
    return {name: each.T if name.startswith("blocks.") and each.ndim == 2 else each for name, each in tensors.items()}


def _norms_after(config: ModelConfig, tensors: Tensors) -> Tensors:
    """OPT-350M has its norms after the sums, under the names that the others have for norms before."""
    if config.block != Sequential(norm="after"):
        return tensors
    return {re.sub(r"(attention|feedforward)_norm\.", r"\1_sum_norm.", name): t for name, t in tensors.items()}


def _reorder(config: ModelConfig, tensors: Tensors, shape: tuple[int, int]) -> Tensors:
    """The rotated channels of queries and keys seen as a matrix of `shape`, and transposed.

    GPT-J, Llama's own files and GGUF's rotate channels 0 and 1 together, 2 and 3, …; here a channel of the first half
    goes with one of the second. Queries and keys whose channels are reordered alike have the same dot products.
    """
    import torch

    def turned(tensor: Tensor) -> Tensor:
        rotated, rest = tensor.unflatten(0, (-1, config.head_width)).tensor_split([config.rotary_width], dim=1)
        return torch.cat((rotated.unflatten(1, shape).transpose(1, 2).flatten(1, 2), rest), dim=1).flatten(0, 1)

    return {
        name: turned(tensor) if re.search(r"attention\.(query|key)\.(weight|bias)$", name) else tensor
        for name, tensor in tensors.items()
    }


def _stack_experts(config: ModelConfig, tensors: Tensors) -> Tensors:
    """Mixtral keeps a matrix for each expert; ours lie in one tensor, expert after expert."""
    import torch

    rest, stacks = dict[str, Tensor](), defaultdict[str, dict[int, Tensor]](dict)
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.*\.experts)\.(\d+)\.(.*)", name):
            stacks[f"{match[1]}.{match[3]}"][int(match[2])] = tensor
        else:
            rest[name] = tensor
    return rest | {name: torch.stack([stack[n] for n in sorted(stack)]) for name, stack in stacks.items()}


def _take_experts_apart(config: ModelConfig, tensors: Tensors) -> Tensors:
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        before, dot, part = name.partition(".experts.")
        apart |= {f"{before}{dot}{n}.{part}": expert for n, expert in enumerate(tensor)} if dot else {name: tensor}
    return apart


def _add_to_gains(config: ModelConfig, tensors: Tensors, added: int) -> Tensors:
    """Gemma keeps of a norm's gain what it has above 1.

    In float32, since bfloat16 would round the sum. Taking 1 from gains of 0.5 to 2 needs no rounding.
    """
    return {name: tensor.float() + added if "norm." in name else tensor for name, tensor in tensors.items()}


LAYOUTS = {
    "ours": Layout(),
    "transposed": Layout(  # GPT-2's
        lambda config, tensors: _split(config, _transpose(tensors), parts_at=0),
        lambda config, tensors: _transpose(_join(config, tensors, parts_at=0)),
    ),
    "fused": Layout(partial(_split, parts_at=0), partial(_join, parts_at=0)),  # GGUF's of these three
    "fused_by_head": Layout(partial(_split, parts_at=1), partial(_join, parts_at=1)),  # GPT-NeoX's and BLOOM's
    "opt_norms": Layout(
        _norms_after,
        lambda config, tensors: {name.replace("_sum_norm.", "_norm."): tensor for name, tensor in tensors.items()},
    ),
    "pairs": Layout(partial(_reorder, shape=(-1, 2)), partial(_reorder, shape=(2, -1))),
    "each_expert": Layout(_stack_experts, _take_experts_apart),
    "gains_less_one": Layout(partial(_add_to_gains, added=1), partial(_add_to_gains, added=-1)),
}
