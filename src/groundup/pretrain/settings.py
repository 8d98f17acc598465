"""Settings of pretraining."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from groundup.evals.settings import Evaluation
from groundup.optim.settings import (
    AdamW,
    Average,
    Cosine,
    NoAverage,
    Optimizer,
    Precision,
    Schedule,
    WarmupStableDecay,
    warmup_steps,
)
from groundup.settings import Settings, contradiction
from groundup.train.settings import Guarding, SkipAndRollBack


class NextToken(Settings):
    """Cross-entropy of the next token."""

    kind: Literal["next_token"] = "next_token"
    z_loss: float = Field(default=0.0, ge=0)
    """Weight of the squared logarithm of the softmax's divisor, which keeps logits from drifting away together (PaLM,
    Chowdhery et al. 2022, arXiv:2204.02311, section 5: 0.0001); 0 for none."""


class MultiToken(Settings):
    """Multi-token prediction: also the tokens after the next, each by a head of its own that the finished model does
    without (Gloeckle et al. 2024, arXiv:2404.19737)."""

    kind: Literal["multi_token"] = "multi_token"
    extra_tokens: int = Field(default=1, ge=1)
    """How many tokens after the next one."""
    weight: float = Field(default=0.3, gt=0)
    """Of their mean cross-entropy; that of the next token has 1 (DeepSeek-V3 began with 0.3)."""


class BatchRamp(Settings):
    """Batches that grow in a straight line from a few rows to all of them (Brown et al. 2020, arXiv:2005.14165,
    appendix B); early gradients are so alike that fewer rows tell the same."""

    start_tokens: int = Field(ge=1)
    """In the first step, a multiple of the context length, fewer than `batch_tokens`."""
    steps: int = Field(ge=1)
    """Steps over which they grow; the one after them is the first to have `batch_tokens`."""


class TensorBoard(Settings):
    """Event files in the run's `pretrain/tensorboard`, for `tensorboard --logdir runs`."""

    kind: Literal["tensorboard"] = "tensorboard"


class WeightsAndBiases(Settings):
    """A run of Weights & Biases."""

    kind: Literal["wandb"] = "wandb"
    project: str = "groundup"
    """Where the run is listed."""
    mode: Literal["online", "offline"] = "offline"
    """`offline` keeps everything in the run's directory, to be sent by `wandb sync`; `online` sends it as it comes."""


class Trackio(Settings):
    """A run of trackio, on this machine."""

    kind: Literal["trackio"] = "trackio"
    project: str = "groundup"
    """Where the run is listed."""


class MLflow(Settings):
    """A run of MLflow."""

    kind: Literal["mlflow"] = "mlflow"
    experiment: str = "groundup"
    """Where the run is listed; made if it is not there."""
    tracking_uri: str | None = None
    """Such as `http://localhost:5000`; MLflow's own default if not set."""


Sink = Annotated[TensorBoard | WeightsAndBiases | Trackio | MLflow, Field(discriminator="kind")]


