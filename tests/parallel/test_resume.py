"""A training saved under one layout goes on under any other, as if it had never stopped."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from groundup.building import build
from groundup.errors import Paused
from groundup.parallel.settings import ParallelSettings
from groundup.pretrain.ranks import PretrainJob, pretrain_rank
from groundup.pretrain.run import pretrain
from groundup.recipe import Recipe

RANKS, STEPS, PAUSE = 4, 6, 3
LAYOUTS: dict[str, dict[str, Any]] = {
    "zero 3": {"shard": 4},
    "zero 1": {"shard": 4, "zero": 1},
    "replicate × zero 2": {"replicate": 2, "shard": 2, "zero": 2},
    "tensor × shard": {"tensor": 2, "shard": 2},
    "pipeline × tensor": {"pipeline": 2, "tensor": 2},
    "V × context": {"pipeline": 2, "context": 2, "schedule": {"kind": "zero_bubble"}},
    "expert × tensor": {"expert": 2, "tensor": 2},
}
PAIRS = [
    ("zero 3", "tensor × shard"),
    ("zero 3", "one"),
    ("one", "zero 3"),
    ("tensor × shard", "pipeline × tensor"),
    ("pipeline × tensor", "one"),
    ("pipeline × tensor", "V × context"),
    ("V × context", "zero 1"),
    ("zero 1", "expert × tensor"),
    ("expert × tensor", "replicate × zero 2"),
    ("replicate × zero 2", "V × context"),
    ("V × context", "one"),
    ("one", "expert × tensor"),
    *((name, name) for name in LAYOUTS),
]


def recipe() -> Recipe:
    """A mixture with tied head, dropout and an average, as small as can be cut in every way."""
    return Recipe.from_table(
        {
            "name": "resume",
            "corpus": {"sources": ["tales"]},
            "tokenizer": {"vocab_size": 320},
            "model": {
                "context_length": 32, "d_model": 32, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "d_ff": 24,
                "dropout": 0.1, "feedforward": {"kind": "experts", "n_experts": 4, "n_active": 2},
            },
            "pretrain": {
                "steps": STEPS, "batch_tokens": 8 * 32, "micro_batch_rows": 2, "precision": "float32",
                "device": "cpu", "compile": False, "validate_every": 3, "sample_every": 6, "sample_tokens": 3,
                "checkpoint_every": 3, "keep_checkpoints": 5, "validation_tokens": 300, "health_every": 3,
                "average": "ema", "schedule": "constant",
            },
        }
    )  # fmt: skip


def go(run: Path, layout: str, until: int | None) -> None:
    """Train in `run` up to `until`, alone or on this rank of four."""
    settings = recipe()
    parallel = ParallelSettings.from_table(LAYOUTS.get(layout, {}))
    try:
        if layout == "one":
            pretrain(settings.model, settings.pretrain, run, {}, say=lambda text: None, until=until)
        else:
            training = PretrainJob(settings.model, settings.pretrain, parallel, run, {}, None, until)
            pretrain_rank(training, "", torch.device("cpu"), RANKS)
    except Paused:
        pass


def prepared(folder: Path, name: str, of: str = "data") -> Path:
    shutil.copytree(folder / of, folder / name)
    return folder / name


def work(rank: int, folder: Path) -> None:
    """All launches in one: save under each layout, then go on from copies under others."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(minutes=3))

    def alone(function: Any, *arguments: Any) -> None:
        if rank == 0:
            function(*arguments)
        dist.barrier()

    for layout in ["one", *LAYOUTS]:
        alone(prepared, folder, f"{layout}, begun")
        if layout == "one":
            alone(go, folder / "one, begun", "one", PAUSE)
        else:
            go(folder / f"{layout}, begun", layout, PAUSE)
    for before, after in PAIRS:
        name = f"{before} to {after}"
        alone(prepared, folder, name, f"{before}, begun")
        alone(go, folder / name, "one", None) if after == "one" else go(folder / name, after, None)
    for layout in ["one", *LAYOUTS]:
        alone(prepared, folder, layout)
        alone(go, folder / layout, "one", None) if layout == "one" else go(folder / layout, layout, None)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, settle: Callable[[Path], Path]) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    settle(folder)
    table = {**recipe().table(), "corpus": {"sources": [str(folder / "tales")]}}
    build(Recipe.from_table(table), run=folder / "data", last="pack", say=lambda text: None)
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder)]) for rank in range(RANKS)]
    assert [rank.wait() for rank in ranks] == [0] * RANKS
    return folder


@cache
def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_any_layout_goes_on_where_another_stopped(runs: Path, before: str, after: str) -> None:
    """Same losses as one process that never stopped; the same bits where the layout stayed."""
    resumed, unbroken = runs / f"{before} to {after}", runs / "one"
    assert losses(resumed) == pytest.approx(losses(unbroken), abs=1e-5)
    weights, others = (load_file(run / "model" / "model.safetensors") for run in (resumed, unbroken))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], atol=2e-4, rtol=0)  # AdamW's first steps divide by ~0
    if before == after:
        for name, weight in load_file(runs / after / "model" / "model.safetensors").items():
            assert torch.equal(weights[name], weight), name


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
