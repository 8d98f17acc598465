"""With `parallel.exact` one, two and four ranks end with the same weights to the last bit, stopped or not."""

import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from groundup.building import build
from groundup.errors import Paused
from groundup.parallel.settings import ParallelSettings
from groundup.pretrain.ranks import PretrainJob, pretrain_rank
from groundup.recipe import Recipe

STAGES: dict[str, list[tuple[int, int | None]]] = {
    "one": [(1, None)],
    "two": [(2, None)],
    "four, then one, then two": [(4, 3), (1, 5), (2, None)],
}
"""Run → its launches: (ranks, step to pause after)."""
TABLE = {
    "name": "exact",
    "corpus": {"sources": ["tales"]},
    "tokenizer": {"vocab_size": 320},
    "model": {"context_length": 32, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 50, "dropout": 0.1},
    "pretrain": {
        "steps": 7, "batch_tokens": 8 * 32, "micro_batch_rows": 1, "precision": "float32", "device": "cpu",
        "compile": False, "validate_every": 3, "sample_every": 7, "sample_tokens": 3, "checkpoint_every": 3,
        "validation_tokens": 300, "health_every": 100, "schedule": "constant", "clip": 0.3,
    },
}  # fmt: skip


def work(rank: int, ranks: int, until: int | None, run: Path, store: Path) -> None:
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(store), ranks), rank=rank, world_size=ranks, timeout=timedelta(minutes=3)
    )
    recipe, parallel = Recipe.from_table(TABLE), ParallelSettings(exact=True, zero=rank_free_zero(run))
    try:
        training = PretrainJob(recipe.model, recipe.pretrain, parallel, run, {}, None, until)
        pretrain_rank(training, "", torch.device("cpu"), ranks)
    except Paused:
        pass
    dist.destroy_process_group()


def rank_free_zero(run: Path) -> int:
    """Another stage of ZeRO for each run: what is kept whole changes no bit."""
    return {"one": 1, "two": 2}.get(run.name, 3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, settle: Callable[[Path], Path]) -> Path:
    folder = tmp_path_factory.mktemp("exact")
    settle(folder)
    recipe = Recipe.from_table({**TABLE, "corpus": {"sources": [str(folder / "tales")]}})
    for run, launches in STAGES.items():
        build(recipe, run=folder / run, last="pack", say=lambda text: None)
        for number, (ranks, until) in enumerate(launches):
            store = folder / f"{run} {number}.store"
            arguments = [[str(rank), str(ranks), str(until), str(folder / run), str(store)] for rank in range(ranks)]
            processes = [subprocess.Popen([sys.executable, __file__, *each]) for each in arguments]
            assert [process.wait() for process in processes] == [0] * ranks
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("run", [run for run in STAGES if run != "one"])
def test_any_number_of_ranks_gives_the_same_bits(runs: Path, run: str) -> None:
    """Dropout and clipping included; by any stage of ZeRO."""
    weights, others = (load_file(runs / each / "model" / "model.safetensors") for each in (run, "one"))
    assert [name for name, weight in weights.items() if not torch.equal(weight, others[name])] == []


if __name__ == "__main__":
    rank, ranks, until, run, store = sys.argv[1:]
    work(int(rank), int(ranks), None if until == "None" else int(until), Path(run), Path(store))
