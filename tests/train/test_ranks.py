"""Two processes that each have half of every batch train as one process does."""

import itertools
import subprocess
import sys
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing import assert_close

from groundup.batch import Batch, Weighted, split, total_weight
from groundup.model.dropout import row_keys
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.optimizer import make_optimizer
from groundup.optim.settings import AdamW
from groundup.train.fit import ONE_RANK, Ranks, accumulate, clip_gradients, fit
from groundup.train.guard import Guard
from groundup.train.losses import next_token
from groundup.train.settings import SkipAndRollBack

CONFIG = ModelConfig.from_table(
    {"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48, "dropout": 0.2}
)


def global_batch(seed: int) -> Batch:
    """Eight rows of very uneven weight: most of it is in the second half."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(97, (8, 24), generator=draw)
    weight = (torch.rand(8, 24, generator=draw) < torch.linspace(0.1, 1, 8)[:, None]).float()
    position = torch.arange(24).expand(8, 24)
    return Batch(tokens, (tokens * 5 + 1) % 97, weight, position, torch.zeros_like(tokens))


def added_up(tensor: Tensor) -> Tensor:
    dist.all_reduce(tensor)
    return tensor


def clip_shares(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Add up the gradients of both ranks, and clip them to the norm of what that gives."""
    parameters = list(parameters)
    for parameter in parameters:
        assert parameter.grad is not None
        added_up(parameter.grad)
    return clip_gradients(parameters, max_norm)


class TwoRanks(Ranks):
    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def clip_gradients(self, parameters: Iterable[Tensor], max_norm: float) -> Tensor:
        return clip_shares(parameters, max_norm)

    def total_weight(self, batch: Weighted) -> Tensor:
        return added_up(total_weight(batch))

    def add_up(self, shares: dict[str, list[Tensor]], divisor: Tensor) -> dict[str, Tensor]:
        return {name: added_up(torch.stack(each).sum()) / divisor for name, each in shares.items()}

    def dropout_keys(self, seed: int, step: int, count: int, device: torch.device) -> Tensor:
        return row_keys(seed, step, self.rank * count, count, device)

    def agree(self, verdict: bool) -> bool:
        return bool(added_up(torch.tensor(float(verdict))) == 2)


def train(rank: int | None) -> dict[str, Any]:
    """Three steps over two micro-batches of two rows a rank, or four in one process; the second step is refused."""
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    ranks = ONE_RANK if rank is None else TwoRanks(rank)
    optimizer = make_optimizer(model.named_parameters(), AdamW(learning_rate=1e-2))
    gradients = accumulate(model, next_token, 4 if rank is None else 2, seed=5, ranks=ranks)

    def batches() -> Iterator[Batch]:
        for number in itertools.count():
            yield global_batch(number) if rank is None else split(global_batch(number), 2)[rank]

    steps = fit(optimizer, lambda _: 1.0, batches(), gradients, steps=3, clip=0.5, ranks=ranks,
                accept=lambda step: ranks.agree(step.number != 2 or rank == 0))  # fmt: skip
    taken = [(step.loss.item(), step.grad_norm.item(), step.tokens.item(), step.accepted) for step in steps]
    guard = Guard(SkipAndRollBack())
    trouble = guard.judge(1.0 if rank == 0 else float("nan"), 1.0, agree=ranks.agree)
    return {"taken": taken, "weights": dict(model.named_parameters()), "bad": guard.bad_in_a_row, "trouble": trouble}


def run(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(minutes=5))
    result = train(rank)
    torch.save({**result, "trouble": result["trouble"] and result["trouble"].seen}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs torch's gloo")
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Same loss, norm, weight and parameters, dropout and the refused step included."""
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), tmp_path]) for rank in range(2)]
    assert [rank.wait() for rank in ranks] == [0, 0]
    one = train(None)
    for rank in range(2):
        own = torch.load(tmp_path / f"{rank}.pt")
        for ours, theirs in zip(own["taken"], one["taken"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)  # float32, added up in another order
        assert [accepted for *_, accepted in own["taken"]] == [True, False, True]
        for name, weight in one["weights"].items():
            assert_close(own["weights"][name], weight, atol=2e-5, rtol=0)
        assert own["bad"] == 1, "what is bad on one rank is bad on both"
        assert own["trouble"] == ("another rank found it bad" if rank == 0 else "the loss is nan")


if __name__ == "__main__":
    run(int(sys.argv[1]), Path(sys.argv[2]))
