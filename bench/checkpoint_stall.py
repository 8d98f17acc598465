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
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Stalls:
    """What saving costs a training; seconds are medians."""

    parameters: int
    checkpoint_bytes: int
    step: float
    """Seconds of a step without a save."""
    written_at_once: float
    """Seconds that the loop stands still when it writes before it goes on."""
    written_behind: float
    """Seconds that it stands still when a thread writes."""
    first_behind: float
    """Likewise the first time, which also takes the memory for the copy."""
    writing: float
    """Seconds until the thread has written a checkpoint."""
    slower: float
    """Seconds that the steps beside the writing take longer, all together."""
    waits: list[float]
    """Seconds of each save that waited for the one before."""


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
    precision = Bfloat16() if arguments.precision == "bfloat16" else Float32()
    settings = PretrainSettings(precision=precision, micro_batch_rows=arguments.rows)
    device = find_device()
    stalls = measure_stalls(config, settings, device, arguments.every, arguments.saves, arguments.directory)
    threads = torch.get_num_threads()
    print(f"{stalls.parameters / 1e6:.1f}M parameters on {device}, {threads} threads, {arguments.precision}")
    print(f"checkpoint {stalls.checkpoint_bytes / 1e6:,.0f} MB; step {stalls.step:.3f} s (median)")
    at_once, behind, step = stalls.written_at_once, stalls.written_behind, stalls.step
    print(f"written before going on: {at_once:.3f} s = {at_once / step:.2f} steps")
    print(
        f"written behind it: the loop stands {behind:.3f} s = {behind / step:.2f} steps "
        f"(first time {stalls.first_behind:.3f} s)"
    )
    print(
        f"  it is written in {stalls.writing:.3f} s; the {arguments.every} steps beside it take "
        f"{stalls.slower:+.3f} s longer"
    )
    if stalls.waits:
        print(
            f"  {len(stalls.waits)} saves waited for the one before, at most {max(stalls.waits):.3f} s: "
            "take a larger --every"
        )


def measure_stalls(
    config: ModelConfig, settings: PretrainSettings, device: torch.device, every: int, saves: int, place: Path | None
) -> Stalls:
    """Train on random tokens, in batches of one micro-batch, and save every so many steps.

    Args:
        place: where checkpoints go, in a folder that is removed; the system's place for temporary files if None.
    """
    trained = set_up(config, settings, device)
    shape = (settings.micro_batch_rows, config.context_length)
    ids = torch.randint(0, config.vocab_size or 0, shape, device=device)
    batch = Batch(
        tokens=ids,
        targets=ids.roll(-1, dims=1),
        weight=torch.ones(shape, device=device),
        position=torch.arange(config.context_length, device=device).expand(shape).contiguous(),
        document=torch.zeros(shape, dtype=torch.int64, device=device),
    )
    batches = iter(lambda: batch, None)
    count = every * (saves + 1)
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
    take(every)  # warms up
    plain = take(every * saves)
    step = statistics.median(plain)
    parameters = sum(copy.numel() for copy in trained.masters.copies.values())
    with tempfile.TemporaryDirectory(dir=place) as folder:
        snapshot, blocked = Snapshot(), []
        for number in range(saves):
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
            Path(folder) / "behind",
            kept,
            {},
            {},
            most_failures=1,
            tell=lambda event, sentence, **details: told.append(details),
        ) as saver:
            for number in range(saves):
                began = time.perf_counter()
                saver.save(trained.tensors(), {"step": number}, {})
                stalls.append(time.perf_counter() - began)
                between.append(sum(take(every)))
    alone = sum(plain) / saves
    waits = [details["waited_seconds"] for details in told if "waited_seconds" in details]
    return Stalls(
        parameters=parameters,
        checkpoint_bytes=size,
        step=step,
        written_at_once=statistics.median(blocked),
        written_behind=statistics.median(stalls[1:]),
        first_behind=stalls[0],
        writing=statistics.median(details["write_seconds"] for details in told),
        slower=statistics.median(between) - alone,
        waits=waits,
    )


if __name__ == "__main__":
    main()
