"""Many ranks train as one process does: every mode alone and together, over all shapes; and where a collective is taken
out, that is seen.

The cases of as many ranks share one launch of processes, which run this file; each reads its own result.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import logging
import os
import re
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from groundup.batch import total_weight
from groundup.model.settings import ModelConfig
from groundup.parallel import collectives, experts, ring, tensor
from groundup.parallel import shard as sharding
from groundup.parallel.settings import ParallelSettings
from groundup.parallel.stages import Pipeline
from groundup.parallel.world import World
from groundup.pretrain.settings import PretrainSettings
from groundup.settings import Table
from groundup.tools.shrink import Trial
from groundup.tools.verify import TOLERANCE, Stepping, compare
from groundup.train.ranks import ManyRanks

SIZES = {
    "vocab_size": 96,
    "context_length": 32,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "d_ff": 48,
}
MIXTURE = {"kind": "experts", "n_experts": 4, "n_active": 2, "n_shared": 1, "balance": 0.1}
SHAPES: dict[str, Table] = {
    "llama": {},
    "untied": {"head": {"tied": False}},
    "gpt2": {"position": "learned", "norm": "layernorm", "feedforward": "gelu", "n_kv_heads": 4,
             "attention": {"bias": "all"}, "head": {"bias": True}},
    "alibi": {"position": "alibi", "attention": {"qk_norm": "head"}},
    "full qk-norm": {"attention": {"qk_norm": "full"}},
    "caps, windows": {"attention": {"soft_cap": 5.0, "window": 7, "windowed_layers": [True, False]},
                      "head": {"soft_cap": 3.0}, "block": {"norm": "around"}},
    "latent": {"attention": {"kind": "latent", "d_latent": 12, "d_query_latent": 10, "d_rotary": 4}, "n_kv_heads": 4},
    "mixture": {"feedforward": MIXTURE},
    # No size divides over two ranks, and four are more than there are key/value heads.
    "odd": {"vocab_size": 97, "context_length": 36, "n_heads": 9, "n_kv_heads": 3, "d_head": 6, "d_ff": 51,
            "n_layers": 3},
    "parallel blocks": {"block": {"kind": "parallel"}, "embedding_norm": True, "d_embedding": 20},
    "dropout": {"dropout": 0.2, "attention": {"dropout": 0.1}},
    "multi-query": {"n_kv_heads": 1, "attention": {"bias": "qkv"}, "block": {"norm": "after"}},
}  # fmt: skip
TWO_AHEAD = {"loss": {"kind": "multi_token", "extra_tokens": 2}}


@dataclass(frozen=True)
class Case:
    parallel: Table
    shape: str = "llama"
    model: Table | None = None
    """What else the model has."""
    pretrain: Table | None = None
    dtype: torch.dtype = torch.float64
    without: str = ""
    """The collective that is taken out."""

    def steps(self, ranks: int) -> dict[Stepping, int]:
        """Gradients are compared in every step as they are before clipping; over two ranks also what one step of plain
        descent makes of them, which hides no factor."""
        if self.without:
            return {"sgd": 1}
        return {"recipe": 5, "sgd": 1} if ranks == 2 else {"recipe": 5}

    def trial(self) -> Trial:
        kinds = {"attention": "grouped_query", "head": "language_model", "block": "sequential"}
        table = SIZES | SHAPES[self.shape] | (self.model or {})
        table |= {
            name: {"kind": kind, **table[name]} for name, kind in kinds.items() if isinstance(table.get(name), dict)
        }
        parallel = ParallelSettings.from_table(self.parallel)
        settings = PretrainSettings.from_table(
            {
                "precision": "float32",
                "loss": {"kind": "next_token", "z_loss": 1e-3},
                "average": "ema",
                **(self.pretrain or {}),
            }
        )
        row_ranks = (parallel.replicate or 1) * (parallel.shard or max(1, parallel.expert // parallel.context))
        rows = 8 // row_ranks
        settings = settings.model_copy(update={"micro_batch_rows": -(-rows // (4 if parallel.pipeline > 1 else 2))})
        return Trial(ModelConfig.from_table(table), settings, parallel, 8)


def over(shapes: Iterable[str], **parallel: Any) -> dict[str, Case]:
    name = " x ".join(f"{axis} {size}" for axis, size in parallel.items())
    return {f"{name}: {shape}": Case(parallel, shape) for shape in shapes}


# --- the cases ---

QUICK: dict[int, dict[str, Case]] = {
    2: {
        "tensor: odd": Case({"tensor": 2}, "odd"),
        "context: caps, windows": Case({"context": 2}, "caps, windows"),
        "pipeline: tied": Case({"pipeline": 2}),
        "shard without its sum": Case({"shard": 2}, "gpt2", without="shard's sum"),
    },
    4: {
        "pipeline x tensor: latent": Case({"pipeline": 2, "tensor": 2}, "latent"),
        "expert x tensor": Case({"expert": 2, "tensor": 2}, "mixture"),
    },
}
OPTIMIZERS = {
    f"{kind}: {' x '.join(parallel)}": Case(parallel, "mixture", pretrain={"optimizer": {"kind": kind}})
    for kind in ("lion", "adafactor", "muon")
    for parallel in ({"shard": 2}, {"tensor": 2}, {"expert": 2}, {"pipeline": 2})
}
SLOW: dict[int, dict[str, Case]] = {
    2: over(SHAPES, tensor=2)
    | over(SHAPES, context=2)
    | over(SHAPES, pipeline=2)
    | over(["llama", "odd", "mixture", "gpt2"], shard=2)
    | over(["llama", "mixture"], shard=2, zero=2)
    | over(["llama", "mixture"], shard=2, zero=1)
    | over(["llama", "mixture"], replicate=2)
    | over(["mixture"], expert=2)
    | over(["llama", "untied"], pipeline=2, schedule="gpipe")
    | {
        "interleaved": Case({"pipeline": 2, "schedule": "interleaved"}, model={"n_layers": 5}),
        "zero bubble": Case({"pipeline": 2, "schedule": "zero_bubble"}, model={"n_layers": 5}),
        "zero bubble: untied": Case({"pipeline": 2, "schedule": "zero_bubble"}, "untied", {"n_layers": 4}),
        "zero bubble: mixture": Case({"pipeline": 2, "schedule": "zero_bubble"}, "mixture", {"n_layers": 4}),
        **{f"{axis}: two tokens ahead": Case({axis: 2}, pretrain=TWO_AHEAD) for axis in
           ("tensor", "context", "pipeline", "shard")},
        **{f"{axis}: recomputed": Case({axis: 2}, pretrain={"recompute": "full"}) for axis in
           ("tensor", "context", "pipeline", "shard")},
        **{f"{axis}: float32": Case({axis: 2}, dtype=torch.float32) for axis in
           ("tensor", "context", "pipeline", "shard")},
        "lion: what rounding alone moves": Case({"tensor": 2}, "gpt2", pretrain={"optimizer": "lion"}),
        "adafactor: what rounding alone moves": Case({"tensor": 2}, "gpt2", pretrain={"optimizer": "adafactor"}),
        "offload": Case({"shard": 2, "offload": True}),
        "exact": Case({"shard": 2, "exact": True}, "dropout"),
        "largest values": Case({"shard": 2}, pretrain={"clip_value": 1e-3}),
        **OPTIMIZERS,
    },
    4: over(["odd", "mixture", "multi-query"], tensor=4)
    | over(["alibi", "caps, windows"], context=4)
    | over(["mixture", "odd"], shard=2, tensor=2)
    | over(["latent", "mixture"], context=2, shard=2)
    | over(["gpt2", "alibi", "odd", "dropout"], context=2, tensor=2)
    | over(["untied", "caps, windows"], pipeline=2, tensor=2)
    | over(["gpt2", "mixture"], pipeline=2, shard=2)
    | over(["latent", "dropout"], pipeline=2, context=2)
    | over(["mixture"], replicate=2, shard=2)
    | over(["llama"], replicate=2, shard=2, zero=1)
    | over(["mixture"], expert=4)
    | over(["mixture"], expert=2, context=2)
    | over(["mixture"], expert=2, shard=4)
    | over(["mixture"], expert=2, pipeline=2)
    | {
        "exact: fewer rows than ranks": Case({"shard": 4, "exact": True}, "mixture",
                                             {"feedforward": MIXTURE | {"n_experts": 5}}),
        "pipeline 4": Case({"pipeline": 4}, model={"n_layers": 5}),
        "zero bubble 4": Case({"pipeline": 4, "schedule": "zero_bubble"}, model={"n_layers": 8}),
        "muon: shard x tensor": Case({"shard": 2, "tensor": 2}, pretrain={"optimizer": {"kind": "muon"}}),
        "adafactor: shard x tensor": Case({"shard": 2, "tensor": 2}, pretrain={"optimizer": {"kind": "adafactor"}}),
        "offload: shard x tensor": Case({"shard": 2, "tensor": 2, "offload": True}),
        "two tokens ahead: context x tensor": Case({"context": 2, "tensor": 2}, pretrain=TWO_AHEAD),
    },
    8: over(["gpt2", "odd"], pipeline=2, shard=2, tensor=2)
    | over(["latent"], context=2, shard=2, tensor=2)
    | over(["alibi"], pipeline=2, context=2, tensor=2)
    | over(["caps, windows"], pipeline=2, context=2, shard=2)
    | over(["untied"], replicate=2, shard=2, tensor=2)
    | over(["mixture"], replicate=2, expert=2, tensor=2)
    | over(["mixture"], pipeline=2, expert=2, tensor=2)
    | over(["mixture"], context=2, expert=4, tensor=2)
    | over(["parallel blocks"], replicate=2, shard=4, zero=2)
    | {"pipeline 4 x tensor 2: full qk-norm": Case({"pipeline": 4, "tensor": 2}, "full qk-norm", {"n_layers": 5})}
    | {"zero bubble 4 x shard 2": Case({"pipeline": 4, "schedule": "zero_bubble", "shard": 2}, model={"n_layers": 9})},
}  # fmt: skip
MUTATED: dict[int, dict[str, Case]] = {
    2: {
        "tensor's sum out of a region": Case({"tensor": 2}),
        "tensor's sum, where positions do not divide": Case({"tensor": 2}, "odd", {"context_length": 35}),
        "the gather's backward": Case({"tensor": 2}),
        "shard's sum": Case({"shard": 2}),
        "replicate's sum": Case({"replicate": 2}),
        "the norm's sum": Case({"shard": 2}),
        "the exchange of tied halves": Case({"pipeline": 2}),
        "the ring's way home": Case({"context": 2}),
        "the experts' way back": Case({"expert": 2}, "mixture"),
        "the weight's sum": Case({"shard": 2}),
    },
    4: {
        "tensor's sum out of a region": Case({"tensor": 2, "shard": 2}),
        "the gather's backward": Case({"tensor": 2, "context": 2}),
        "shard's sum": Case({"pipeline": 2, "shard": 2}),
        "the norm's sum": Case({"tensor": 2, "pipeline": 2}),
        "the ring's way home": Case({"context": 2, "shard": 2}),
        "the experts' way back": Case({"expert": 2, "tensor": 2}, "mixture"),
        "the exchange of tied halves": Case({"pipeline": 2, "context": 2}),
        "the weight's sum": Case({"replicate": 2, "shard": 2}),
    },
}
for ranks, mutated in MUTATED.items():
    SLOW[ranks] |= {f"without {name}": replace(case, without=name) for name, case in mutated.items()}
CASES = {"quick": QUICK, "slow": SLOW}


# --- collectives taken out ---


def taken_out(name: str) -> contextlib.AbstractContextManager[Any]:
    """Inside, this collective is missing: each rank goes on with its own part."""

    def own(x: Tensor, group: dist.ProcessGroup, dim: int = 1) -> Tensor:
        return x.chunk(group.size(), dim)[group.rank()]

    def reduce_scatter(
        self: Any, output_tensor: Tensor, input_tensor: Tensor, group: Any, *rest: Any, **more: Any
    ) -> None:
        output_tensor.copy_(own(input_tensor, group, 0))

    def keep_gradients(tensors: Any, group: Any) -> Any:
        moved = pass_on(tensors[:4], group)
        return (*moved, *tensors[4:])

    pass_on = ring._pass_on
    all_reduce = dist.all_reduce

    def no_sum_over_copies(x: Tensor, *arguments: Any, **more: Any) -> Any:
        return None if sys._getframe(1).f_code.co_name == "foreach_reduce" else all_reduce(x, *arguments, **more)

    fsdp = torch.distributed.fsdp._fully_shard._fsdp_collectives
    outs: dict[str, Callable[[], Any]] = {
        "tensor's sum out of a region": lambda: patch.object(tensor, "scatter", own),
        "tensor's sum, where positions do not divide": lambda: patch.object(tensor, "sum_of", lambda x, group: x),
        "the gather's backward": lambda: patch.object(
            collectives._Gather, "backward", staticmethod(lambda ctx, x: (own(x, ctx.group), None))),
        "shard's sum": lambda: patch.object(fsdp.DefaultReduceScatter, "__call__", reduce_scatter),
        "replicate's sum": lambda: patch.object(fsdp.dist, "all_reduce", no_sum_over_copies),
        "the norm's sum": lambda: patch.object(sharding, "dist", SimpleNamespace(all_reduce=lambda *a, **b: None)),
        "the exchange of tied halves": lambda: patch.object(Pipeline, "_join_tied", lambda self: None),
        "the ring's way home": lambda: patch.object(ring, "_pass_on", keep_gradients),
        "the experts' way back": lambda: patch.object(
            experts._Send, "backward",
            staticmethod(lambda ctx, x: (x.new_zeros(sum(ctx.sent), x.shape[1]), None, None, None))),
        "the weight's sum": lambda: patch.object(ManyRanks, "total_weight", lambda self, batch: total_weight(batch)),
    }  # fmt: skip
    return outs[name]() if name else contextlib.nullcontext()


# --- a rank ---


def run(ranks: int, which: str, folder: Path, rank: int, pattern: str = "") -> None:
    """One of the processes: the first writes what came of each case."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    cases = {name: case for name, case in CASES[which][ranks].items() if re.search(pattern, name)}
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    for name, case in cases.items():
        begin = time.monotonic()
        try:
            result = result_of(case, ranks)
        except Exception:
            (folder / f"failed-{rank}.txt").write_text(f"{name}\n{traceback.format_exc()}")
            raise
        result["seconds"] = round(time.monotonic() - begin, 1)
        if rank == 0:
            with (folder / "results.jsonl").open("a") as results:
                print(json.dumps([name, result]), file=results)
    dist.destroy_process_group()


