"""Is a tree as fast as another? Both do the same work in turn, and the medians are compared.

    python bench/two_trees.py OLD NEW [--rounds 5] [--only NAME]

OLD and NEW are checkouts; each runs with its own `src`, in new processes. Measured are a training step of the storybook
recipe as it trains (compiled) and of one four times as large, encoding its documents on all cores, learning 8,192
tokens from them, both with warm compiled loops, and `groundup --help`. Prints the median time of both, their ratio, and
the range of the ratios within a round: what the machine's own noise makes of it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

TEXTS = """
import gzip, json, sys, time
from groundup import Tokenizer
with gzip.open(sys.argv[1] + "/src/groundup/data/storybook.jsonl.gz", "rt", encoding="utf-8") as lines:
    texts = [json.loads(line)["text"] for line in lines]
"""
ENCODE = """
tokenizer = Tokenizer.learn(texts, vocab_size=8192)
tokenizer.encode_batch(texts)
began = time.perf_counter()
for _ in range(5):
    tokenizer.encode_batch(texts)
print((time.perf_counter() - began) / 5)
"""
LEARN = """
Tokenizer.learn(texts, vocab_size=8192)
began = time.perf_counter()
Tokenizer.learn(texts, vocab_size=8192)
print(time.perf_counter() - began)
"""


def run(tree: Path, *words: str) -> str:
    path = os.pathsep.join([str(tree / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *words], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{tree}: {' '.join(words)}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


LARGER = ("tokenizer.vocab_size=8192", "model.d_model=384", "model.n_heads=6", "model.d_ff=1024")
"""13.8 M parameters."""


def seconds_of_step(tree: Path, *larger: str) -> float:
    """The median of 40 steps, the first ten left out."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            *larger,
            "pretrain.steps=40",
            "pretrain.schedule.warmup_steps=4",
            "pretrain.validate_every=1000",
            "pretrain.sample_every=1000",
            "evals.prompts=[]",
        ]
        recipe = str(tree / "recipes" / "storybook.toml")
        for stage in ("corpus", "tokenizer", "pack", "pretrain"):
            run(tree, "-m", "groundup", stage, recipe, *settings, "--run", folder)
        lines = [json.loads(line) for line in (Path(folder) / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in lines if "loss" in line]
    return statistics.median(after - before for before, after in zip(seconds[9:], seconds[10:], strict=False))


def seconds_of_help(tree: Path) -> float:
    began = time.perf_counter()
    run(tree, "-m", "groundup", "--help")
    return time.perf_counter() - began


MEASURED: dict[str, Callable[[Path], float]] = {
    "training step, 3.5 M": seconds_of_step,
    "training step, 13.8 M": lambda tree: seconds_of_step(tree, *LARGER),
    "encode": lambda tree: float(run(tree, "-c", TEXTS + ENCODE, str(tree))),
    "learn": lambda tree: float(run(tree, "-c", TEXTS + LEARN, str(tree))),
    "--help": seconds_of_help,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=MEASURED, help="one of them")
    arguments = parser.parse_args()
    trees = [arguments.old.absolute(), arguments.new.absolute()]
    print("| | old, s | new, s | new / old | in single rounds |")
    print("|---|---|---|---|---|")
    for name in [arguments.only] if arguments.only else MEASURED:
        measure = MEASURED[name]
        for tree in trees:
            measure(tree)  # whatever is made once and kept, such as compiled code
        # each first in every other round
        rounds = [
            [measure(tree) for tree in trees[:: (-1) ** number]][:: (-1) ** number]
            for number in range(arguments.rounds)
        ]
        old, new = (statistics.median(each) for each in zip(*rounds, strict=True))
        ratios = sorted(after / before for before, after in rounds)
        print(f"| {name} | {old:.3f} | {new:.3f} | {new / old:.3f} | {ratios[0]:.2f} to {ratios[-1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
