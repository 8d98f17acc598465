"""Counting: parameters, FLOPs and bytes of a model, without allocating it.

Parameters are read off the modules. FLOPs and activations come from one forward pass in training on the meta device,
where tensors have shapes but no values: a block is counted as it is written, whatever it is. Kernels are those of a
CPU. What the parts are called: `embed`, `position`, `attention`, `attention_norm`, `feedforward`, …, `norm`, `head`;
`attention scores` for whatever happens between queries, keys and values, and `stream` for what happens between the
parts.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from groundup.model.attention import Causal
from groundup.model.feedforward import MixtureOfExperts
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SCORES = "attention scores"


@dataclass(frozen=True)
class Count:
    """What a model costs, by `count`. Where it depends on a length, rows are `context_length` long."""

    parameters: Mapping[str, int]
    """By part; a tied head adds none."""
    active_parameters: int
    """Those that one token meets: of a mixture's experts, only as many as are picked."""
    forward_flops_per_token: Mapping[str, int]
    """By part, two for each multiply-add; scores are counted for the full square."""
    cache_bytes_per_token: Mapping[str, int]
    """Keys and values that generation keeps of one token in all layers, by precision."""
    activation_bytes: Mapping[str, Mapping[str, int]]
    """What one row's forward pass keeps for the backward pass, by precision and part; the loss is not included."""
    checkpointed_activation_bytes: Mapping[str, int]
    """The most that is kept if each block keeps its input alone and is computed again when its turn comes."""

    @property
    def total_parameters(self) -> int:
        """Parameters of all parts together."""
        return sum(self.parameters.values())

    @property
    def backward_flops_per_token(self) -> Mapping[str, int]:
        """A matmul of the forward pass has two in the backward pass, one for each of its factors."""
        return {part: 2 * flops for part, flops in self.forward_flops_per_token.items()}

    @property
    def training_flops_per_token(self) -> int:
        """Forward and backward (Kaplan et al. 2020, section 2.1)."""
        return 3 * sum(self.forward_flops_per_token.values())