@functools.cache
def world_of(parallel: ParallelSettings, ranks: int) -> World:
    return World.of(parallel, ranks, torch.device("cpu"), torch.float64)


def result_of(case: Case, ranks: int) -> dict[str, Any]:
    """The largest difference, and where it is."""
    trial, worst = case.trial(), []
    torch.set_default_dtype(case.dtype)
    world = dataclasses.replace(
        world_of(trial.parallel, ranks), dtype=case.dtype, micro_batch_rows=trial.settings.micro_batch_rows
    )
    with taken_out(case.without):
        for stepping, steps in case.steps(ranks).items():
            differences = compare(trial, world, stepping, steps)
            worst.append(max(differences, key=lambda each: float("inf") if each.size != each.size else each.size))
    largest = max(worst, key=lambda each: each.size)
    return {"size": largest.size, "where": str(largest)}


# --- the launches ---


def launch(ranks: int, which: str, folder: Path) -> None:
    """Of all tests that ask, also in other processes, the first launches."""
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "results.jsonl").exists():
            return
        (folder / "results.jsonl").touch()
        command = [sys.executable, __file__, str(ranks), which, str(folder)]
        processes = [subprocess.Popen([*command, str(rank)], stderr=subprocess.DEVNULL) for rank in range(ranks)]
        for process in processes:
            process.wait()


