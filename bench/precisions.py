"""Does a precision, or the compiled path, reach the loss of another? Final validation over seeds, with the same rows.

    python bench/precisions.py RECIPE [--ways bfloat16 float16] [--seeds 5] [KEY=VALUE ...]

A way is a precision, or one with `+compile`, such as `bfloat16+compile`. Each is trained with each seed in a process of
its own, then its mean validation bits per byte is printed with the standard deviation over seeds, and how many of the
first way's deviations the means lie apart. Text and tokens are made once.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def train(recipe: Path, place: Path, way: str, seed: int, settings: list[str]) -> dict[str, float]:
    """Final validation bits per byte, mean loss of the last tenth of the steps, and seconds."""
    precision, _, compiled = way.partition("+")
    run = place / f"{way}-{seed}"
    chosen = [f"pretrain.precision={precision}", f"pretrain.compile={str(bool(compiled)).lower()}"]
    command = ["pretrain", str(recipe), *chosen, f"pretrain.seed={seed}", *settings, "--run", str(run)]
    for stage in ("corpus", "tokenizer", "pack", "pretrain"):
        command[0] = stage
        subprocess.run([sys.executable, "-m", "groundup", *command], check=True, capture_output=True)
    lines = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    return {
        "validation": [line for line in lines if "validation_bits_per_byte" in line][-1]["validation_bits_per_byte"],
        "loss": statistics.mean(losses[-max(1, len(losses) // 10) :]),
        "seconds": max(line["seconds"] for line in lines if "seconds" in line),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--ways", nargs="+", default=["bfloat16", "float16"])
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for way in arguments.ways:
                one = train(arguments.recipe, Path(folder), way, seed, arguments.settings)
                found.setdefault(way, []).append(one)
                told = "  ".join(f"{name} {value:.4f}" for name, value in one.items())
                print(f"{way:<20} seed {seed}  {told}", flush=True)
    first = [one["validation"] for one in found[arguments.ways[0]]]
    deviation = statistics.stdev(first) if len(first) > 1 else float("nan")
    print(f"\n{'':<20} validation, bits per byte      loss at the end   seconds")
    for way, ones in found.items():
        values = [one["validation"] for one in ones]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        mean, loss = statistics.mean(values), statistics.mean(one["loss"] for one in ones)
        apart = (mean - statistics.mean(first)) / deviation
        seconds = statistics.median(one["seconds"] for one in ones)
        print(f"{way:<20} {mean:.4f} ± {spread:.4f} ({apart:+.2f} deviations)   {loss:.4f}   {seconds:.0f}")


if __name__ == "__main__":
    main()
