"""Settings of the optimizer, the schedule, the average and the precision."""

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
    """Added to the root of the mean square, so that nothing is divided by zero."""
    weight_decay: float = Field(default=0.1, ge=0)
    """On matrices; gains and biases are not decayed."""


class Muon(Settings):
    """The blocks' matrices follow their momentum with all its directions made equally long (Jordan et al. 2024); the
    embedding, the head, gains and biases follow AdamW."""

    kind: Literal["muon"] = "muon"
    learning_rate: float = Field(default=1e-3, gt=0)
    """At the top of the schedule, for both. A matrix's step is scaled to be as long as one of AdamW's, so that AdamW's
    learning rate serves (Liu et al. 2025, arXiv:2502.16982, section 2.2)."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """How much of a matrix's mean gradient is kept at each step."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW: how much of the mean gradient is kept at each step."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW: how much of the mean squared gradient is kept at each step."""
    epsilon: float = Field(default=1e-8, gt=0)
    """AdamW: added to the root of the mean square, so that nothing is divided by zero."""
    weight_decay: float = Field(default=0.1, ge=0)
    """On all matrices; gains and biases are not decayed."""


class Lion(Settings):
    """Every weight moves by the learning rate, up or down as the sign of its momentum says (Chen et al. 2023,
    arXiv:2302.06675, algorithm 2)."""

    kind: Literal["lion"] = "lion"
    learning_rate: float = Field(default=1e-4, gt=0)
    """At the top of the schedule; a third to a tenth of AdamW's."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Share of the momentum in what the sign is taken of; the rest is the gradient."""
    beta2: float = Field(default=0.99, ge=0, lt=1)
    """How much of the momentum is kept at each step."""
    weight_decay: float = Field(default=1.0, ge=0)
    """On matrices; larger than AdamW's by as much as the learning rate is smaller."""


class Adafactor(Settings):
    """Adam without momentum, the mean squares of a matrix kept as those of its rows and columns, every step relative to
    the weights' own size (Shazeer and Stern 2018, arXiv:1804.04235, algorithms 4 and 5)."""

    kind: Literal["adafactor"] = "adafactor"
    learning_rate: float = Field(default=1e-2, gt=0)
    """At the top of the schedule, as a share of the root mean square of the weights that move."""
    decay_exponent: float = Field(default=0.8, gt=0, le=1)
    """The mean takes in step t's squared gradient with a share of t to the power of minus this."""
    update_clip: float = Field(default=1.0, gt=0)
    """Largest root mean square of a step before it is scaled; a longer one is shortened to it."""
    smallest: float = Field(default=1e-3, gt=0)
    """Weights with a smaller root mean square move as if it were this, so that those at zero can leave it."""
    weight_decay: float = Field(default=0.0, ge=0)
    """On matrices; the paper has none."""


Optimizer = Annotated[AdamW | Muon | Lion | Adafactor, Field(discriminator="kind")]


class Warmup(Settings):
    """What every schedule begins with: a linear rise from zero."""

    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps over which the learning rate rises from zero, fewer than there are in all. If not set: a tenth of them, at
    most 100."""


class Constant(Warmup):
    """Linear warm-up, then always the same."""

    kind: Literal["constant"] = "constant"


class Cosine(Warmup):
    """Linear warm-up, then half a cosine down (Loshchilov and Hutter 2017, arXiv:1608.03983)."""

    kind: Literal["cosine"] = "cosine"
    final: float = Field(default=0.1, ge=0, le=1)
    """Share of the learning rate towards which it falls; reached just after the last step."""


class Linear(Warmup):
    """Linear warm-up, then a straight line down."""

    kind: Literal["linear"] = "linear"
    final: float = Field(default=0.0, ge=0, le=1)
    """Share of the learning rate towards which it falls; reached just after the last step."""


class WarmupStableDecay(Warmup):
    """Linear warm-up, then always the same, and at the end down as one minus a square root (Hu et al. 2024,
    arXiv:2404.06395, section 4; the shape of the fall: Hägele et al. 2024, arXiv:2405.18392, section 3)."""

    kind: Literal["warmup_stable_decay"] = "warmup_stable_decay"
    decay_steps: int | None = Field(default=None, ge=0)
    """Steps over which it falls at the end; a fifth of them all if not set."""
    final: float = Field(default=0.0, ge=0, le=1)
    """Share of the learning rate towards which it falls; reached just after the last step."""


class InverseSquareRoot(Warmup):
    """Linear warm-up, then as one over the square root of the step (Vaswani et al. 2017, arXiv:1706.03762, eq. 3); half
    the learning rate after four times the warm-up."""

    kind: Literal["inverse_square_root"] = "inverse_square_root"


Schedule = Annotated[
    Constant | Cosine | Linear | WarmupStableDecay | InverseSquareRoot,
    Field(discriminator="kind"),
]


def warmup_steps(schedule: Schedule, steps: int) -> int:
    """Warm-up steps of a schedule over this many steps."""
    return min(100, steps // 10) if schedule.warmup_steps is None else schedule.warmup_steps


class NoAverage(Settings):
    """The finished model has the weights of the last step."""

    kind: Literal["none"] = "none"


class ExponentialAverage(Settings):
    """The finished model has the mean of the weights of all steps, each earlier one counting less (Polyak and Juditsky
    1992; as it is used here, Kingma and Ba 2015, arXiv:1412.6980, section 7.2)."""

    kind: Literal["ema"] = "ema"
    decay: float = Field(default=0.999, ge=0, lt=1)
    """A step counts this much less than the one after it: 0.999 is a mean over about the last 1,000 steps."""


Average = Annotated[NoAverage | ExponentialAverage, Field(discriminator="kind")]


class Float32(Settings):
    """Weights, activations, gradients and the optimizer's state in float32."""

    kind: Literal["float32"] = "float32"


class Bfloat16(Settings):
    """Weights and activations in bfloat16; a float32 master copy of each weight, which the optimizer steps, and
    gradients added up in float32."""

    kind: Literal["bfloat16"] = "bfloat16"


class Autocast(Settings):
    """Weights, gradients and the optimizer's state in float32; each matmul in bfloat16, its factors rounded
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
    """As `bfloat16`, but matmuls with the blocks' matrices in float8 (Micikevicius et al. 2022, arXiv:2209.05433), for
    GPUs that have it: NVIDIA's from Ada and Hopper on."""

    kind: Literal["float8"] = "float8"


Precision = Annotated[Float32 | Bfloat16 | Autocast | Float16 | Float8, Field(discriminator="kind")]