def count(config: ModelConfig) -> Count:
    """Count the model that `config` describes.

    >>> from groundup.model.presets import PRESETS
    >>> gpt2 = count(PRESETS["gpt2"].model)
    >>> gpt2.total_parameters, gpt2.training_flops_per_token // 3
    (124439808, 284812800)
    >>> gpt2.backward_flops_per_token["head"] == 2 * gpt2.forward_flops_per_token["head"]
    True
    """
    # All blocks cost the same (a window changes which scores are used, not which are computed), but what they share is
    # booked on the first.
    shallow = config.model_copy(update={"n_layers": min(2, config.n_layers)})
    with torch.device("meta"):
        model = Transformer(shallow)
    sizes = Counter({name: parameter.numel() for name, parameter in model.named_parameters()})
    parameters = _by_part(sizes, config.n_layers)
    meters = {precision: _measure(model.to(dtype)) for precision, dtype in DTYPES.items()}
    flops = _by_part(next(iter(meters.values())).flops, config.n_layers)
    heads, key_width, value_width = config.cached
    cached = config.n_layers * heads * (key_width + value_width)
    return Count(
        parameters=parameters,
        active_parameters=sum(parameters.values()) - config.n_layers * _idle_parameters(model.blocks["0"]),
        forward_flops_per_token={part: n // config.context_length for part, n in flops.items()},
        cache_bytes_per_token={precision: cached * dtype.itemsize for precision, dtype in DTYPES.items()},
        activation_bytes={precision: _by_part(meter.kept, config.n_layers) for precision, meter in meters.items()},
        checkpointed_activation_bytes={
            precision: _checkpointed(meter, config, DTYPES[precision]) for precision, meter in meters.items()
        },
    )


def _by_part(booked: "Counter[str]", n_layers: int) -> dict[str, int]:
    """Sums over names such as `blocks.1.attention.query`; what block 1 has, all blocks after the first have."""
    parts: Counter[str] = Counter()
    for name, number in booked.items():
        parts[_part(name)] += number * (n_layers - 1 if name.startswith("blocks.1") else 1)
    return {part: number for part, number in parts.items() if number}


def _part(name: str) -> str:
    """`blocks.1.attention.query` belongs to `attention`; what no part does by itself, to `stream`."""
    pieces = name.split(".")
    if pieces[0] != "blocks":
        return pieces[0]
    return pieces[2] if len(pieces) > 2 else "stream"


def _idle_parameters(block: nn.Module) -> int:
    """Those that a token does not meet, where experts are picked."""
    return sum(
        sum(p.numel() for p in module.experts.parameters())
        // module.settings.n_experts
        * (module.settings.n_experts - module.settings.n_active)
        for module in block.modules()
        if isinstance(module, MixtureOfExperts)
    )


def _checkpointed(meter: "Meter", config: ModelConfig, dtype: torch.dtype) -> int:
    """All blocks' inputs and what stands before the blocks; and either what comes after them, at the end of the
    forward pass, or the rest of the last block, when it has been computed again."""
    block_input = config.context_length * config.d_model * dtype.itemsize
    after = sum(meter.kept[name] for name in ("norm", "project_out", "head"))
    before = sum(number for name, number in meter.kept.items() if not name.startswith("blocks.")) - after
    block = sum(number for name, number in meter.kept.items() if name.startswith("blocks.0"))
    return before + config.n_layers * block_input + max(after, block - block_input)


def _measure(model: Transformer) -> "Meter":
    meter = Meter({parameter.untyped_storage()._cdata for parameter in model.parameters()})
    tokens = torch.zeros(1, model.config.context_length, dtype=torch.long, device="meta")
    with meter.watching(model):
        model.train()(tokens, attend=meter)
    return meter


@dataclass
class Meter:
    """Watches a forward pass, and books what happens under the name of the module that is at work."""

    parameters: set[int]
    """Their storages: kept anyway, and not counted."""
    flops: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    _at_work: list[str] = field(default_factory=lambda: ["stream"])
    _booked: int = 0
    _counter: FlopCounterMode = field(default_factory=lambda: FlopCounterMode(display=False))
    _seen: dict[int, Tensor] = field(default_factory=dict)
    """One tensor of each storage that is kept; held, so that its number is not given to another."""

    @contextmanager
    def watching(self, model: Transformer) -> Iterator[None]:
        hooks = []
        for name, module in model.named_modules():
            in_block = name.startswith("blocks.")
            if (
                name
                and name.count(".") <= (2 if in_block else 0)
                and not isinstance(module, nn.ModuleList | nn.ModuleDict)
            ):
                hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self._begin(name)))
                hooks.append(module.register_forward_hook(lambda *_: self._end()))
        with self._counter, saved_tensors_hooks(self._keep, lambda tensor: tensor):
            yield
            self._book()
        for hook in hooks:
            hook.remove()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int, **options: Any) -> Tensor:
        """Attend as usual, and count the FLOPs of the whole square of scores as a part of their own."""
        self._begin(f"blocks.{layer}.{SCORES}")
        read = Causal()(q, k, v, layer=layer, **options)
        self._booked = self._counter.get_total_flops()
        self.flops[self._at_work[-1]] += 2 * q.shape[:-1].numel() * k.shape[-2] * (k.shape[-1] + v.shape[-1])
        self._end()
        return read

    def _begin(self, name: str) -> None:
        self._book()
        self._at_work.append(name)

    def _end(self) -> None:
        self._book()
        self._at_work.pop()

    def _book(self) -> None:
        total = self._counter.get_total_flops()
        self.flops[self._at_work[-1]] += total - self._booked
        self._booked = total

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.parameters and storage._cdata not in self._seen:
            self._seen[storage._cdata] = tensor
            self.kept[self._at_work[-1]] += storage.nbytes()
        return tensor
