"""Settings of the guard: what is done when a step goes wrong."""

from typing import Annotated, Literal

from pydantic import Field

from groundup.settings import Settings


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
