"""Settings of the optimizer and the schedule."""

from typing import Literal

from pydantic import Field

from groundup.settings import Settings


class AdamW(Settings):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    """At the top of the schedule."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """How much of the mean gradient is kept at each step."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """How much of the mean squared gradient is kept at each step."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the mean square, so that nothing is divided by nought."""
    weight_decay: float = Field(default=0.1, ge=0)
    """On matrices; gains and biases are not decayed."""


class Cosine(Settings):
    """Linear warm-up, then half a cosine down (Loshchilov and Hutter 2017, arXiv:1608.03983)."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps over which the learning rate rises from nought, fewer than there are in all. If not set: a tenth of them,
    at most 100."""
    final: float = Field(default=0.1, ge=0, le=1)
    """Share of the learning rate towards which it falls; reached just after the last step."""
