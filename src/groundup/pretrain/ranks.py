"""Pretraining on many ranks: what each of them does, and what is checked before any is started."""

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from groundup.artifacts import is_made, lock, read_manifest
from groundup.errors import SettingsError
from groundup.files import Progress, no_progress, sha256_of_file
from groundup.model.settings import Experts, ModelConfig
from groundup.optim.precision import weight_dtype
from groundup.optim.settings import Adafactor, Bfloat16, Float8, Float32, Muon
from groundup.parallel.settings import ParallelSettings
from groundup.parallel.stages import stages_a_rank
from groundup.parallel.world import World
from groundup.pretrain.run import pretrain
from groundup.pretrain.settings import PretrainSettings
from groundup.processes.watch import compare
from groundup.weights.load import find_device


@dataclass(frozen=True)
class PretrainJob:
    """What the first rank tells the others to do: the arguments of `pretrain`."""

    model: ModelConfig
    settings: PretrainSettings
    parallel: ParallelSettings
    run: Path
    inputs: dict[str, str]
    start: Path | None = None
    until: int | None = None


def pretrain_rank(
    training: PretrainJob | None,
    recipe: str,
    device: torch.device,
    ranks: int,
    progress: Progress = no_progress,
) -> None:
    """`pretrain` on this rank of the process group that it has joined.

    Args:
        training: on the first rank; the others are told.
        recipe: a digest of the recipe that this rank was started with.

    Raises:
        SettingsError: ranks with different recipes, code, torch or shards; naming which.
    """
    told = [training]
    dist.broadcast_object_list(told, src=0)
    job = told[0]
    assert job is not None and job.settings.precision is not None, "chosen before ranks are started"
    shards = job.run / "shards"
    compare(
        {
            "the recipe": recipe,
            "groundup's code": _digest_of_code(),
            "torch": str(torch.__version__),
            f"the shards in {shards}": read_manifest(shards).digest if is_made(shards) else "none",
        }
    )
    if job.settings.device == "cpu":
        device = torch.device("cpu")
    if job.parallel.exact:
        torch.set_num_threads(1)  # how a matmul is shared out over threads changes its bits
    dtype = weight_dtype(job.settings.precision)
    world = World.of(job.parallel, ranks, device, dtype, job.settings.micro_batch_rows)
    alone = lock(job.run / "pretrain") if dist.get_rank() == 0 else nullcontext()
    with alone:  # ranks may outlive for a while who started them, and with it the lock of the run
        pretrain(job.model, job.settings, job.run, job.inputs, job.start, progress, until=job.until, world=world)


def _digest_of_code() -> str:
    package = Path(__file__).parents[1]
    digests = [sha256_of_file(path) for path in sorted(package.rglob("*.py"))]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]


def ready_for_ranks(
    model: ModelConfig, settings: PretrainSettings, parallel: ParallelSettings, ranks: int
) -> PretrainSettings:
    """The settings with the choices that they leave open. Nothing is timed: one process may not hold the model.

    Raises:
        SettingsError: naming what cannot be shared out, and the nearest that works.
    """
    check_layout(model, settings, parallel, ranks)
    device = find_device(settings.device)
    precision = settings.precision or (Bfloat16() if device.type == "cuda" else Float32())
    chosen = {"device": str(device), "precision": precision, "compile": bool(settings.compile)}
    return settings.model_copy(update=chosen)


def check_layout(model: ModelConfig, settings: PretrainSettings, parallel: ParallelSettings, ranks: int) -> None:
    sizes = parallel.sizes(ranks)
    experts = model.feedforward.n_experts if isinstance(model.feedforward, Experts) else 0
    chunks, rows = 2 * sizes["context"], settings.batch_rows(0, model.context_length)
    row_ranks = sizes["replicate"] * sizes["shard"]
    whole_blocks = sizes["tensor"] == sizes["context"] == sizes["pipeline"] == parallel.expert == 1
    for wrong, message in (
        (
            sizes["tensor"] > model.n_heads,
            f"parallel.tensor = {sizes['tensor']}, but model.n_heads = {model.n_heads}: each rank needs a head",
        ),
        (
            sizes["pipeline"] > 1 and sizes["pipeline"] * stages_a_rank(parallel.schedule) > model.n_layers,
            f"parallel.pipeline = {sizes['pipeline']} with {stages_a_rank(parallel.schedule)} stages a rank needs as "
            f"many layers, but model.n_layers = {model.n_layers}",
        ),
        (
            sizes["context"] > 1 and model.context_length % chunks != 0,
            f"parallel.context = {sizes['context']} cuts rows into {chunks} chunks, which model.context_length = "
            f"{model.context_length:,} is no multiple of: the nearest is "
            f"{max(1, round(model.context_length / chunks)) * chunks:,}",
        ),
        (
            parallel.expert > 1 and not experts,
            f"parallel.expert = {parallel.expert}, but the model has no experts: set model.feedforward=experts, or "
            "leave it out",
        ),
        (
            experts > 0 and experts % parallel.expert != 0,
            f"parallel.expert = {parallel.expert} does not divide the {experts} experts",
        ),
        (
            rows < row_ranks,
            f"pretrain.batch_tokens makes {rows} rows at first, fewer than the {row_ranks} ranks that share them: set "
            f"pretrain.batch_tokens={row_ranks * model.context_length}, or more ranks for tensor or context",
        ),
        (
            bool(settings.compile) and not whole_blocks,
            "pretrain.compile = true, but blocks that ranks compute together are not compiled: leave it out, or share "
            "rows alone (replicate, shard)",
        ),
        (
            isinstance(settings.precision, Float8),
            "pretrain.precision = float8 is not for many ranks: set pretrain.precision=bfloat16",
        ),
    ):
        if wrong:
            raise SettingsError(message)
    if parallel.exact:
        _check_exact(model, settings, ranks, whole_blocks)


def _check_exact(model: ModelConfig, settings: PretrainSettings, ranks: int, whole_blocks: bool) -> None:
    rows, micro = settings.batch_rows(settings.steps, model.context_length), settings.micro_batch_rows
    micro_batches = rows // micro
    for wrong, message in (
        (not whole_blocks, "works with replicate and shard alone"),
        (
            isinstance(settings.optimizer, Adafactor | Muon),
            f"works with optimizers that step each weight by itself, and not with {settings.optimizer.kind}",
        ),
        (settings.batch_ramp is not None, "needs batches of one size: leave pretrain.batch_ramp out"),
        (
            ranks & (ranks - 1) != 0,
            f"adds up in pairs, which {ranks} ranks do not make: start {1 << (ranks.bit_length() - 1)} or "
            f"{1 << ranks.bit_length()}",
        ),
        (
            rows % micro != 0 or micro_batches % ranks != 0,
            f"gives each of {ranks} ranks as many micro-batches of the same size, but there are {rows} rows in "
            f"micro-batches of {micro}: set pretrain.micro_batch_rows={max(1, rows // ranks)}",
        ),
    ):
        if wrong:
            raise SettingsError(f"parallel.exact = true {message}")