def check(ranks: int, which: str, name: str, temporary: pytest.TempPathFactory) -> None:
    """Read the result of a case from the launch that all cases of as many ranks share."""
    own = temporary.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / f"ranks-{ranks}-{which}"
    launch(ranks, which, folder)
    found = dict(json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines())
    assert name in found, "\n".join(file.read_text() for file in folder.glob("failed-*")) or "the ranks came to no end"
    case = CASES[which][ranks][name]
    if case.without:
        assert found[name]["size"] > TOLERANCE[case.dtype], "the comparison does not see it"
    else:
        assert found[name]["size"] <= TOLERANCE[case.dtype], found[name]["where"]


needs_gloo = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs torch's gloo")


@needs_gloo
@pytest.mark.parametrize(("ranks", "name"), [(ranks, name) for ranks in QUICK for name in QUICK[ranks]])
def test_ranks_train_as_one_process(ranks: int, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    check(ranks, "quick", name, tmp_path_factory)


@needs_gloo
@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "name"), [(ranks, name) for ranks in SLOW for name in SLOW[ranks]])
def test_every_layout_trains_as_one_process(ranks: int, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """And is seen not to, where a collective is taken out."""
    check(ranks, "slow", name, tmp_path_factory)


if __name__ == "__main__":
    run(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
