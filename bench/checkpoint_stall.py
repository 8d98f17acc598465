"""How long does the training stand still for a checkpoint, and how much slower is it while one is written?

    python bench/checkpoint_stall.py --d-model 384 --layers 6 --rows 16
    python bench/checkpoint_stall.py --d-model 768 --layers 12 --rows 4 --context 512 --vocabulary 50304

Trains on random tokens, with a save every few steps, and the same steps without one. The synchronous way writes before
it goes on; the asynchronous one is what `groundup pretrain` does.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from groundup.batch import Batch
from groundup.model.settings import ModelConfig
from groundup.optim.settings import Bfloat16, Float32
from groundup.pretrain.settings import PretrainSettings
from groundup.pretrain.setup import set_up
from groundup.train import checkpoint
from groundup.train.checkpoint import Kept, Saver, Snapshot
from groundup.train.fit import fit
from groundup.weights.load import find_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-model", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--every", type=int, default=10, help="steps between saves")
    parser.add_argument("--saves", type=int, default=4)
    parser.add_argument("--directory", type=Path, help="where checkpoints go; a temporary folder if not given")
    arguments = parser.parse_args()
    config = ModelConfig(
        vocab_size=arguments.vocabulary,
        context_length=arguments.context,
        d_model=arguments.d_model,
        n_layers=arguments.layers,
        n_heads=arguments.heads,
    )
    device = find_device()
    precision = Bfloat16() if arguments.precision == "bfloat16" else Float32()
    settings = PretrainSettings(precision=precision, micro_batch_rows=arguments.rows)
    trained = set_up(config, settings, device)
    shape = (arguments.rows, arguments.context)
    ids = torch.randint(0, arguments.vocabulary, shape, device=device)
    batch = Batch(
        tokens=ids,
        targets=ids.roll(-1, dims=1),
        weight=torch.ones(shape, device=device),
        position=torch.arange(arguments.context, device=device).expand(shape).contiguous(),
        document=torch.zeros(shape, dtype=torch.int64, device=device),
    )
    batches = iter(lambda: batch, None)
    count = arguments.every * (arguments.saves + 1)
    steps = fit(trained.optimizer, lambda _: 1.0, batches, trained.gradients(settings), steps=3 * count)

    def take(number: int) -> list[float]:
        """Seconds of so many steps."""
        seconds = []
        for _ in range(number):
            began = time.perf_counter()
            next(steps).loss.item()  # waits for the device
            seconds.append(time.perf_counter() - began)
        return seconds

    size = sum(tensor.nbytes for tensor in trained.tensors().values())
    take(arguments.every)  # warms up
    plain = take(arguments.every * arguments.saves)
    step = statistics.median(plain)
    parameters = sum(copy.numel() for copy in trained.masters.copies.values())
    print(f"{parameters / 1e6:.1f}M parameters on {device}, {torch.get_num_threads()} threads, {arguments.precision}")
    print(f"checkpoint {size / 1e6:,.0f} MB; step {step:.3f} s (median of {len(plain)})")
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        snapshot, blocked = Snapshot(), []
        for number in range(arguments.saves):
            began = time.perf_counter()
            snapshot.take(trained.tensors())
            checkpoint.save(Path(folder) / "at once", snapshot.wait(), {"step": number}, {}, {})
            checkpoint.remove_old(Path(folder) / "at once", Kept(2))
            blocked.append(time.perf_counter() - began)
            take(1)
        told: list[dict[str, float]] = []
        stalls, between = [], []
        kept = Kept(2)
        with Saver(
            Path(folder) / "behind", kept, {}, {}, failures=1, tell=lambda event, **details: told.append(details)
        ) as saver:
            for number in range(arguments.saves):
                began = time.perf_counter()
                saver.save(trained.tensors(), {"step": number}, {})
                stalls.append(time.perf_counter() - began)
                between.append(sum(take(arguments.every)))
    alone = sum(plain) / arguments.saves
    rest = statistics.median(stalls[1:])
    print(
        f"written before going on: {statistics.median(blocked):.3f} s = {statistics.median(blocked) / step:.2f} steps"
    )
    print(f"written behind it: the loop stands {rest:.3f} s = {rest / step:.2f} steps (first time {stalls[0]:.3f} s)")
    writing = statistics.median(details["write_seconds"] for details in told)
    slower = statistics.median(between) - alone
    print(f"  it is written in {writing:.3f} s; the {arguments.every} steps beside it take {slower:+.3f} s longer")
    waits = [details["waited_seconds"] for details in told if "waited_seconds" in details]
    if waits:
        print(f"  {len(waits)} saves waited for the one before, at most {max(waits):.3f} s: take a larger --every")


if __name__ == "__main__":
    main()
