"""Settings of many ranks: along which axes they share the work, and what they do about faults."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from groundup.errors import SettingsError
from groundup.settings import Settings
from groundup.words import contradiction


class GPipe(Settings):
    """All micro-batches forward, then all backward (Huang et al. 2019, arXiv:1811.06965)."""

    kind: Literal["gpipe"] = "gpipe"


class OneForwardOneBackward(Settings):
    """As soon as a micro-batch is through, back again: no more are kept than there are stages (PipeDream-flush)."""

    kind: Literal["1f1b"] = "1f1b"


class Interleaved(Settings):
    """1F1B with several stages a rank: a smaller bubble, more sending (Narayanan et al. 2021, arXiv:2104.04473)."""

    kind: Literal["interleaved"] = "interleaved"
    stages: int = Field(default=2, ge=2)
    """Stages that each rank holds."""


class ZeroBubble(Settings):
    """The gradients of weights are computed where a rank would wait, two stages a rank in the shape of a V (Qi et al.
    2023, arXiv:2401.10241)."""

    kind: Literal["zero_bubble"] = "zero_bubble"


PipelineSchedule = Annotated[GPipe | OneForwardOneBackward | Interleaved | ZeroBubble, Field(discriminator="kind")]
AXES = ("pipeline", "replicate", "shard", "context", "tensor")
"""From the slowest connection to the fastest: neighbouring ranks differ in the last."""


def in_words(sizes: Mapping[str, int], one: str) -> str:
    """The axes that have more than one rank; `one` if none has.

    >>> in_words({"pipeline": 1, "shard": 4, "tensor": 2}, "one rank")
    'shard 4 × tensor 2'
    """
    return " × ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or one


class ParallelSettings(Settings):
    """How many ranks share what: the product of `pipeline`, `replicate`, `shard`, `context` and `tensor` is their
    number. Experts are spread over ranks that otherwise share rows or positions."""

    replicate: int | None = Field(default=None, ge=1)
    """Groups of ranks that hold the same weights and learn from other rows; what is left of the ranks if not set."""
    shard: int | None = Field(default=None, ge=1)
    """Ranks over which weights, gradients and optimizer state are cut, each learning from rows of its own (ZeRO;
    Rajbhandari et al. 2020, arXiv:1910.02054). If not set 1, or as many as `expert` needs."""
    zero: Literal[1, 2, 3] = 3
    """What is kept cut between its uses: 1 the optimizer's state and master weights; 2 gradients, too; 3 the weights of
    the passes, too."""
    tensor: int = Field(default=1, ge=1)
    """Ranks that share each matrix: heads, inner units, vocabulary; between them they share the positions (Shoeybi et
    al. 2019, arXiv:1909.08053; Korthikanti et al. 2022, arXiv:2205.05198)."""
    pipeline: int = Field(default=1, ge=1)
    """Ranks that hold consecutive layers."""
    schedule: PipelineSchedule = OneForwardOneBackward()
    """The order in which a pipeline's ranks go forward and backward."""
    context: int = Field(default=1, ge=1)
    """Ranks that share the positions of each row; keys and values go round (ring attention; Liu et al. 2023,
    arXiv:2310.01889)."""
    expert: int = Field(default=1, ge=1)
    """Ranks over which the experts of each mixture are spread; it divides `replicate × shard × context`."""
    offload: bool = False
    """Keep master weights and optimizer state in the host's memory, and step there."""
    exact: bool = False
    """The same bits for any number of ranks: every sum is the same tree over the same micro-batches. Only with `shard`
    and `replicate`; it costs memory and time (docs/parallel.md)."""
    elastic: bool = False
    """After the loss of ranks go on with those that are left; `replicate` is then not set."""
    restarts: int = Field(default=3, ge=0)
    """How often ranks that failed are started again, from the newest checkpoint."""
    timeout_seconds: int = Field(default=600, ge=1)
    """A rank that others wait for so long has hung: the run ends, and says which and where."""

    @model_validator(mode="after")
    def _check_elastic(self) -> Self:
        if self.elastic and self.replicate is not None:
            raise contradiction(
                f"elastic = true, but replicate = {self.replicate} fixes the number of ranks: leave replicate out, it "
                "then is what is left of them",
                "elastic",
                "replicate",
            )
        return self

    @property
    def fewest_ranks(self) -> int:
        """How many there are where `replicate` is not set, and so one.

        >>> ParallelSettings(tensor=2, pipeline=2).fewest_ranks
        4
        """
        return self.pipeline * (self.replicate or 1) * self._shard * self.context * self.tensor

    @property
    def _shard(self) -> int:
        return self.shard if self.shard is not None else max(1, self.expert // self.context)

    @property
    def sums_once(self) -> bool:
        """Whether gradients are added up over ranks once a step: where each keeps them whole anyway."""
        return self.zero == 1 or (self.shard in (None, 1) and self.context == self.expert == 1)

    def sizes(self, ranks: int) -> dict[str, int]:
        """Size of each of `AXES` for this many ranks.

        Raises:
            SettingsError: their product is not that number; it names the nearest that fits.

        >>> ParallelSettings(tensor=2).sizes(8)
        {'pipeline': 1, 'replicate': 4, 'shard': 1, 'context': 1, 'tensor': 2}
        """
        shard = self._shard
        fixed = self.pipeline * shard * self.context * self.tensor
        replicate = self.replicate if self.replicate is not None else max(1, ranks // fixed)
        if self.exact:  # what would be alike on several ranks is cut over them: the sums are the same
            fixed, shard, replicate = fixed * replicate, shard * replicate, 1
        product = fixed * replicate
        named = {"pipeline": self.pipeline, "replicate": replicate, "shard": shard} | {
            "context": self.context,
            "tensor": self.tensor,
        }
        if product != ranks:
            nearest = max(fixed, ranks // fixed * fixed) if self.replicate is None else product
            raise SettingsError(
                f"[parallel] {in_words(named, '1')} = {product:,} ranks, but there {'is' if ranks == 1 else 'are'} "
                f"{ranks:,}: start {nearest:,} (--ranks {nearest}), or change a size"
            )
        if replicate * shard * self.context % self.expert:
            raise SettingsError(
                f"parallel.expert = {self.expert} does not divide replicate × shard × context = "
                f"{replicate * shard * self.context}: set parallel.shard={self.expert}"
            )
        return named
