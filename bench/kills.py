"""Does a run that is killed at 50 random moments end with the weights of the run that never was?

    python bench/kills.py --kills 50

A tiny recipe is built once without interruption, then again and again by processes that get SIGKILL after a random
time, or at a chosen place of a save: while the thread writes, between the last file and the manifest, between manifest
and name, while an old checkpoint is removed, in an evaluation, in a sample. What is compared at the end: every byte of
the weights, every loss, validation and sample. The places that were hit are counted.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

RECIPE = """
name = "tiny"
[corpus]
sources = ["tales"]
[tokenizer]
vocab_size = 320
[model]
context_length = 16
d_model = 16
n_layers = 1
n_heads = 2
d_ff = 32
dropout = 0.1
[pretrain]
steps = {steps}
batch_tokens = 64
micro_batch_rows = 3
device = "cpu"
precision = "{precision}"
validate_every = 10
sample_every = 20
sample_tokens = 8
checkpoint_every = 5
keep_every_steps = 40
keep_best = true
[evals]
prompts = ["Tale"]
sampling = {{ max_tokens = 8 }}
"""

KILLED_AT = '''
import os, random, signal, sys
from groundup import artifacts
from groundup.train import checkpoint
from groundup.cli import app as cli
from groundup.evals.score import HeldOut
from groundup.pretrain import run

place, times = sys.argv.pop(1), int(sys.argv.pop(1))

def dying(module, name, after):
    """Kill this process at a call of a function, the `times`-th, before or after it."""
    function, left = getattr(module, name), times

    def counted(*arguments, **options):
        nonlocal left
        left -= 1
        if left == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        value = function(*arguments, **options)
        if left == 0 and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    setattr(module, name, counted)

match place:
    case "while the thread writes":
        dying(checkpoint, "write_tensors", True)
    case "before the manifest":
        dying(artifacts, "_finish_files", True)
    case "between manifest and name":
        dying(artifacts, "_rename_over", False)
    case "just after the name":
        dying(artifacts, "_rename_over", True)
    case "while an old one is removed":
        dying(checkpoint, "remove_unless_held", False)
    case "in an evaluation":
        dying(HeldOut, "score", False)
    case "in a sample":
        dying(run, "stream", True)
cli.main()
'''
PLACES = (
    "while the thread writes",
    "before the manifest",
    "between manifest and name",
    "just after the name",
    "while an old one is removed",
    "in an evaluation",
    "in a sample",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; another one each time if not given")
    arguments = parser.parse_args()
    seed = random.randrange(1 << 30) if arguments.seed is None else arguments.seed
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        hits = kill_and_compare(home, arguments.kills, arguments.steps, arguments.precision, draw)
    print(f"{sum(hits.values())} kills (--seed {seed}), {arguments.steps} steps in {arguments.precision}:")
    for place, number in hits.most_common():
        print(f"  {number:3} {place}")
    print("weights, losses, validations and samples: those of the unbroken run, bit for bit")


def kill_and_compare(home: Path, kills: int, steps: int, precision: str, draw: random.Random) -> Counter[str]:
    """How often which place was hit.

    Raises:
        AssertionError: when the killed run is not the unbroken one.
    """
    write_texts(home)
    (home / "tiny.toml").write_text(RECIPE.format(steps=steps, precision=precision))
    (home / "killed_at.py").write_text(KILLED_AT)
    finish(start(home, [sys.executable, "-m", "groundup"], "unbroken"))
    run, hits = home / "killed", Counter[str]()
    at_random = [sys.executable, "-m", "groundup"]
    while sum(hits.values()) < kills:
        if is_finished(run):  # too early: kill the rest of it another time
            compare(run, home / "unbroken")
            for path in sorted(run.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            run.rmdir()
        place = draw.choice((*PLACES, *["at a random time"] * 3))
        if place == "at a random time":
            process = start(home, at_random, "killed")
            before = steps_written(run)
            while steps_written(run) <= before and process.poll() is None:
                time.sleep(0.002)
            time.sleep(draw.random() * 0.4)
            process.kill()
        else:
            process = start(home, [sys.executable, "killed_at.py", place, str(draw.randrange(1, 5))], "killed")
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            hits[place] += 1
        elif process.returncode != 0:
            raise AssertionError(f"ended in {process.returncode} instead of being killed: {place}")
    finish(start(home, at_random, "killed"))
    compare(run, home / "unbroken")
    return hits


def start(home: Path, program: list[str], run: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*program, "build", "tiny.toml", "--run", run],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: "subprocess.Popen[str]") -> None:
    told, _ = process.communicate()
    assert process.returncode == 0, told


def is_finished(run: Path) -> bool:
    return (run / "report.html").is_file()


def steps_written(run: Path) -> int:
    path = run / "pretrain" / "metrics.jsonl"
    return path.read_bytes().count(b'"loss"') if path.is_file() else 0


def compare(run: Path, unbroken: Path) -> None:
    """Raises an AssertionError that names what differs."""
    for name in ("model/model.safetensors", "evals/test.json", "evals/samples.json"):
        assert (run / name).read_bytes() == (unbroken / name).read_bytes(), name
    one, two = ([measured(line) for line in read(path)] for path in (run, unbroken))
    assert one == two, "metrics.jsonl"
    assert not list((run / "pretrain" / "checkpoints").glob(".*")), "something is left over"
    kept = [sorted(path.name for path in (each / "pretrain" / "checkpoints").iterdir()) for each in (run, unbroken)]
    assert kept[0] == kept[1], f"other checkpoints are kept: {kept}"


def read(run: Path) -> list[str]:
    return (run / "pretrain" / "metrics.jsonl").read_text().splitlines()


def measured(line: str) -> dict[str, object]:
    """All of a line that is not the clock's."""
    return {name: value for name, value in json.loads(line).items() if name not in ("seconds", "memory_bytes", "ranks")}


def write_texts(home: Path) -> None:
    tale = "the king and the little fox went over the hill to find a golden apple for the old queen who sat by the well"
    words = tale.split()
    (home / "tales").mkdir()
    for number in range(40):
        turned = words[number % len(words) :] + words[: number % len(words)]
        (home / "tales" / f"{number:02}.txt").write_text(f"Tale {number}. " + " ".join(turned * 4) + ".\n")


if __name__ == "__main__":
    main()
