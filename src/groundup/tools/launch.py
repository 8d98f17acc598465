"""Launch: how a recipe is started on many machines, as a Slurm script or as the line to run on each of them."""

import math
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from groundup.errors import SettingsError
from groundup.parallel.settings import in_words
from groundup.recipe import Recipe
from groundup.words import plural

PORT = 29400
"""Of the first node, where the nodes meet: torchrun's own default."""
SECONDS_TO_SAVE = 300
"""How long before the time limit, or an announced preemption, ranks are asked to save and stop."""


@dataclass(frozen=True)
class Launch:
    """A recipe on so many machines.

    Raises:
        SettingsError: sizes of `[parallel]` whose product is not the number of ranks.
    """

    recipe_file: Path
    overrides: Sequence[str]
    nodes: int
    ranks_per_node: int

    def __post_init__(self) -> None:
        self.recipe.parallel.sizes(self.ranks)

    @property
    def recipe(self) -> Recipe:
        return Recipe.load(self.recipe_file, self.overrides)

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def fewest_nodes(self) -> int:
        """With how many the training still goes on after others failed."""
        parallel = self.recipe.parallel
        for nodes in range(1, self.nodes if parallel.elastic else 1):
            with suppress(SettingsError):
                parallel.sizes(nodes * self.ranks_per_node)
                return nodes
        return self.nodes

    @property
    def layout(self) -> str:
        """How the ranks share the work, in words."""
        sizes = self.recipe.parallel.sizes(self.ranks)
        return f"{plural(self.ranks, 'rank')} on {plural(self.nodes, 'node')}: {in_words(sizes, 'alone')}"

    @property
    def warning(self) -> str:
        """What makes this layout slow; empty if nothing is known to."""
        tensor = self.recipe.parallel.tensor
        if math.gcd(tensor, self.ranks_per_node) == tensor:
            return ""
        return (
            f"parallel.tensor = {tensor} spans nodes of {plural(self.ranks_per_node, 'rank')}, whose network is far "
            f"slower than the connection inside a node: take one that divides {self.ranks_per_node}"
        )

    def line(self, first_node: str, run_id: str, python: str = sys.executable) -> str:
        """What every node runs, alike; `first_node` and `run_id` stand in it as a shell reads them."""
        fewest = self.fewest_nodes
        torchrun = [python, "-m", "torch.distributed.run"]  # what `torchrun` is
        nodes = str(self.nodes) if fewest == self.nodes else f"{fewest}:{self.nodes}"
        options = [f"--nnodes={nodes}", f"--nproc-per-node={self.ranks_per_node}", "--rdzv-backend=c10d"]
        restarts = [f"--max-restarts={self.recipe.parallel.restarts}", "-m", "groundup", "build"]
        words = [str(self.recipe_file), *self.overrides, "--ranks", str(self.ranks)]
        meeting = f'--rdzv-endpoint="{first_node}:{PORT}" --rdzv-id="{run_id}"'
        return f"{shlex.join([*torchrun, *options])} {meeting} {shlex.join([*restarts, *words])}"

    def lines(self, first_node: str) -> str:
        """The line, and where to run it."""
        return f"# on each of the {plural(self.nodes, 'node')}\n{self.line(first_node, self.recipe.name)}\n"

    def slurm(self, command: str, hours: float) -> str:
        """A script for `sbatch`, which is put back into the queue when it was preempted or its time was over.

        Args:
            command: that wrote it, for its header.
            hours: the time limit of one stay in the queue; the training goes on in the next.
        """
        recipe, minutes = self.recipe, round(hours * 60)
        nodes = str(self.nodes) if self.fewest_nodes == self.nodes else f"{self.fewest_nodes}-{self.nodes}"
        gpus = [] if recipe.pretrain.device == "cpu" else [f"#SBATCH --gpus-per-node={self.ranks_per_node}"]
        elastic = ["#SBATCH --no-kill"] if recipe.parallel.elastic else []
        header = [
            "#!/usr/bin/env bash",
            f"# {recipe.name}, {self.layout}",
            f"# written by: {command}",
            f"#SBATCH --job-name={recipe.name}",
            f"#SBATCH --nodes={nodes}",
            "#SBATCH --ntasks-per-node=1",
            *gpus,
            *elastic,
            "#SBATCH --exclusive",
            f"#SBATCH --time={minutes // 60}:{minutes % 60:02}:00",
            f"#SBATCH --output={recipe.name}-%j.log",
            "#SBATCH --open-mode=append",
            "#SBATCH --requeue",
            f"#SBATCH --signal=B:SIGTERM@{SECONDS_TO_SAVE}",
        ]
        return (
            "\n".join(header)
            + "\n"
            + SCRIPT.format(
                patience=SECONDS_TO_SAVE - 30, line=self.line("$first", "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}")
            )
        )


SCRIPT = """
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={patience}  # seconds that ranks have to save after the signal
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
asked=
trap 'asked=yes; kill -TERM "$step"' TERM
srun {line} &
step=$!
wait "$step"
code=$?
if [ -n "$asked" ]; then # the wait ended with the signal; the ranks save
  wait "$step"
  code=$?
  [ "$code" = 0 ] || code=75
fi
if [ "$code" = 75 ]; then # saved, run again
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
