"""What sharing out costs: tokens a second of two ranks with a thread each, beside one process with two threads.

python bench/ranks.py recipes/storybook.toml [--rounds 3] [KEY=VALUE …]

Every way trains the same batches in new processes, in turn; a ratio of 1 is as fast as one process.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WAYS = {
    "replicate": ["--ranks", "2"],
    "zero 1": ["--ranks", "2", "parallel.shard=2", "parallel.zero=1"],
    "zero 2": ["--ranks", "2", "parallel.shard=2", "parallel.zero=2"],
    "zero 3": ["--ranks", "2", "parallel.shard=2"],
    "tensor": ["--ranks", "2", "parallel.tensor=2"],
    "context": ["--ranks", "2", "parallel.context=2"],
    "pipeline": ["--ranks", "2", "parallel.pipeline=2"],
    "exact": ["--ranks", "2", "parallel.exact=true"],
}
STEPS, WARM = 40, 10
"""Steps of a training, and those before the clock starts."""
FIXED = [
    "pretrain.precision=float32",
    "pretrain.compile=false",
    f"pretrain.steps={STEPS}",
    "pretrain.schedule=constant",
    "pretrain.checkpoint_every=1000",
    "pretrain.validate_every=1000",
    "pretrain.validation_tokens=1000",
    "pretrain.sample_tokens=0",
    "pretrain.health_every=1000",
]


def tokens_per_second(recipe: str, run: Path, arguments: list[str]) -> float:
    command = [sys.executable, "-m", "groundup", "build", recipe, "--run", str(run), *FIXED, *arguments]
    subprocess.run(command, check=True, capture_output=True)
    lines = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = {line["step"]: line for line in lines if "loss" in line}
    taken = steps[STEPS]["seconds"] - steps[WARM]["seconds"]
    return float((steps[STEPS]["tokens"] - steps[WARM]["tokens"]) / taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    asked = parser.parse_intermixed_args()
    ratios: dict[str, list[float]] = {way: [] for way in asked.ways}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.rounds):
            alone = tokens_per_second(asked.recipe, Path(folder, f"alone-{number}"), asked.overrides)
            for way in asked.ways:
                run = Path(folder, f"{way.replace(' ', '-')}-{number}")
                speed = tokens_per_second(asked.recipe, run, [*asked.overrides, *WAYS[way]])
                ratios[way].append(speed / alone)
                print(f"round {number + 1}: {way} {speed:,.0f} tokens/s, one process {alone:,.0f}", flush=True)
    print("\n| two ranks | of one process with two threads | single rounds |\n|---|---|---|")
    for way, each in ratios.items():
        print(f"| {way} | {statistics.median(each):.2f} | {min(each):.2f} to {max(each):.2f} |")


if __name__ == "__main__":
    main()
