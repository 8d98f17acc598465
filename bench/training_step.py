"""What pays in a training step on a CPU? Tokens per second with each thing taken away, one process each, in turn.

    python bench/training_step.py runs/storybook [--rounds 3]

Variants: as groundup trains; blocks that are not compiled; float32 instead of bfloat16 with float32 masters; torch's
fused attention kernel instead of three plain operations; an allocator that hands freed pages back to the system; and
all at once. Prints the median over the rounds and the ratio to the first.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

VARIANTS = {
    "as groundup trains": "",
    "not compiled": "plain",
    "float32": "float32",
    "torch's fused attention kernel": "kernel",
    "pages handed back": "pages",
    "all four": "plain float32 kernel pages",
}


def measure(run: Path, without: str) -> float:
    """Tokens per second of the run's model, median of 12 steps."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from groundup.model.kernels import blocks
    from groundup.pretrain.setup import batches, set_up
    from groundup.recipe import Recipe
    from groundup.shards import open_split
    from groundup.train.assemble import prepare_process
    from groundup.train.fit import fit

    if "pages" not in without:
        prepare_process()
    if "kernel" in without:

        def fused(q, k, v, mask, distance, **options):
            allowed = mask.to(q.dtype)
            return scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=q.shape[1] != k.shape[1])

        blocks.weighted_values = fused
    chosen = [f"pretrain.precision={'float32' if 'float32' in without else 'bfloat16'}"]
    chosen += [f"pretrain.compile={str('plain' not in without).lower()}"]
    recipe = Recipe.load(run / "recipe.toml", chosen)
    shards = open_split(run / "shards", "train")
    config, settings = recipe.model.with_vocabulary(int(shards.ids.max()) + 64), recipe.pretrain
    rows = settings.batch_tokens // config.context_length
    settings = settings.model_copy(update={"micro_batch_rows": rows})
    assembled = set_up(config, settings, torch.device("cpu"))
    drawn = batches(shards, config.context_length, 0, rows, 0)
    taken, last = [], time.monotonic()
    for _ in fit(assembled.optimizer, lambda _: 1.0, drawn, assembled.gradients(settings), steps=14):
        taken.append(time.monotonic() - last)
        last = time.monotonic()
    return recipe.pretrain.batch_tokens / statistics.median(taken[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.without is not None:
        print(measure(arguments.run, arguments.without))
        return
    speeds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.rounds):
        for name, without in VARIANTS.items():
            command = [sys.executable, __file__, str(arguments.run), f"--without={without}"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            speeds[name].append(float(done.stdout))
    first = statistics.median(speeds["as groundup trains"])
    for name, found in speeds.items():
        middle = statistics.median(found)
        print(f"{name:<34} {middle:>8,.0f} tokens/s   {middle / first:.2f}   ({min(found):,.0f} to {max(found):,.0f})")


if __name__ == "__main__":
    main()
