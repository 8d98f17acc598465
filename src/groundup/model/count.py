"""Counting: parameters, FLOPs, bytes of a model, read off its structure without allocating it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer

PRECISION_BYTES = {"float32": 4, "bfloat16": 2}
OPTIMIZER_BYTES = {"float32": 4 + 4 + 8, "bfloat16": 2 + 4 + 4 + 8}
"""Bytes a parameter takes in training with AdamW: float32 weight, gradient, two moments; with bfloat16 weights, a
float32 master copy, its float32 gradient and two moments besides."""


@dataclass(frozen=True)
class Count:
    """What a model costs."""

    parameters: Mapping[str, int]
    """By part; a tied head adds none."""
    forward_flops_per_token: Mapping[str, int]
    """By part, two for each multiply-add, at the full context length; attention scores counted for the full square."""
    cache_bytes_per_token: int
    """Keys and values of one token in all layers, in bfloat16."""
    training_bytes: Mapping[str, int]
    """Weights, gradients and optimizer state for each precision; activations not included."""

    @property
    def total_parameters(self) -> int:
        return sum(self.parameters.values())

    @property
    def training_flops_per_token(self) -> int:
        """Forward and backward: the backward pass multiplies twice as much (Kaplan et al. 2020, section 2.1)."""
        return 3 * sum(self.forward_flops_per_token.values())


def count(config: ModelConfig) -> Count:
    """Count the model that `config` describes.

    >>> from groundup.model.presets import PRESETS
    >>> count(PRESETS["gpt2"]).total_parameters
    124439808
    """
    with torch.device("meta"):
        model = Transformer(config)
    parameters: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = _part(name)
        parameters[part] = parameters.get(part, 0) + parameter.numel()
    flops: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            part = _part(name)
            flops[part] = flops.get(part, 0) + 2 * module.weight.numel()
    # Scores and weighted values: two products of context_length × head width for each query head and layer.
    pairs = config.n_layers * config.n_heads * config.head_width * config.context_length
    flops["attention scores"] = 2 * 2 * pairs
    total = sum(parameters.values())
    return Count(
        parameters=parameters,
        forward_flops_per_token=flops,
        cache_bytes_per_token=2 * config.n_layers * config.kv_heads * config.head_width * PRECISION_BYTES["bfloat16"],
        training_bytes={precision: total * size for precision, size in OPTIMIZER_BYTES.items()},
    )


def _part(name: str) -> str:
    """`blocks.3.attention.query.weight` belongs to `attention`."""
    parts = name.split(".")
    return parts[2] if parts[0] == "blocks" else parts[0]
