"""Settings that every training has: its length, precision, optimizer, guard, checkpoints and loggers."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

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
from groundup.settings import Settings
from groundup.words import contradiction

STEPS_PER_FLUSH = 10
"""Metrics are written this often: reading a loss waits for the device."""


class SkipAndRollBack(Settings):
    """Leave out a step whose loss or gradient is not a number or far above the last ones; after several in a row, go
    back to a checkpoint from before them and jump over the rows since (Chowdhery et al. 2022, arXiv:2204.02311,
    section 5.1)."""

    kind: Literal["rollback"] = "rollback"
    window: int = Field(default=128, ge=8)
    """Good steps that a step is compared with, the newest so many."""
    warmup_steps: int = Field(default=64, ge=8)
    """Good steps before anything finite is called a spike; what is not a number is bad from the first step on."""
    loss_deviations: float = Field(default=8.0, gt=0)
    """A loss so many deviations above the median of the window is a spike."""
    grad_norm_deviations: float = Field(default=12.0, gt=0)
    """The same for the logarithm of the gradient's norm."""
    patience: int = Field(default=5, ge=1)
    """Bad steps in a row that are only left out; at the last of them training goes back."""
    steps_back: int = Field(default=20, ge=0)
    """The checkpoint to go back to should be at least so many steps older than the first bad step."""
    rollbacks: int = Field(default=5, ge=0)
    """How often a run may go back; the next time it ends as diverged. With 0, at the first."""


class NoGuard(Settings):
    """Take every step; end as diverged when a loss or gradient is not a number."""

    kind: Literal["none"] = "none"


Guarding = Annotated[SkipAndRollBack | NoGuard, Field(discriminator="kind")]


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


Logger = Annotated[TensorBoard | WeightsAndBiases | Trackio | MLflow, Field(discriminator="kind")]


class TrainingSettings(Settings):
    """Steps, precision, optimizer, guard, checkpoints and loggers; each kind of training adds its own settings."""

    TABLE: ClassVar[str] = "training"
    """The recipe's table, which messages name."""
    FIXED: ClassVar[tuple[str, ...]] = ("seed", "precision", "optimizer.kind", "average.kind")
    """What a training under way cannot take over when the recipe changes: its state would lose its shape or meaning."""

    steps: int = Field(default=1000, ge=1)
    """Optimizer steps to take. Fixed here, never by a clock: the same recipe is the same run on any machine."""
    micro_batch_rows: int = Field(default=16, ge=1)
    """Most rows that go through the model at once; gradients of the others are added up. A matter of memory:
    results change only by rounding."""
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    """Seed of the initial weights, the order of the rows, and dropout."""
    device: str | None = None
    """Such as `cpu` or `cuda`; the best present if not set."""
    precision: Precision | None = None
    """Which numbers are kept in which type. If not set, `float32` and `bfloat16` are timed for a second each before
    step 1, and the faster is written into the run's recipe."""
    compile: bool | None = None
    """Let torch.compile fuse what stands between the matmuls. If not set, both are timed before step 1
    where the training is long enough, and the faster is written into the run's recipe."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What of a block's forward pass is computed again in the backward pass, to save memory: nothing, all but the
    matmuls with weights, or everything."""
    optimizer: Optimizer = AdamW()
    schedule: Schedule = Cosine()
    average: Average = NoAverage()
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient; a longer one is shortened to it."""
    clip_value: float | None = Field(default=None, gt=0)
    """Largest value in the gradient, up or down, after it was shortened; not limited if not set."""
    guard: Guarding = SkipAndRollBack()
    validate_every: int = Field(default=200, ge=1)
    """Steps between measurements on the validation documents."""
    health_every: int = Field(default=100, ge=1)
    """Steps between measurements of each layer, written to `health.jsonl`; more than `steps` for none."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints. One more is written on Ctrl-C or SIGTERM, and one at the end."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of the newest stay; older ones are removed once a newer one has been written and read back."""
    keep_every_steps: int | None = Field(default=None, ge=1)
    """Checkpoints of steps that are multiples of this stay too."""
    keep_best: bool = False
    """The one with the lowest validation bits per byte stays too, of those at whose step it was measured."""
    failed_checkpoints: int = Field(default=3, ge=1)
    """Training goes on when a checkpoint cannot be written, as on a full disk; after so many in a row it ends."""
    loggers: tuple[Logger, ...] = ()
    """Other programs that get the metrics, besides the run's own files."""

    @classmethod
    def may_change(cls, name: str) -> bool:
        """Whether a training under way goes on with another value of this setting, given with its table.

        >>> TrainingSettings.may_change("training.clip"), TrainingSettings.may_change("training.precision.kind")
        (True, False)
        """
        table, _, setting = name.partition(".")
        return table == cls.TABLE and not any(f"{setting}.".startswith(f"{fixed}.") for fixed in cls.FIXED)

    @model_validator(mode="after")
    def _check_schedule_fits_steps(self) -> Self:
        warmup = self.schedule.warmup_steps
        if warmup is not None and warmup >= self.steps:
            raise contradiction(
                f"schedule.warmup_steps = {warmup:,}, but there are only {self.steps:,} steps: the learning rate would "
                f"never come down from its top; set {self.TABLE}.schedule.warmup_steps={self.steps // 10}, or leave it "
                "out",
                "schedule.warmup_steps",
            )
        if isinstance(self.schedule, WarmupStableDecay):
            decay, rest = self.schedule.decay_steps or 0, self.steps - warmup_steps(self.schedule, self.steps)
            if decay > rest:
                raise contradiction(
                    f"schedule.decay_steps = {decay:,}, but after the warm-up only {rest:,} steps are left: set "
                    f"{self.TABLE}.schedule.decay_steps={self.steps // 5}, or leave it out",
                    "schedule.decay_steps",
                )
        return self
