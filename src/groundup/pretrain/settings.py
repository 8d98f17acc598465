"""Settings of pretraining."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from groundup.evals.settings import Benchmark, Evaluation
from groundup.settings import Settings
from groundup.train.settings import TrainingSettings
from groundup.words import contradiction


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
    """Weight of their mean cross-entropy; the next token's has 1 (DeepSeek-V3 began with 0.3)."""


class BatchRamp(Settings):
    """Batches that grow in a straight line from a few rows to all of them (Brown et al. 2020, arXiv:2005.14165,
    appendix B); early gradients are so alike that fewer rows tell the same."""

    start_tokens: int = Field(ge=1)
    """In the first step, a multiple of the context length, fewer than `batch_tokens`."""
    steps: int = Field(ge=1)
    """Steps over which they grow; the one after them is the first to have `batch_tokens`."""


class PretrainSettings(TrainingSettings):
    """Batches, loss and start of pretraining, and how often to validate, evaluate and write a sample."""

    TABLE = "pretrain"
    FIXED = (*TrainingSettings.FIXED, "start", "loss.kind", "loss.extra_tokens", "base_width")

    batch_tokens: int = Field(default=8192, ge=1)
    """Tokens per step, a multiple of the context length."""
    batch_ramp: BatchRamp | None = None
    start: str | None = None
    """A model whose weights the training begins with, instead of drawn ones: a run, a model directory, one as of
    Hugging Face, or a file of llama2.c. [model] must describe it, [tokenizer] be its own: `groundup new --start`."""
    loss: Annotated[NextToken | MultiToken, Field(discriminator="kind")] = NextToken()
    base_width: int | None = Field(default=None, ge=1)
    """Width (`model.d_model`) of a model for which the learning rate was found to be best: by the rules of width
    transfer it then is for this one (μP; Yang et al. 2022, arXiv:2203.03466). Nothing is scaled by width if not set."""
    validation_tokens: int = Field(default=200_000, ge=1)
    """How much of the validation documents is read each time; the whole, if they have fewer."""
    evaluations: tuple[Evaluation, ...] = ()
    """Further measurements on them, such as `[{ task = "next_token_accuracy", every = 500 }]`."""
    benchmarks: tuple[Benchmark, ...] = ()
    """Benchmarks that it is asked meanwhile, such as `[{ task = "hellaswag", data = "benchmarks", every = 1000 }]`."""
    sample_every: int = Field(default=200, ge=1)
    """Steps between texts written during the run."""
    sample_prompt: str = "Once upon a time"
    """Beginning of such a text."""
    sample_tokens: int = Field(default=80, ge=0)
    """Most tokens that are added to it."""

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

    def tokens(self, context_length: int) -> int:
        """Tokens of the whole training."""
        return self.rows_before(self.steps, context_length) * context_length

    @model_validator(mode="after")
    def _check_batches_grow(self) -> Self:
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
