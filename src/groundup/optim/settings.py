"""Settings of the optimizer, the schedule and the precision."""

from typing import Annotated, Literal

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


class Float32(Settings):
    """Weights, activations, gradients and the optimizer's state in float32."""

    kind: Literal["float32"] = "float32"


class Bfloat16(Settings):
    """Weights and activations in bfloat16; a float32 master copy of each weight, which the optimizer steps, and
    gradients added up in float32."""

    kind: Literal["bfloat16"] = "bfloat16"


class Autocast(Settings):
    """Weights, gradients and the optimizer's state in float32; each matrix product in bfloat16, its factors rounded
    anew every time (torch.autocast)."""

    kind: Literal["autocast"] = "autocast"


class Float16(Settings):
    """Weights and activations in float16, master copies and gradients in float32, the loss scaled so that small
    gradients do not vanish (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2)."""

    kind: Literal["float16"] = "float16"
    initial_scale: float = Field(default=65536.0, gt=0)
    """Factor on the loss at first. It is halved whenever a gradient overflows, and that step is left out."""
    growth_steps: int = Field(default=2000, ge=1)
    """Steps without overflow after which the factor is doubled."""


class Float8(Settings):
    """As `bfloat16`, but products with the blocks' matrices in float8 (Micikevicius et al. 2022, arXiv:2209.05433), for
    GPUs that have it: NVIDIA's from Ada and Hopper on."""

    kind: Literal["float8"] = "float8"


Precision = Annotated[Float32 | Bfloat16 | Autocast | Float16 | Float8, Field(discriminator="kind")]
