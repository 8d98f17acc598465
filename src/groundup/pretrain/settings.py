"""Settings of pretraining."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from groundup.optim.settings import AdamW, Cosine, Precision
from groundup.settings import Settings


class NextToken(Settings):
    """Cross-entropy of the next token."""

    kind: Literal["next_token"] = "next_token"


class MultiToken(Settings):
    """Multi-token prediction: also the tokens after the next, each by a head of its own that the finished model does
    without (Gloeckle et al. 2024, arXiv:2404.19737)."""

    kind: Literal["multi_token"] = "multi_token"
    extra_tokens: int = Field(default=1, ge=1)
    """How many tokens after the next one."""
    weight: float = Field(default=0.3, gt=0)
    """Of their mean cross-entropy; that of the next token has 1 (DeepSeek-V3 began with 0.3)."""


class PretrainSettings(Settings):
    """How long, how large the steps, how often it looks up from the work."""

    steps: int = Field(default=1000, ge=1)
    """Optimizer steps to take. Fixed here, never by a clock: the same recipe is the same run on any machine."""
    batch_tokens: int = Field(default=8192, ge=1)
    """Tokens per step, a multiple of the context length."""
    micro_batch_rows: int = Field(default=16, ge=1)
    """Most rows that go through the model at once; gradients of the others are added up. A matter of memory:
    results change only by rounding, and by which units dropout drops."""
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    """Of the initial weights, the order of the rows, and dropout."""
    device: str | None = None
    """Such as `cpu` or `cuda`; the best present if not set."""
    precision: Precision | None = None
    """Which numbers are kept in which type. If not set, `float32` and `bfloat16` are timed for a second each before
    step 1, and the faster is written into the run's recipe."""
    compile: bool | None = None
    """Let torch.compile fuse what stands between the matrix products. If not set, it is decided before step 1, by the
    time it takes and the time it saves, and written into the run's recipe."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What of a block's forward pass is computed again in the backward pass, to save memory: nothing, all but the
    products with weights, or everything."""
    loss: Annotated[NextToken | MultiToken, Field(discriminator="kind")] = NextToken()
    optimizer: AdamW = AdamW()
    schedule: Cosine = Cosine()
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient; a longer one is shortened to it."""
    validate_every: int = Field(default=200, ge=1)
    """Steps between measurements on the validation documents."""
    validation_tokens: int = Field(default=200_000, ge=1)
    """How much of them is read each time; the whole, if they have fewer."""
    sample_every: int = Field(default=200, ge=1)
    """Steps between texts written during the run."""
    sample_prompt: str = "Once upon a time"
    """What such a text begins with."""
    sample_tokens: int = Field(default=80, ge=0)
    """How long it may become."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints. One more is written on Ctrl-C or SIGTERM, and one at the end."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """The newest so many stay; older ones are removed once a newer one has been written and read back."""
    keep_every_steps: int | None = Field(default=None, ge=1)
    """Checkpoints of steps that are multiples of this stay too."""
    keep_best: bool = False
    """The one with the lowest validation bits per byte stays too, of those at whose step it was measured."""
    failed_checkpoints: int = Field(default=3, ge=1)
    """Training goes on when a checkpoint cannot be written, as on a full disk; after so many in a row it ends."""

    @model_validator(mode="after")
    def _warms_up_and_then_trains(self) -> "PretrainSettings":
        warmup = self.schedule.warmup_steps
        if warmup is not None and warmup >= self.steps:
            raise ValueError(
                f"schedule.warmup_steps = {warmup:,}, but there are only {self.steps:,} steps: the learning rate would "
                f"never come down from its top; set pretrain.schedule.warmup_steps={self.steps // 10}, or leave it out"
            )
        return self


MAY_CHANGE = (
    "pretrain.steps",
    "pretrain.batch_tokens",
    "pretrain.micro_batch_rows",
    "pretrain.device",
    "pretrain.compile",
    "pretrain.recompute",
    "pretrain.loss.weight",
    "pretrain.optimizer",
    "pretrain.schedule",
    "pretrain.schedule.kind",
    "pretrain.clip",
    "pretrain.validate_every",
    "pretrain.validation_tokens",
    "pretrain.sample_every",
    "pretrain.sample_prompt",
    "pretrain.sample_tokens",
    "pretrain.checkpoint_every",
    "pretrain.keep_checkpoints",
    "pretrain.keep_every_steps",
    "pretrain.keep_best",
    "pretrain.failed_checkpoints",
)
"""What a training under way takes over when the recipe changes: its state keeps its shape and its meaning. A table
stands for all that is in it but `kind`. Changing anything else is another training."""


def may_change(name: str) -> bool:
    """
    >>> [may_change(f"pretrain.{name}") for name in ("optimizer.learning_rate", "optimizer.kind", "schedule.kind")]
    [True, False, True]
    """
    inside = any(name.startswith(f"{table}.") for table in MAY_CHANGE) and not name.endswith(".kind")
    return name in MAY_CHANGE or inside