class PretrainSettings(Settings):
    """How long, how large the steps, how often it looks up from the work."""

    steps: int = Field(default=1000, ge=1)
    """Optimizer steps to take. Fixed here, never by a clock: the same recipe is the same run on any machine."""
    batch_tokens: int = Field(default=8192, ge=1)
    """Tokens per step, a multiple of the context length."""
    batch_ramp: BatchRamp | None = None
    micro_batch_rows: int = Field(default=16, ge=1)
    """Most rows that go through the model at once; gradients of the others are added up. A matter of memory:
    results change only by rounding, and by which units dropout drops."""
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    """Of the initial weights, the order of the rows, and dropout."""
    start: str | None = None
    """A model whose weights the training begins with, instead of drawn ones: a run, a model directory, one as of
    Hugging Face, or a file of llama2.c. [model] must describe it, [tokenizer] be its own: `groundup new --start`."""
    device: str | None = None
    """Such as `cpu` or `cuda`; the best present if not set."""
    precision: Precision | None = None
    """Which numbers are kept in which type. If not set, `float32` and `bfloat16` are timed for a second each before
    step 1, and the faster is written into the run's recipe."""
    compile: bool | None = None
    """Let torch.compile fuse what stands between the matrix products. If not set, both are timed before step 1
    where the training is long enough, and the faster is written into the run's recipe."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What of a block's forward pass is computed again in the backward pass, to save memory: nothing, all but the
    products with weights, or everything."""
    loss: Annotated[NextToken | MultiToken, Field(discriminator="kind")] = NextToken()
    optimizer: Optimizer = AdamW()
    base_width: int | None = Field(default=None, ge=1)
    """Width (`model.d_model`) of a model for which the learning rate was found to be best: by the rules of width
    transfer it then is for this one (μP; Yang et al. 2022, arXiv:2203.03466). Nothing is scaled by width if not set."""
    schedule: Schedule = Cosine()
    average: Average = NoAverage()
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient; a longer one is shortened to it."""
    clip_value: float | None = Field(default=None, gt=0)
    """Largest value in the gradient, up or down, after it was shortened; not limited if not set."""
    guard: Guarding = SkipAndRollBack()
    validate_every: int = Field(default=200, ge=1)
    """Steps between measurements on the validation documents."""
    validation_tokens: int = Field(default=200_000, ge=1)
    """How much of them is read each time; the whole, if they have fewer."""
    evaluations: tuple[Evaluation, ...] = ()
    """Further measurements on them, such as `[{ task = "next_token_accuracy", every = 500 }]`."""
    health_every: int = Field(default=100, ge=1)
    """Steps between looks inside the layers, written to `health.jsonl`; more than `steps` for none."""
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

    sinks: tuple[Sink, ...] = ()
    """Other programs that get the metrics, besides the run's own files."""

    def batch_rows(self, step: int, context_length: int) -> int:
        """Rows of the step after `step` finished ones.

        >>> settings = PretrainSettings(batch_tokens=1024, batch_ramp=BatchRamp(start_tokens=256, steps=4))
        >>> [settings.batch_rows(step, 128) for step in range(6)], settings.rows_before(6, 128)
        ([2, 3, 5, 6, 8, 8], 32)
        """
        full = self.batch_tokens // context_length
        if self.batch_ramp is None or step >= self.batch_ramp.steps:
            return full
        start = self.batch_ramp.start_tokens // context_length
        return start + (full - start) * step // self.batch_ramp.steps

    def rows_before(self, step: int, context_length: int) -> int:
        """Rows of the first `step` steps together."""
        ramp = 0 if self.batch_ramp is None else min(step, self.batch_ramp.steps)
        grown = sum(self.batch_rows(earlier, context_length) for earlier in range(ramp))
        return grown + (step - ramp) * (self.batch_tokens // context_length)

    @model_validator(mode="after")
    def _batches_grow(self) -> "PretrainSettings":
        if self.batch_ramp is not None and self.batch_ramp.start_tokens >= self.batch_tokens:
            raise contradiction(
                f"batch_ramp.start_tokens = {self.batch_ramp.start_tokens:,} is not less than batch_tokens = "
                f"{self.batch_tokens:,}, to which batches should grow: lower it, or leave batch_ramp out",
                "batch_ramp.start_tokens",
                "batch_tokens",
            )
        if self.batch_ramp is not None and self.compile:
            raise contradiction(
                "compile = true, but with a batch_ramp batches have many sizes, and each would be compiled anew: set "
                "pretrain.compile=false, or leave batch_ramp out",
                "compile",
            )
        return self

    @model_validator(mode="after")
    def _warms_up_and_then_trains(self) -> "PretrainSettings":
        warmup = self.schedule.warmup_steps
        if warmup is not None and warmup >= self.steps:
            raise contradiction(
                f"schedule.warmup_steps = {warmup:,}, but there are only {self.steps:,} steps: the learning rate would "
                f"never come down from its top; set pretrain.schedule.warmup_steps={self.steps // 10}, or leave it out",
                "schedule.warmup_steps",
            )
        return self

    @model_validator(mode="after")
    def _falls_after_its_warm_up(self) -> "PretrainSettings":
        if isinstance(self.schedule, WarmupStableDecay):
            decay, rest = self.schedule.decay_steps or 0, self.steps - warmup_steps(self.schedule, self.steps)
            if decay > rest:
                raise contradiction(
                    f"schedule.decay_steps = {decay:,}, but after the warm-up only {rest:,} steps are left: set "
                    f"pretrain.schedule.decay_steps={self.steps // 5}, or leave it out",
                    "schedule.decay_steps",
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
    "pretrain.loss.z_loss",
    "pretrain.optimizer",
    "pretrain.schedule",
    "pretrain.schedule.kind",
    "pretrain.batch_ramp",
    "pretrain.average",
    "pretrain.clip",
    "pretrain.clip_value",
    "pretrain.guard",
    "pretrain.guard.kind",
    "pretrain.health_every",
    "pretrain.evaluations",
    "pretrain.sinks",
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
